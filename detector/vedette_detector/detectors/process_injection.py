"""Changing another process: /proc/PID/mem, ptrace and process_vm_writev; and ptrace used against debuggers.

What debuggers do to programs that they started themselves is ordinary. A debugger counts as one when its file lies
where packages install and is unchanged, not by its name alone.
"""

# ruff: noqa: S108 - the paths are what attackers use; nothing is opened here
from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, ClassVar

from vedette_detector.detectors.detector import Detector
from vedette_detector.detectors.processes import DEBUGGERS, ancestors, basename, by_ns_pid, in_container, is_installed
from vedette_detector.engine.context import EngineContext, process_details
from vedette_detector.engine.detection import Detection
from vedette_detector.engine.event import Event
from vedette_detector.engine.history import NodeHistory, Process
from vedette_detector.engine.selector import AnyLiteral, Mask, Selector
from vedette_detector.text import safe_text

# include/uapi/linux/ptrace.h, arch/x86/include/uapi/asm/ptrace-abi.h
_TRACEME, _ATTACH, _SEIZE = 0, 16, 0x4206
_WRITES: dict[int, str] = {
    4: "PTRACE_POKETEXT",
    5: "PTRACE_POKEDATA",
    6: "PTRACE_POKEUSR",
    13: "PTRACE_SETREGS",
    15: "PTRACE_SETFPREGS",
    0x4205: "PTRACE_SETREGSET",
}
_ESRCH = -3

_TRIAGE = (
    "See what the acting process is and who started it (lineage), and whether the target holds secrets or rights that "
    "the acting process has not. Save the target's memory map before either ends. A debugger attached by a person, a "
    "profiler or a checkpointing tool is the usual ordinary cause."
)


def _is_debugger(process: Process, history: NodeHistory) -> bool:
    name = basename(process.path)
    known = name in DEBUGGERS or name.rstrip(b"0123456789.-") in DEBUGGERS
    return known and is_installed(process, history)


def _launched(tracer: Process, target: Process | None, history: NodeHistory) -> bool:
    """Whether the tracer, or a helper between them, started the target itself."""
    if target is None:
        return False
    return any(p.pid == tracer.pid and p.start == tracer.start for p in ancestors(target, history, 2))


def _target(event: Event, history: NodeHistory) -> Process | None:
    if event.target_pid == 0:
        return None
    return history.process(event.target_pid, event.target_start or None, event.time)


def _target_context(target: Process | None, history: NodeHistory) -> dict[str, Any]:
    return {"targetProcess": process_details(target, history)} if target is not None else {}


def _words(target: Process | None, number: int) -> str:
    return f"{target.name} (process {target.pid})" if target is not None else f"process {number} of its namespace"


def _same_program(a: Process, b: Process | None) -> bool:
    return b is not None and a.ino != 0 and (a.dev, a.ino) == (b.dev, b.ino)


class ProcMemoryWrite(Detector):
    """/proc/PID/mem of another process opened for writing; attempts count."""

    id = "process-injection-proc"
    title = "A process opened another process's memory for writing"
    description = "/proc/PID/mem or /proc/PID/task/TID/mem of another process opened for writing."
    finding_types = ("DefenseEvasion:Runtime/ProcessInjection.Proc",)
    severity = 8.0
    selectors = (
        Selector(
            "open", (Mask("oflags", "any_bits", 3),), (AnyLiteral(("path",), frozenset({b"/mem\0", b"\0mem\0"})),)
        ),
        Selector("io_uring", (Mask("op_flags", "any_bits", 3),), (AnyLiteral(("path",), frozenset({b"/mem\0"})),)),
    )
    triage = _TRIAGE
    falsepositives = ("gdb 12 and later write breakpoints by /proc/PID/mem when a person attaches it.", "CRIU.")
    tags = ("attack.defense_evasion", "attack.privilege_escalation", "attack.t1055.009")

    _PATH = re.compile(rb"(?:/.*)?/proc/(\d+)(?:/task/(\d+))?/mem\Z")

    def confirm(self, event: Event, history: NodeHistory, context: EngineContext) -> Iterable[Detection]:
        """Find out whose memory it is; a process's own is ordinary."""
        path = event.full_path()
        found = self._PATH.match(path)
        if found is None:
            return
        flags = event.op_flags if event.type == "io_uring" else event.oflags
        number = int(found.group(1))
        process = event.process
        if number in (process.ns_pid, event.tid if process.ns_pid == process.pid else -1):
            return
        if process.ns_pid == 0 and number == event.pid:
            return
        target = by_ns_pid(history, process, number, event.time)
        if target is not None and (target.pid, target.start) == (event.pid, event.start):
            return
        debugger = _is_debugger(process, history)
        if debugger and _launched(process, target, history):
            return
        yield context.detection(
            event,
            severity=3.0 if debugger and not in_container(event, history) else None,
            description=f"{process.name} opened the memory of {_words(target, number)} for writing: {safe_text(path)}.",
            key=(process.name, target.name if target is not None else ""),
            context=_target_context(target, history) | {"flags": ["O_RDWR" if flags & 2 else "O_WRONLY"]},
            notes=["An installed debugger did it: see who runs it."] if debugger else [],
        )

    tests: ClassVar[tuple[dict[str, Any], ...]] = (
        {
            "name": "another process's memory",
            "match": True,
            "events": [
                {"event": "exec", "path": "/usr/bin/victim", "pid": 2000, "ns_pid": 2000, "argv": ["victim"]},
                {"event": "exec", "path": "/tmp/x", "argv": ["x"], "ns_pid": 1000},
                {"event": "open", "path": "/proc/2000/mem", "oflags": 2, "file_bits": 1 << 13},
            ],
        },
        {
            "name": "a thread's memory, in a container, refused",
            "match": True,
            "events": [
                {"event": "exec", "path": "/usr/bin/x", "argv": ["x"], "ns_pid": 7, "container": True},
                {"event": "open", "path": "/proc/9/task/9/mem", "oflags": 1, "result": -13, "container": True},
            ],
        },
        {
            "name": "relative to a directory, failed",
            "match": True,
            "events": [{"event": "open", "path": "mem", "dir": "/proc/2000", "oflags": 1, "result": -13}],
        },
        {
            "name": "by io_uring",
            "match": True,
            "events": [
                {"event": "exec", "path": "/usr/bin/x", "argv": ["x"], "ns_pid": 7, "container": True},
                {"event": "io_uring", "opcode": 18, "op_flags": 1, "path": "/proc/9/mem", "container": True},
            ],
        },
        {
            "name": "its own memory",
            "match": False,
            "events": [
                {"event": "exec", "path": "/usr/bin/x", "argv": ["x"], "ns_pid": 7, "container": True},
                {"event": "open", "path": "/proc/7/mem", "oflags": 2, "container": True},
            ],
        },
        {
            "name": "its own memory by /proc/self, failed",
            "match": False,
            "events": [{"event": "open", "path": "/proc/self/mem", "oflags": 2, "result": -13}],
        },
        {
            "name": "only read",
            "match": False,
            "events": [{"event": "open", "path": "/proc/2000/mem", "oflags": 0}],
        },
        {
            "name": "an installed debugger and the program that it started",
            "match": False,
            "events": [
                {"event": "exec", "path": "/usr/bin/gdb", "argv": ["gdb"], "ns_pid": 1000},
                {"event": "fork", "child_pid": 2000, "child_ns_pid": 2000},
                {"event": "exec", "path": "/home/dev/a.out", "pid": 2000, "ns_pid": 2000, "ppid": 1000},
                {"event": "open", "path": "/proc/2000/mem", "oflags": 2},
            ],
        },
        {
            "name": "a debugger attached to a program that it did not start",
            "match": True,
            "events": [
                {"event": "exec", "path": "/usr/sbin/sshd", "pid": 2000, "ns_pid": 2000},
                {"event": "exec", "path": "/usr/bin/gdb", "argv": ["gdb", "-p", "2000"], "ns_pid": 1000},
                {"event": "open", "path": "/proc/2000/mem", "oflags": 2},
            ],
        },
        {
            "name": "something called gdb from /tmp",
            "match": True,
            "events": [
                {"event": "exec", "path": "/tmp/gdb", "argv": ["gdb"], "ns_pid": 1000},
                {"event": "fork", "child_pid": 2000, "child_ns_pid": 2000},
                {"event": "exec", "path": "/bin/ls", "pid": 2000, "ns_pid": 2000, "ppid": 1000},
                {"event": "open", "path": "/proc/2000/mem", "oflags": 2},
            ],
        },
        {
            "name": "a file named mem elsewhere",
            "match": False,
            "events": [{"event": "open", "path": "/dev/mem", "oflags": 2}],
        },
    )


class PtraceInjection(Detector):
    """Memory or registers of another process changed by ptrace."""

    id = "process-injection-ptrace"
    title = "A process changed another process by ptrace"
    description = "PTRACE_POKETEXT, POKEDATA, POKEUSR, SETREGS, SETFPREGS or SETREGSET on another process."
    finding_types = ("DefenseEvasion:Runtime/ProcessInjection.Ptrace",)
    severity = 5.0
    selectors = (Selector("ptrace", (Mask("request", "in_", tuple(_WRITES)),)),)
    triage = _TRIAGE
    falsepositives = (
        "A debugger attached by a person (low severity on the host).",
        "Sandboxes that run their guest under ptrace (proot, User-mode Linux, gVisor's ptrace platform); wine; CRIU.",
    )
    tags = ("attack.defense_evasion", "attack.privilege_escalation", "attack.t1055.008")

    def confirm(self, event: Event, history: NodeHistory, context: EngineContext) -> Iterable[Detection]:
        """Let debuggers work on what they started."""
        if event.result == _ESRCH and event.target_pid == 0:
            return
        process = event.process
        target = _target(event, history)
        debugger = _is_debugger(process, history)
        if debugger and _launched(process, target, history):
            return
        attached = history.events(
            "ptrace",
            pid=event.pid,
            start=event.start,
            until=event.time,
            mask=lambda rows: (
                ((rows["request"] == _ATTACH) | (rows["request"] == _SEIZE)) & (rows["target_pid"] == event.target_pid)
            ),
            limit=1,
        )
        yield context.detection(
            event,
            severity=3.0 if debugger and not in_container(event, history) else None,
            description=f"{process.name} changed {_words(target, event.target_ns_pid)} with {_WRITES[event.request]}.",
            key=(process.name, target.name if target is not None else ""),
            context=_target_context(target, history) | {"flags": [_WRITES[event.request]]},
            notes=["An installed debugger did it: see who runs it."] if debugger else [],
            related=attached,
        )

    tests: ClassVar[tuple[dict[str, Any], ...]] = (
        *(
            {
                "name": f"attach, then {name}",
                "match": True,
                "events": [
                    {"event": "exec", "path": "/usr/sbin/nginx", "pid": 2000, "argv": ["nginx"]},
                    {"event": "ptrace", "request": _ATTACH, "target_pid": 2000},
                    {"event": "ptrace", "request": request, "target_pid": 2000},
                ],
            }
            for request, name in _WRITES.items()
        ),
        {
            "name": "a child that it started: process hollowing",
            "match": True,
            "events": [
                {"event": "exec", "path": "/home/u/loader"},
                {"event": "fork", "child_pid": 2000},
                {"event": "ptrace", "request": _TRACEME, "pid": 2000},
                {"event": "exec", "path": "/bin/ls", "pid": 2000, "ppid": 1000},
                {"event": "ptrace", "request": 4, "target_pid": 2000},
            ],
        },
        {
            "name": "gdb and its own child",
            "match": False,
            "events": [
                {"event": "exec", "path": "/usr/bin/gdb"},
                {"event": "fork", "child_pid": 2000},
                {"event": "exec", "path": "/home/dev/a.out", "pid": 2000, "ppid": 1000},
                {"event": "ptrace", "request": 4, "target_pid": 2000},
            ],
        },
        {
            "name": "attaching alone changes nothing",
            "match": False,
            "events": [{"event": "ptrace", "request": _ATTACH, "target_pid": 2000}],
        },
    )


class VirtualMemoryWrite(Detector):
    """process_vm_writev on another process; attempts count."""

    id = "process-injection-vm-write"
    title = "A process wrote into another process's memory"
    description = "process_vm_writev(2) on another process, also when the kernel refused it."
    finding_types = ("DefenseEvasion:Runtime/ProcessInjection.VirtualMemoryWrite",)
    severity = 8.0
    selectors = (Selector("vm_write"),)
    triage = _TRIAGE
    falsepositives = (
        "Parallel programs whose ranks exchange data so (Open MPI, MPICH, UCX): low severity.",
        "wine, gVisor, CRIU.",
    )
    tags = ("attack.defense_evasion", "attack.privilege_escalation", "attack.t1055")

    def confirm(self, event: Event, history: NodeHistory, context: EngineContext) -> Iterable[Detection]:
        """Let debuggers work on what they started; the same program on both sides is less grave."""
        if event.target_pid == event.pid:
            return
        process = event.process
        target = _target(event, history)
        debugger = _is_debugger(process, history)
        if debugger and _launched(process, target, history):
            return
        same = _same_program(process, target)
        notes = []
        if same:
            notes.append("Writer and target run the same program, as the ranks of a parallel program do.")
        if debugger:
            notes.append("An installed debugger did it: see who runs it.")
        yield context.detection(
            event,
            severity=3.0 if same or (debugger and not in_container(event, history)) else None,
            description=f"{process.name} wrote into the memory of {_words(target, event.target_ns_pid)}.",
            key=(process.name, target.name if target is not None else ""),
            context=_target_context(target, history),
            notes=notes,
        )

    tests: ClassVar[tuple[dict[str, Any], ...]] = (
        {
            "name": "another process",
            "match": True,
            "events": [
                {"event": "exec", "path": "/usr/sbin/sshd", "pid": 2000, "ino": 5},
                {"event": "exec", "path": "/tmp/x", "ino": 6},
                {"event": "vm_write", "target_pid": 2000, "target_ns_pid": 2000, "result": 8},
            ],
        },
        {
            "name": "an attempt that failed",
            "match": True,
            "events": [{"event": "vm_write", "target_pid": 2000, "result": -14, "container": True}],
        },
        {
            "name": "a debugger and its own child",
            "match": False,
            "events": [
                {"event": "exec", "path": "/usr/bin/lldb-server"},
                {"event": "fork", "child_pid": 2000},
                {"event": "exec", "path": "/home/dev/a.out", "pid": 2000, "ppid": 1000},
                {"event": "vm_write", "target_pid": 2000, "result": 1},
            ],
        },
        {"name": "itself", "match": False, "events": [{"event": "vm_write", "target_pid": 1000, "result": 8}]},
    )


class PtraceAntiDebugging(Detector):
    """PTRACE_TRACEME by a process that no debugger started: so that nobody else can trace it."""

    id = "ptrace-anti-debugging"
    title = "A process keeps debuggers away by tracing itself"
    description = "PTRACE_TRACEME by a running program on itself, or by a child of a program that is no debugger."
    finding_types = ("DefenseEvasion:Runtime/PtraceAntiDebugging",)
    severity = 2.0
    selectors = (Selector("ptrace", (Mask("request", "eq", _TRACEME),)),)
    triage = (
        "Packed malware and some commercial software do this. See where the program came from and what else it did; "
        "by itself it is a weak sign."
    )
    falsepositives = (
        "Licence and copy protection.",
        "Home-made tracers and sandboxes that are not among the debuggers Vedette knows.",
    )
    tags = ("attack.defense_evasion", "attack.t1622")

    def confirm(self, event: Event, history: NodeHistory, context: EngineContext) -> Iterable[Detection]:
        """A debugger's child does the same just before it runs the program: then the debugger is the parent."""
        process = event.process
        parents = list(ancestors(process, history, 2))
        if any(_is_debugger(candidate, history) for candidate in (process, *parents) if process.inherited):
            return
        if parents and _is_debugger(parents[0], history):
            return
        yield context.detection(
            event,
            description=f"{process.name} asked to be traced by its parent.",
            key=(process.name,),
            context={"flags": ["PTRACE_TRACEME"]},
        )

    tests: ClassVar[tuple[dict[str, Any], ...]] = (
        {
            "name": "a program on itself",
            "match": True,
            "events": [
                {"event": "exec", "path": "/usr/bin/packed", "ppid": 900},
                {"event": "ptrace", "request": _TRACEME},
            ],
        },
        {
            "name": "a forked child that is traced by its own program",
            "match": True,
            "events": [
                {"event": "exec", "path": "/opt/x"},
                {"event": "fork", "child_pid": 2000},
                {"event": "ptrace", "request": _TRACEME, "pid": 2000},
            ],
        },
        {
            "name": "gdb's child before its exec",
            "match": False,
            "events": [
                {"event": "exec", "path": "/usr/bin/gdb"},
                {"event": "fork", "child_pid": 2000},
                {"event": "ptrace", "request": _TRACEME, "pid": 2000},
            ],
        },
        {
            "name": "something called gdb from /tmp",
            "match": True,
            "events": [
                {"event": "exec", "path": "/tmp/gdb"},
                {"event": "fork", "child_pid": 2000},
                {"event": "ptrace", "request": _TRACEME, "pid": 2000},
            ],
        },
        {
            "name": "attaching is not asking to be traced",
            "match": False,
            "events": [{"event": "ptrace", "request": _ATTACH, "target_pid": 2000}],
        },
    )
