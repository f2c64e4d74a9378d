"""The agent's errors: one small family, each with a stable reason."""

from __future__ import annotations


class AgentError(Exception):
    """What stops the agent or one of its steps.

    Attributes:
        reason: stable CamelCase word for logs, status and tests.
        exit_code: what the process exits with when nobody handles the error.
    """

    reason = "AgentError"
    exit_code = 1


class SettingsError(AgentError):
    """An option has no usable value."""

    reason = "InvalidSettings"
    exit_code = 2


class SpoolError(AgentError):
    """The spool directory cannot be used."""

    reason = "SpoolUnusable"
    exit_code = 3


class SpoolBusyError(SpoolError):
    """Another agent holds the spool directory."""

    reason = "SpoolBusy"


class PrivilegeError(AgentError):
    """The process could not be brought to the privileges it is meant to have."""

    reason = "PrivilegesNotDropped"
    exit_code = 4
