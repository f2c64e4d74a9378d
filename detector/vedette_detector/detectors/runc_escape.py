"""PrivilegeEscalation:Runtime/RuncContainerEscape: the host's runc written from a container, or a leaked directory.

CVE-2019-5736: a process in the container gets hold of the runc binary that enters the container (by /proc/PID/exe)
and reopens it for writing. CVE-2024-21626: a container's program starts in a directory of the host that runc left
open, so its working directory lies outside its root.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, ClassVar

from vedette_detector.detectors.detector import Detector
from vedette_detector.detectors.processes import CONTAINER_RUNTIMES, basename, in_container, is_runtime_setup
from vedette_detector.engine.context import EngineContext
from vedette_detector.engine.detection import Detection
from vedette_detector.engine.event import Event
from vedette_detector.engine.history import NodeHistory
from vedette_detector.engine.selector import AnyLiteral, Mask, Selector
from vedette_detector.text import safe_text
from vedette_events.schema import ExecBits, FileBits

_ETXTBSY = -26
_TYPE = "PrivilegeEscalation:Runtime/RuncContainerEscape"
_TRIAGE = (
    "Treat the node as in danger: compare the runc binary's SHA-256 with the package's, and look for processes on the "
    "host that were started after this time and that no service explains. Upgrade runc (1.1.12 or later)."
)
_RUNTIME_NAMES = frozenset(CONTAINER_RUNTIMES)
_DIRECTORIES = (b"/bin/", b"/sbin/", b"/runc-dir/", b"/runc/", b"/libexec/", b"/lib/")
_EXE = re.compile(rb"(?:/.*)?/proc/(?:\d+|self|thread-self)(?:/task/\d+)?/exe\Z")
_FD = re.compile(rb"(?:/.*)?/proc/(?:\d+|self|thread-self)(?:/task/\d+)?/fd/\d+\Z|/dev/fd/\d+\Z")


def _is_runtime_path(path: bytes) -> bool:
    return basename(path) in _RUNTIME_NAMES


class RuncBinaryWritten(Detector):
    """A container runtime's binary was opened for writing, or replaced, from a container; attempts count."""

    id = "runc-binary-written"
    title = "A container tried to change the container runtime's binary"
    description = (
        "From a container: a file called runc (crun, youki, ...) opened for writing or replaced, /proc/PID/exe opened "
        "for writing, or a running program reopened for writing by its descriptor."
    )
    finding_types = (_TYPE,)
    severity = 8.0
    selectors = (
        Selector(
            "open",
            (Mask("oflags", "any_bits", 3),),
            (
                AnyLiteral(
                    ("path",),
                    frozenset({b"/exe\0", *(b"/" + name + b"\0" for name in _RUNTIME_NAMES)})
                    | frozenset(b"\0" + name + b"\0" for name in _RUNTIME_NAMES),
                ),
            ),
        ),
        Selector("open", (Mask("oflags", "any_bits", 3), Mask("result", "eq", _ETXTBSY))),
        Selector(
            "rename",
            (),
            (
                AnyLiteral(
                    ("new_path",),
                    frozenset(b"/" + name + b"\0" for name in _RUNTIME_NAMES)
                    | frozenset(b"\0" + name + b"\0" for name in _RUNTIME_NAMES),
                ),
            ),
        ),
    )
    triage = _TRIAGE
    falsepositives = (
        "An image that installs runc for itself (docker in docker): the package manager writes its own /usr/bin/runc.",
        "A node agent that upgrades the host's runtime from a pod.",
    )
    tags = ("attack.privilege_escalation", "attack.t1611")

    def confirm(self, event: Event, history: NodeHistory, context: EngineContext) -> Iterable[Detection]:
        """Only containers; a container's own new runc file in its own upper layer is no escape."""
        if not in_container(event, history):
            return
        tail = "new_path" if event.type == "rename" else "path"
        path = event.full_path(tail)
        process = event.process
        if event.type == "open":
            if _EXE.match(path):
                how = "opened a running program for writing by /proc"
            elif _FD.match(path):
                if event.result != _ETXTBSY:
                    return
                how = "reopened a running program for writing by its descriptor"
            elif _is_runtime_path(path):
                if event.result >= 0 and event.file_bits & FileBits.OVERLAY:
                    return  # the container's own copy
                how = "opened the runtime's binary for writing"
            else:
                return
        else:
            if event.result >= 0 and path.startswith((b"/usr/", b"/bin/", b"/sbin/")):
                return  # installs its own runc; a mounted host directory lies elsewhere
            how = "renamed a file over the runtime's binary"
        yield context.detection(
            event,
            description=f"{process.name} in a container {how} ({safe_text(path)}).",
            key=(process.name, safe_text(path)),
            context={"runcBinaryPath": safe_text(path)},
        )

    tests: ClassVar[tuple[dict[str, Any], ...]] = (
        {
            "name": "a mounted runc opened for writing",
            "match": True,
            "events": [
                {"event": "exec", "path": "/x", "container": True},
                {"event": "open", "path": "/host/usr/sbin/runc", "oflags": 1, "container": True},
            ],
        },
        {
            "name": "/proc/PID/exe for writing",
            "match": True,
            "events": [
                {"event": "exec", "path": "/x", "container": True},
                {"event": "open", "path": "/proc/33/exe", "oflags": 1, "result": -26, "container": True},
            ],
        },
        {
            "name": "a descriptor of a running program, reopened for writing",
            "match": True,
            "events": [
                {"event": "exec", "path": "/x", "container": True},
                {"event": "open", "path": "/proc/self/fd/7", "oflags": 1, "result": -26, "container": True},
            ],
        },
        {
            "name": "replaced by rename",
            "match": True,
            "events": [
                {"event": "exec", "path": "/x", "container": True},
                {"event": "rename", "path": "/host/bin/n", "new_path": "/host/bin/runc", "container": True},
            ],
        },
        {
            "name": "standard output by /proc/self/fd",
            "match": False,
            "events": [
                {"event": "exec", "path": "/x", "container": True},
                {"event": "open", "path": "/proc/self/fd/1", "oflags": 1, "result": -6, "container": True},
            ],
        },
        {
            "name": "docker in docker installs its own runc",
            "match": False,
            "events": [
                {"event": "exec", "path": "/usr/bin/dpkg", "container": True},
                {"event": "open", "path": "/usr/sbin/runc", "oflags": 0o101, "file_bits": 7, "container": True},
            ],
        },
        {
            "name": "the host upgrades runc",
            "match": False,
            "events": [
                {"event": "exec", "path": "/usr/bin/dpkg"},
                {"event": "rename", "path": "/usr/sbin/runc.dpkg-new", "new_path": "/usr/sbin/runc"},
            ],
        },
        {
            "name": "another file",
            "match": False,
            "events": [
                {"event": "exec", "path": "/x", "container": True},
                {"event": "open", "path": "/etc/runc.conf", "oflags": 1, "container": True},
            ],
        },
    )


class LeakedDirectory(Detector):
    """A container's program started with a working directory outside its root."""

    id = "runc-leaked-directory"
    title = "A container's program runs in a directory outside the container"
    description = "exec with a working directory that is not below the process's root, or named through /proc/self/fd."
    finding_types = (_TYPE,)
    severity = 8.0
    selectors = (
        Selector("exec", (Mask("exec_bits", "any_bits", ExecBits.CWD_UNREACHABLE),)),
        Selector("exec", (), (AnyLiteral(("cwd",), frozenset({b"\0/proc/self/fd/", b"\0/proc/thread-self/fd/"})),)),
    )
    triage = _TRIAGE
    falsepositives = (
        "A program that calls chroot(2) without chdir(2): it has the same way out of its new root, on purpose or not.",
    )
    tags = ("attack.privilege_escalation", "attack.t1611")

    def confirm(self, event: Event, history: NodeHistory, context: EngineContext) -> Iterable[Detection]:
        """The runtime's own setup runs outside the root by nature."""
        if event.container is None or is_runtime_setup(event.process, history):
            return
        if event.path in (b"/", b"") or _is_runtime_path(event.path) or event.file_bits & FileBits.MEMFD:
            # runc's own re-exec (from a detached mount or a memfd), seen while it enters the container: its parent
            # is on the host then.
            parent = history.parent(event.process)
            if parent is not None and parent.exec is not None and history.container_of(parent.exec) is None:
                return
        yield context.detection(
            event,
            description=f"{event.process.name} runs in {safe_text(event.cwd) or 'a directory'} outside its root.",
            key=(event.process.name,),
            context={"runcBinaryPath": "", "flags": ["CWD_UNREACHABLE"]},
        )

    tests: ClassVar[tuple[dict[str, Any], ...]] = (
        {
            "name": "a working directory outside the root",
            "match": True,
            "events": [{"event": "exec", "path": "/bin/sh", "exec_bits": 4, "cwd": "/", "container": True}],
        },
        {
            "name": "a working directory through /proc/self/fd",
            "match": True,
            "events": [{"event": "exec", "path": "/bin/sh", "cwd": "/proc/self/fd/8/x", "container": True}],
        },
        {
            "name": "an ordinary program",
            "match": False,
            "events": [{"event": "exec", "path": "/bin/sh", "cwd": "/srv", "container": True}],
        },
        {
            "name": "on the host",
            "match": False,
            "events": [{"event": "exec", "path": "/bin/sh", "exec_bits": 4, "cwd": "/"}],
        },
        {
            "name": "runc re-executes itself while it enters the container",
            "match": False,
            "events": [
                {"event": "exec", "path": "/usr/sbin/runc", "argv": ["runc", "init"], "pid": 900, "mnt_ns": 1},
                {
                    "event": "exec",
                    "path": "/",
                    "argv": ["runc", "init"],
                    "exec_bits": 4,
                    "ppid": 900,
                    "container": True,
                    "pid_ns": 0xEFFFFFFC,
                    "mnt_ns": 1,
                },
            ],
        },
    )
