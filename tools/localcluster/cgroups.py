"""The cluster's part of the cgroup trees: made at up, everything in it killed and removed at down.

Every hierarchy gets the same directory, ``/vedette-NAME``: ``system`` below it holds the cluster's own programs,
``kubepods`` (made by the kubelet) the pods. That makes the tree the one complete list of the cluster's processes,
whatever became of pid files: what is killed at down is what is in there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.localcluster import processes
from tools.localcluster.errors import ClusterError
from tools.localcluster.layout import Layout

_NEEDED_V2 = ("cpuset", "cpu", "memory", "pids")
_CPUSET = ("cpuset.cpus", "cpuset.mems")


@dataclass(frozen=True)
class Hierarchy:
    """A mounted cgroup file system."""

    mount_point: Path
    version: int


def parse_mounts(text: str) -> list[Hierarchy]:
    """The cgroup file systems of a /proc/PID/mounts, each mount point once."""
    found: dict[Path, Hierarchy] = {}
    for line in text.splitlines():
        _, mount_point, kind, *_ = line.split(" ")
        if kind in ("cgroup", "cgroup2"):
            path = Path(mount_point.replace("\\040", " "))
            found[path] = Hierarchy(path, 2 if kind == "cgroup2" else 1)
    return list(found.values())


def hierarchies() -> list[Hierarchy]:
    return parse_mounts(Path("/proc/self/mounts").read_text())


def _below(hierarchy: Hierarchy, layout: Layout) -> Path:
    return hierarchy.mount_point / layout.cgroup.lstrip("/")


def make(layout: Layout) -> list[Path]:
    """Make the cluster's directories; returns the ``cgroup.procs`` files a program of the cluster is written to."""
    found = hierarchies()
    if not found:
        raise ClusterError("no cgroup file system is mounted: mount -t cgroup2 none /sys/fs/cgroup")
    only_v2 = all(hierarchy.version == 2 for hierarchy in found)
    procs = []
    for hierarchy in found:
        top = _below(hierarchy, layout)
        system = top / "system"
        if only_v2:
            top.mkdir(exist_ok=True)
            _delegate(hierarchy.mount_point)
            _delegate(top)
        for parent, directory in ((hierarchy.mount_point, top), (top, system)):
            directory.mkdir(exist_ok=True)
            if hierarchy.version == 1:
                _inherit_cpuset(parent, directory)
        _weigh(top, 8)
        _weigh(system, 4)
        procs.append(system / "cgroup.procs")
    return procs


def _inherit_cpuset(parent: Path, directory: Path) -> None:
    """A new directory of the old cpuset hierarchy has no processors, and no process can enter it until it has."""
    for name in _CPUSET:
        file = directory / name
        if file.exists() and not file.read_text().strip():
            file.write_text((parent / name).read_text())


def _weigh(directory: Path, times: int) -> None:
    """Give a directory a larger part of the processors when they are contended.

    A cluster is a dozen busy programs. As one directory among the machine's processes it would get no more than one of
    them, and a node that starves is lost after seconds; inside, pods must not starve the control plane.
    """
    for name, usual in (("cpu.shares", 1024), ("cpu.weight", 100)):
        file = directory / name
        if file.exists():
            file.write_text(str(usual * times))


def _delegate(directory: Path) -> None:
    """Let the directories below have the controllers the kubelet wants (version 2)."""
    control = directory / "cgroup.subtree_control"
    missing = set(_NEEDED_V2) - set(control.read_text().split())
    if missing:
        try:
            control.write_text(" ".join(f"+{name}" for name in sorted(missing)))
        except OSError as error:
            raise ClusterError(f"{control}: cannot enable {', '.join(sorted(missing))}: {error.strerror}") from error


def _directories(layout: Layout) -> Iterator[Path]:
    """Every directory of the cluster in every hierarchy, the deepest first."""
    for hierarchy in hierarchies():
        for directory, _, _ in os.walk(_below(hierarchy, layout), topdown=False):
            yield Path(directory)


def members(layout: Layout) -> set[int]:
    """The pids of every process of the cluster."""
    pids: set[int] = set()
    for directory in _directories(layout):
        # A directory may go away while we look, and on version 2 a threaded one cannot be read.
        with contextlib.suppress(OSError):
            pids.update(int(line) for line in (directory / "cgroup.procs").read_text().split())
    return {pid for pid in pids if processes.start_time(pid) is not None}


def kill(layout: Layout, *, timeout_s: float = 20.0) -> set[int]:
    """Kill every process of the cluster; returns those that did not go."""
    deadline = time.monotonic() + timeout_s
    while (pids := members(layout)) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        processes.reap()
        time.sleep(0.02)
    return pids


def remove(layout: Layout, *, timeout_s: float = 10.0) -> list[Path]:
    """Remove the cluster's directories; returns those that could not be removed.

    The kernel needs a moment to let go of a directory whose last process was killed.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        left = []
        for directory in _directories(layout):
            try:
                directory.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                left.append(directory)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)
