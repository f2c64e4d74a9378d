"""Start programs that outlive us, find them again, stop them.

A program is known by its pid together with its start time, so that a pid the kernel has given to somebody else since is
never mistaken for ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tools.localcluster.errors import ComponentError
from tools.localcluster.layout import Layout

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_children: set[int] = set()


@dataclass(frozen=True)
class Program:
    """A program of the cluster and the namespaces it runs in."""

    name: str
    command: Sequence[str]
    in_node: bool = False
    """Also in the node's mount namespace; the network namespace is everybody's."""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Running:
    """A program that runs."""

    pid: int
    start_time: int
    """Ticks since boot: field 22 of /proc/PID/stat, proc(5)."""

    @property
    def rss_bytes(self) -> int:
        """Resident memory; 0 when the process is gone."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return 0

    @property
    def age_s(self) -> float:
        """Seconds since it started."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.start_time / CLOCK_TICKS


def start_time(pid: int) -> int | None:
    """Ticks since boot at which a process started; None when it is gone or a zombie."""
    try:
        # The name is in brackets and may hold anything, brackets too: the fields begin after the last one.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


def find(layout: Layout, name: str) -> Running | None:
    """The running program of that name."""
    try:
        noted = json.loads((layout.pids / f"{name}.json").read_text())
        running = Running(int(noted["pid"]), int(noted["start_time"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return running if start_time(running.pid) == running.start_time else None


def start(layout: Layout, program: Program, cgroup_procs: Sequence[Path]) -> Running:
    """Start a program in the cluster's namespaces and cgroups; it belongs to no session of ours and outlives us.

    Its output is appended to ``logs/NAME.log``.
    """
    command = ["nsenter", f"--net={layout.network_namespace}"]
    if program.in_node:
        command.append(f"--mount={layout.mount_namespace}")
    command += ["--", *program.command]
    log = layout.logs / f"{program.name}.log"
    # sudo and cron leave out the directories where runc and iptables are.
    path = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
    environment = {"PATH": path, "HOME": "/root", **program.environment}
    pid = os.posix_spawnp(
        command[0],
        command,
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            *((os.POSIX_SPAWN_CLOSE, descriptor) for descriptor in _inherited()),
        ],
        setsid=True,
        setsigmask=(),
        setsigdef=(signal.SIGINT, signal.SIGPIPE, signal.SIGTERM),
    )
    _children.add(pid)
    started = start_time(pid)
    if started is None:
        raise failure(layout, program.name, "ended at once")
    for procs in cgroup_procs:
        with contextlib.suppress(ProcessLookupError):
            procs.write_text(str(pid))
    running = Running(pid, started)
    note = layout.pids / f"{program.name}.json"
    temporary = note.with_suffix(".new")
    temporary.write_text(json.dumps({"pid": pid, "start_time": started}))
    temporary.rename(note)
    return running


def _inherited() -> list[int]:
    """Descriptors that whoever started us left open: a program that outlives us must not hold their pipes."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        # The descriptor of the listing itself is gone by now.
        with contextlib.suppress(OSError):
            if int(name) > 2 and os.get_inheritable(int(name)):
                found.append(int(name))
    return found


def ensure(layout: Layout, program: Program, cgroup_procs: Sequence[Path]) -> Running:
    """The running program; started when it does not run."""
    return find(layout, program.name) or start(layout, program, cgroup_procs)


def stop(layout: Layout, name: str, *, grace_s: float = 5.0) -> None:
    """End a program: SIGTERM, and SIGKILL when it is still there after the grace. Harmless when it does not run."""
    running = find(layout, name)
    if running is not None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.pid, number)
            if _gone(running, grace_s):
                break
    (layout.pids / f"{name}.json").unlink(missing_ok=True)


def _gone(running: Running, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        reap()
        if start_time(running.pid) != running.start_time:
            return True
        time.sleep(0.02)
    return False


def reap() -> None:
    """Collect those of our programs that ended while the process that started them still lives (a test run, say)."""
    for pid in list(_children):
        try:
            ended, _ = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            ended = pid
        if ended:
            _children.discard(pid)


def tail(path: Path, lines: int = 15, width: int = 400) -> str:
    """The last lines of a log, each cut to a width."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 64 * 1024))
            text = log.read().decode(errors="replace")
    except OSError:
        return "(no log)"
    return "\n".join("    " + line[:width] for line in text.splitlines()[-lines:]) or "(empty log)"


def failure(layout: Layout, name: str, what: str) -> ComponentError:
    """The error that says which component failed and shows the end of its log."""
    log = layout.logs / f"{name}.log"
    return ComponentError(f"{name} {what}. The end of {log}:\n{tail(log)}")
