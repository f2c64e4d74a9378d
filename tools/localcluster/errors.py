"""What can go wrong, as few classes, each message made for the person at the terminal."""

from __future__ import annotations


class ClusterError(RuntimeError):
    """The cluster could not be brought up, changed or asked; the message says what to do."""

    reason = "ClusterError"


class PrerequisiteError(ClusterError):
    """The machine lacks something; the message is one line and says how to get it."""

    reason = "PrerequisiteError"


class BuildError(ClusterError):
    """A component could not be compiled."""

    reason = "BuildError"


class ComponentError(ClusterError):
    """A component did not start or did not become ready; the message ends with the tail of its log."""

    reason = "ComponentError"


class NoSuchClusterError(ClusterError):
    """There is no cluster of that name."""

    reason = "NoSuchClusterError"
