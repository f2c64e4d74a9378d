"""DefenseEvasion:Runtime/FilelessExecution: programs that have no file on disk.

Container runtimes run a copy of themselves from memory as their defence against CVE-2019-5736. That copy is told
apart by what it is: the same process was running the installed runtime just before, on the host, with the same
arguments. A container cannot make that true, and neither can a program that is only called runc.
"""

# ruff: noqa: S108 - the paths are what attackers use; nothing is opened here
from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from vedette_detector.detectors.detector import Detector
from vedette_detector.detectors.processes import CONTAINER_RUNTIMES, ancestors, basename, is_installed_file, last_writer
from vedette_detector.engine.container import INITIAL_PID_NS
from vedette_detector.engine.context import EngineContext
from vedette_detector.engine.detection import Detection
from vedette_detector.engine.event import Event
from vedette_detector.engine.history import NodeHistory
from vedette_detector.engine.selector import AnyLiteral, Mask, Selector
from vedette_detector.text import safe_text
from vedette_events.schema import ExecBits, FileBits

_SHM = (b"/dev/shm/", b"/run/shm/")


class FilelessExecution(Detector):
    """A program was run from memory: a memfd, a file without a name, or /dev/shm."""

    id = "fileless-execution"
    title = "A program was run from memory"
    description = "exec of a memfd, of a file that has no name any more (or never had one), or of a file in /dev/shm."
    finding_types = ("DefenseEvasion:Runtime/FilelessExecution",)
    severity = 5.0
    selectors = (
        Selector("exec", (Mask("file_bits", "any_bits", FileBits.MEMFD | FileBits.UNLINKED),)),
        Selector(
            "exec",
            (Mask("file_bits", "any_bits", FileBits.TMPFS),),
            (AnyLiteral(("path",), frozenset(b"\0" + directory for directory in _SHM)),),
        ),
    )
    triage = (
        "While the process lives, /proc/PID/exe is a copy of the program: save it before anything else. See who made "
        "it: the parent's connections just before tell where it came from."
    )
    falsepositives = (
        "Programs that unpack themselves into memory (some single-file bundles, licence protection).",
        "A long-running program that runs itself again after a package upgrade replaced its file; only reported "
        "when its start was not seen.",
    )
    tags = ("attack.defense_evasion", "attack.t1620", "attack.t1027.011")

    def confirm(self, event: Event, history: NodeHistory, context: EngineContext) -> Iterable[Detection]:
        """Tell apart what runs itself again."""
        bits = event.file_bits
        if bits & FileBits.MEMFD:
            if self._is_runtime_clone(event, history):
                return
            how = "from a memfd"
        elif bits & FileBits.UNLINKED:
            if self._ran_before_with_a_name(event, history) or self._is_pinned_executor(event, history):
                return
            how = "from a file without a name"
        else:
            how = "from /dev/shm"
        process = event.process
        made = history.events("memfd", pid=event.pid, start=event.start, until=event.time, limit=1)
        if not made and event.ppid:
            made = history.events("memfd", pid=event.ppid, until=event.time, limit=1)
        related = made if bits & FileBits.MEMFD else []
        writer = None
        if not bits & FileBits.MEMFD:
            container_id = event.container.container_id if event.container is not None else None
            writer = last_writer(history, event.path, event.dev, event.ino, container_id, event.time)
        parent = history.parent(process)
        starter = safe_text(parent.path) if parent is not None else ""
        words: dict[str, Any] = {}
        if event.exec_bits & ExecBits.SCRIPT:
            words["scriptPath"] = safe_text(event.filename)
        yield context.detection(
            event,
            description=f"{process.name} was run {how}.",
            key=(how, starter),
            context=words,
            related=[*related, *([writer] if writer is not None else [])],
        )

    @staticmethod
    def _is_runtime_clone(event: Event, history: NodeHistory) -> bool:
        """Whether an installed container runtime on the host runs its own copy, as runc, crun and youki do."""
        if event.pid_ns not in (0, INITIAL_PID_NS):
            return False
        before = history.process(event.pid, event.start, event.time - 1)
        if before is None or before.exec is None or basename(before.path) not in CONTAINER_RUNTIMES:
            return False
        if (
            before.pid_ns not in (0, INITIAL_PID_NS)
            or before.argv != tuple(event.argv)
            or before.mnt_ns != event.mnt_ns
        ):
            return False
        # The process may have been put into the container's cgroup in between; its first program was not there.
        return history.container_of(before.exec) is None and is_installed_file(
            before.path, before.file_bits, before.dev, before.ino, before.time, history
        )

    @staticmethod
    def _ran_before_with_a_name(event: Event, history: NodeHistory) -> bool:
        """Whether the very same file was run while it still had a name: an upgrade replaced it since."""
        earlier = history.events(
            "exec",
            until=event.time - 1,
            mask=lambda rows: (
                (rows["ino"] == event.ino)
                & (rows["dev"] == event.dev)
                & ((rows["file_bits"] & (FileBits.UNLINKED | FileBits.MEMFD)) == 0)
            ),
            limit=1,
        )
        # Run by itself or by what it started; somebody else's deleted file that once ran proves nothing.
        if not earlier:
            return False
        before = history.process(event.pid, event.start, event.time - 1)
        related = [*([before] if before is not None else []), *ancestors(event.process, history, 4)]
        return any((p.dev, p.ino) == (event.dev, event.ino) for p in related)

    @staticmethod
    def _is_pinned_executor(event: Event, history: NodeHistory) -> bool:
        """Whether systemd runs its executor, which it holds open across upgrades (systemd 254 and later)."""
        if event.container is not None or basename(event.path) != b"systemd-executor" or event.uid != 0:
            return False
        parent = history.parent(event.process)
        return (
            parent is not None
            and basename(parent.path) == b"systemd"
            and parent.path.startswith((b"/usr/lib/", b"/lib/"))
        )

    tests: ClassVar[tuple[dict[str, Any], ...]] = (
        {
            "name": "a memfd in a container",
            "match": True,
            "events": [
                {"event": "memfd", "name": "", "fd": 3, "container": True},
                {
                    "event": "exec",
                    "path": "memfd:",
                    "filename": "/proc/self/fd/3",
                    "file_bits": 0x38,
                    "container": True,
                },
            ],
        },
        {
            "name": "a memfd on the host",
            "match": True,
            "events": [{"event": "exec", "path": "memfd:x", "file_bits": 0x38}],
        },
        {
            "name": "a deleted file",
            "match": True,
            "events": [{"event": "exec", "path": "/tmp/x", "file_bits": 8, "ino": 5, "dev": 1}],
        },
        {
            "name": "/dev/shm",
            "match": True,
            "events": [{"event": "exec", "path": "/dev/shm/x", "file_bits": 0x20}],
        },
        {
            "name": "runc's copy of itself",
            "match": False,
            "events": [
                {"event": "exec", "path": "/usr/sbin/runc", "argv": ["runc", "init"], "ino": 7, "dev": 1},
                {"event": "memfd", "name": "runc_cloned:/proc/self/exe"},
                {
                    "event": "exec",
                    "path": "memfd:runc_cloned:/proc/self/exe",
                    "argv": ["runc", "init"],
                    "file_bits": 0x38,
                },
            ],
        },
        {
            "name": "something called runc_cloned, without a runc before",
            "match": True,
            "events": [
                {"event": "exec", "path": "/usr/bin/perl", "argv": ["runc", "init"]},
                {"event": "memfd", "name": "runc_cloned:/proc/self/exe"},
                {
                    "event": "exec",
                    "path": "memfd:runc_cloned:/proc/self/exe",
                    "argv": ["runc", "init"],
                    "file_bits": 0x38,
                },
            ],
        },
        {
            "name": "something called runc from /tmp",
            "match": True,
            "events": [
                {"event": "exec", "path": "/tmp/runc", "argv": ["runc", "init"]},
                {
                    "event": "exec",
                    "path": "memfd:runc_cloned:/proc/self/exe",
                    "argv": ["runc", "init"],
                    "file_bits": 0x38,
                },
            ],
        },
        {
            "name": "a runc inside a container",
            "match": True,
            "events": [
                {"event": "exec", "path": "/usr/sbin/runc", "argv": ["runc", "init"], "container": True},
                {"event": "exec", "path": "memfd:x", "argv": ["runc", "init"], "file_bits": 0x38, "container": True},
            ],
        },
        {
            "name": "a service runs itself again after its package was upgraded",
            "match": False,
            "events": [
                {"event": "exec", "path": "/usr/bin/daemon", "argv": ["daemon"], "ino": 7, "dev": 1},
                {"event": "exec", "path": "/usr/bin/daemon", "argv": ["daemon"], "ino": 7, "dev": 1, "file_bits": 8},
            ],
        },
        {
            "name": "systemd's executor after an upgrade",
            "match": False,
            "events": [
                {"event": "exec", "path": "/usr/lib/systemd/systemd", "pid": 1},
                {"event": "exec", "path": "/usr/lib/systemd/systemd-executor", "ppid": 1, "file_bits": 8},
            ],
        },
        {
            "name": "a program on a tmpfs that is not /dev/shm",
            "match": False,
            "events": [{"event": "exec", "path": "/run/wrappers/x", "file_bits": 0x20}],
        },
        {"name": "an ordinary program", "match": False, "events": [{"event": "exec", "path": "/usr/bin/ls"}]},
    )
