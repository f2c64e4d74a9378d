"""Execution:Runtime/ReverseShell: a command interpreter whose input and output lie with somebody it called.

What decides is where a shell's standard descriptors lead, never its name or how they got there:

- *Socket*: descriptors 0 and 1 are one socket that this host opened. Also commands run with their output on a socket
  from which the same shell reads (``while read l <&5; do $l >&5 2>&5; done``).
- *Ring*: the shell's output leads, through pipes and FIFOs, to a process that has opened a connection, and from that
  process (or another one connected to the same address) back to the shell's input.
- *Relay*: the shell's pipes, socket pair or terminal were made by a process that has opened a connection and copies
  between the two (socat, python's pty, a program of one's own).

Which of shell and connection comes first does not matter: what is missing is watched for (`WatchedValues`).

A shell on a connection that was *accepted* (inetd, a bind shell, sshd) is not reported here.
"""

# ruff: noqa: S108 - the paths are what attackers use; nothing is opened here
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np

from vedette_detector.detectors.connections import IORING_OP_CONNECT, Connection, accepted, of_socket, outbound
from vedette_detector.detectors.detector import Detector
from vedette_detector.detectors.processes import (
    SHELLS,
    ancestors,
    basename,
    chain,
    is_installed,
    is_interpreter_name,
    is_shell_name,
)
from vedette_detector.detectors.watch import WatchedValues
from vedette_detector.engine.context import EngineContext, action_of
from vedette_detector.engine.detection import Detection
from vedette_detector.engine.event import Event
from vedette_detector.engine.history import NodeHistory, Process
from vedette_detector.engine.segments import Array, Segment
from vedette_detector.engine.selector import AnyLiteral, Mask, Selector
from vedette_detector.engine.text import split_args
from vedette_detector.text import safe_text
from vedette_events import _native
from vedette_events.schema import FileBits, StdioKind

_PIPES = (StdioKind.PIPE, StdioKind.FIFO)
_RELAYED = (StdioKind.TTY, StdioKind.PIPE, StdioKind.FIFO, StdioKind.UNIX)
_FROM_ELSEWHERE = FileBits.UPPER | FileBits.UNLINKED | FileBits.MEMFD | FileBits.TMPFS
_SECOND = 1_000_000_000

_FRESH_NS = 60 * _SECOND
"""A relay that lives longer before it starts a shell is a service; then only a new connection just before counts."""
_JUST_BEFORE_NS = 2 * _SECOND
_LATER_NS = 10 * _SECOND
"""How long after the shell a relay's connection still counts."""
_RING_NS = 600 * _SECOND
_MOST_PIPES = 32
"""So many pipes are followed at each step."""
_MAX_PENDING = 512
_MAX_REPORTED = 4096

_GIVE_TERMINALS = frozenset(
    {b"sshd", b"sshd-session", b"sshd-auth", b"login", b"agetty", b"getty", b"su", b"sudo", b"doas", b"tmux", b"screen"}
    | {b"script", b"runc", b"crun", b"conmon", b"containerd-shim-runc-v2", b"systemd", b"systemd-run", b"dockerd"}
    | {b"mosh-server", b"gdm-session-worker", b"gnome-terminal-server", b"xterm", b"konsole", b"kubelet", b"crond"}
)
_AWK_NETWORK = (b"/inet/tcp/", b"/inet/udp/", b"/inet4/tcp/", b"/inet6/tcp/", b"/inet4/udp/", b"/inet6/udp/")


@dataclass(frozen=True)
class _Verdict:
    """Why a process is a reverse shell.

    Attributes:
        shell: the process to name.
        how: one clause.
        connection: the network connection behind it.
        completing: the last of the events that make it one.
        severity: None for the type's usual severity.
        related: further events.
    """

    shell: Process
    how: str
    connection: Connection
    completing: Event
    severity: float | None = None
    related: tuple[Event, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class _Pending:
    """A shell whose other half has not been seen."""

    event: Event
    expires: int
    judged: int
    """`NodeHistory.batches` when it was last judged: history says the same until the next batch."""
    pids: set[int] = field(default_factory=set)
    inodes: set[int] = field(default_factory=set)


def _is_shell(process: Process) -> bool:
    return is_shell_name(basename(process.path)) or _busybox_shell(process)


def _busybox_shell(process: Process) -> bool:
    return bool(process.argv) and basename(process.path) == b"busybox" and is_shell_name(basename(process.argv[0]))


def _takes_commands(process: Process, history: NodeHistory) -> bool:
    """Whether a program is one that runs commands, or one of which nobody can say what it is (a renamed shell)."""
    name = basename(process.path)
    if name == b"busybox" and process.argv and basename(process.argv[0]).lstrip(b"-") not in SHELLS:
        return len(process.argv) > 1 and basename(process.argv[1]) in SHELLS
    if is_shell_name(name) or is_interpreter_name(name):
        return True
    return not is_installed(process, history)


def _operands(path: bytes, argv: Sequence[bytes]) -> list[bytes]:
    """A shell's arguments that are no options: scripts and commands."""
    arguments = list(argv[1:])
    if basename(path) == b"busybox" and arguments and basename(arguments[0]) in SHELLS:
        arguments = arguments[1:]
    out = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in (b"-o", b"+o", b"-O", b"+O", b"--rcfile", b"--init-file"):
            skip = True
        elif argument == b"-s":
            return []
        elif argument.startswith((b"-", b"+")) and len(argument) > 1:
            if not argument.startswith(b"--") and b"c" in argument:
                out.append(argument)
        elif argument != b"-":
            out.append(argument)
    return out


def _is_interactive(process: Process) -> bool:
    return any(a.startswith(b"-") and not a.startswith(b"--") and b"i" in a for a in process.argv[1:3]) or (
        b"--interactive" in process.argv[1:3]
    )


def _as_awk_starts(stdin_kind: int, stdout_kind: int, argv: Sequence[bytes]) -> bool:
    """Whether a shell is started as gawk starts it: a command, two pipes."""
    on_pipes = stdin_kind in (StdioKind.PIPE, StdioKind.UNIX) and stdout_kind == stdin_kind
    return on_pipes and len(argv) >= 3 and argv[1] == b"-c"


def _may_be_network_awk(history: NodeHistory, pid: int, at: int) -> bool:
    """Whether a process's arguments name one of gawk's network files, or are not known.

    Asked for every command that somebody runs with two pipes, so the process itself is not made.
    """
    arguments = history.arguments(pid, at)
    return arguments is None or b"/inet" in arguments


def _output(process: Process) -> tuple[int, int]:
    return process.stdout_ino, process.stdout_kind


def _same(a: Process, b: Process) -> bool:
    return (a.pid, a.start) == (b.pid, b.start)


_SHELL: dict[str, Any] = {"event": "exec", "path": "/bin/bash", "argv": ["bash"]}
_INET: dict[str, Any] = {
    "stdin_kind": 5,
    "stdout_kind": 5,
    "stderr_kind": 5,
    "stdin_ino": 77,
    "stdout_ino": 77,
    "stderr_ino": 77,
    "sock_ino": 77,
    "family": 2,
    "raddr": "203.0.113.66",
    "rport": 4444,
    "laddr": "198.51.100.1",
    "lport": 51000,
}


def _connect(**values: Any) -> dict[str, Any]:
    """A connection for the tests."""
    where = {"family": 2, "raddr": "203.0.113.66", "rport": 4444, "sock_type": 1, "sock_ino": 77}
    return {"event": "connect", **where, **values}


def _stdio(stdin: int, stdin_ino: int, stdout: int, stdout_ino: int) -> dict[str, Any]:
    """Descriptors for the tests; standard error goes where standard output goes."""
    return {
        "stdin_kind": stdin,
        "stdin_ino": stdin_ino,
        "stdout_kind": stdout,
        "stdout_ino": stdout_ino,
        "stderr_kind": stdout,
        "stderr_ino": stdout_ino,
    }


class ReverseShell(Detector):
    """A shell whose input and output lie with an address that this host called."""

    id = "reverse-shell"
    title = "A shell takes its commands from an outbound connection"
    description = (
        "A command interpreter on a socket that this host opened, in a ring of pipes with a network client, or behind "
        "a process that copies between it and a connection."
    )
    finding_types = ("Execution:Runtime/ReverseShell",)
    severity = 8.0
    triage = (
        "Somebody very likely has a command line in this container or on this host. `vedette events --process PID` "
        "shows the commands run since; the lineage shows the service that was broken into. Cut the container's network "
        "before killing anything, and keep the process for its memory if you can."
    )
    falsepositives = (
        "Remote administration that calls out by design and hands out shells: AWS SSM Session Manager, tmate, "
        "Teleport's and Tailscale's reverse tunnels. Suppress by executable path.",
        "A script that ships a command's output to a log host by /dev/tcp and reads an answer from the same socket.",
    )
    tags = ("attack.execution", "attack.t1059.004", "attack.command_and_control", "attack.t1571")

    def __init__(self) -> None:
        shells = frozenset(b"/" + name + b"\0" for name in SHELLS)
        self._pids = WatchedValues("pid")
        self._stdin = WatchedValues("stdin_ino")
        self._stdout = WatchedValues("stdout_ino")
        self._fifos = WatchedValues("ino")
        self._pending: OrderedDict[tuple[str, int, int, int], _Pending] = OrderedDict()
        # By history, not by node name: a node that boots anew begins anew, and so does another engine in this
        # process. Worker processes get a new instance (Detector.__reduce__), so the weak references never travel.
        self._reported: WeakKeyDictionary[NodeHistory, OrderedDict[tuple[int, int], None]] = WeakKeyDictionary()
        kinds = Mask("stdin_kind", "in_", tuple(int(kind) for kind in _RELAYED))
        self.selectors = (
            Selector("exec", (Mask("stdin_kind", "eq", StdioKind.INET),)),
            Selector("exec", (Mask("stdout_kind", "eq", StdioKind.INET),)),
            Selector("exec", (kinds,), (AnyLiteral(("path",), shells),)),
            Selector("exec", (kinds, Mask("file_bits", "any_bits", _FROM_ELSEWHERE))),
            Selector("exec", (kinds,), (AnyLiteral(("path",), frozenset({b"\0/tmp/", b"\0/var/tmp/", b"/."})),)),
            Selector("exec", (self._stdin,)),
            Selector("exec", (self._stdout,)),
            Selector("open", (self._fifos, Mask("file_bits", "any_bits", FileBits.FIFO))),
            Selector("connect", (self._pids, Mask("family", "in_", (2, 10)))),
            Selector("io_uring", (self._pids, Mask("opcode", "eq", IORING_OP_CONNECT))),
        )

    def screen(self, event_type: str, segment: Segment, rows: Array, history: NodeHistory) -> Array:
        """Leave out shells that were given a command or a script, which most are.

        Kept is what `_judge` looks further into, and what `_again` may have waited for.
        """
        if event_type != "exec":
            return rows
        stdin, stdout, stderr = (segment.rows[f"{end}_kind"][rows] for end in ("stdin", "stdout", "stderr"))
        keep = (stdin == StdioKind.INET) | (stdout == StdioKind.INET) | (stderr == StdioKind.INET)
        for watched in (self._stdin, self._stdout):
            if len(watched):
                keep |= watched.evaluate(segment.rows[watched.field][rows])
        open_ = np.flatnonzero(~keep & _in(stdin, _RELAYED))
        paths, argvs = segment.tails["path"], segment.tails["argv"]
        raw = _native.shell_arguments(
            paths.data, paths.raw_offsets, argvs.data, argvs.raw_offsets, rows[open_].astype(np.uint32)
        )
        flags = np.frombuffer(raw, dtype=np.uint8)
        keep[open_] = (flags & _native.SHELL_GIVEN) == 0
        # What is left to ask: busybox, whose shell is an argument itself, and what may have been started by gawk.
        two_pipes = _in(stdin, (StdioKind.PIPE, StdioKind.UNIX)) & (stdin == stdout)
        as_awk = ((flags & _native.SHELL_DASH_C) != 0) & two_pipes[open_]
        for at in open_[~keep[open_] & (((flags & _native.SHELL_BUSYBOX) != 0) | as_awk)].tolist():
            row = int(rows[at])
            path, argv = segment.tail("path", row), split_args(segment.tail("argv", row))
            keep[at] = not _operands(path, argv) or (
                _as_awk_starts(int(stdin[at]), int(stdout[at]), argv)
                and _may_be_network_awk(history, int(segment.rows["ppid"][row]), int(segment.rows["time"][row]))
            )
        return np.asarray(rows[keep])

    # -- asked -----------------------------------------------------------------------------------------------------

    def confirm(self, event: Event, history: NodeHistory, context: EngineContext) -> Iterable[Detection]:
        """Judge a program's start, or what was missing to judge an earlier one."""
        self._expire(event)
        if event.type == "exec":
            yield from self._report(self._judge(event, history), event, context)
        yield from self._again(event, history, context)

    def _judge(self, event: Event, history: NodeHistory) -> _Verdict | None:
        on_socket = StdioKind.INET in (event.stdin_kind, event.stdout_kind, event.stderr_kind)
        if not on_socket:
            # Most shells are given a command or a script: those are done with here, before anything is looked up.
            if event.stdin_kind not in _RELAYED:
                return None
            if _operands(event.path, event.argv):
                return self._awk_loop(event, history)
        process = event.process
        if process.exec is None or process.exec.time != event.time:
            return None
        if on_socket:
            return self._on_socket(event, process, history)
        if not _takes_commands(process, history):
            return None
        return self._in_ring(event, process, history) or self._behind_relay(event, process, history)

    def _report(self, verdict: _Verdict | None, event: Event, context: EngineContext) -> Iterator[Detection]:
        if verdict is None:
            return
        shell = verdict.shell
        reported = self._reported.setdefault(event.history, OrderedDict())
        if (shell.pid, shell.start) in reported:
            return
        reported[(shell.pid, shell.start)] = None
        while len(reported) > _MAX_REPORTED:
            reported.popitem(last=False)
        self._forget(event.node, shell)
        connection = verdict.connection
        evidence = connection.evidence
        where = f"{connection.remote}:{connection.port}" if connection.remote else "an unknown address"
        notes = list(verdict.notes)
        if evidence is None:
            notes.append("The connection's beginning was not seen; its direction follows from the port numbers.")
        yield context.detection(
            verdict.completing,
            severity=verdict.severity,
            description=f"{shell.name} {verdict.how} {where}.",
            key=(safe_text(shell.path), connection.remote),
            context={"addressFamily": "IPv6" if ":" in connection.remote else "IPv4"},
            action=action_of(evidence) if evidence is not None and evidence.type == "connect" else None,
            notes=notes,
            related=[e for e in (*verdict.related, evidence) if e is not None and e is not verdict.completing],
            process=shell,
        )

    # -- a socket on the descriptors -------------------------------------------------------------------------------

    def _on_socket(self, event: Event, process: Process, history: NodeHistory) -> _Verdict | None:
        stdin, stdout, stderr = (
            kind == StdioKind.INET for kind in (event.stdin_kind, event.stdout_kind, event.stderr_kind)
        )
        both = stdin and (stdout or stderr)
        if both or (stdin and _is_shell(process) and not _operands(event.path, event.argv)):
            if not _takes_commands(process, history):
                return None
            # What a reported shell starts inherits its descriptors: the shell has been reported.
            for ancestor in ancestors(process, history, 8):
                if (
                    ancestor.stdin_kind == StdioKind.INET
                    and ancestor.stdin_ino == event.stdin_ino
                    and _takes_commands(ancestor, history)
                ):
                    return None
            connection = of_socket(history, event, chain(process, history))
            if connection.direction == "inbound" or (connection.direction == "unknown" and not _is_shell(process)):
                return None
            how = "has its input and output on" if both else "takes its commands from"
            return _Verdict(process, f"{how} a connection to", connection, event)
        if stdout and stderr and event.stdout_ino == event.stderr_ino:
            return self._command_loop(event, process, history)
        return None

    def _command_loop(self, event: Event, process: Process, history: NodeHistory) -> _Verdict | None:
        """A command with its output on a socket from which a shell reads."""
        ino = event.stdout_ino
        parents = ancestors(process, history, 4)
        shell = next((p for p in parents if not p.inherited and _takes_commands(p, history)), None)
        if shell is None:
            return None
        reads = history.events(
            "dup", until=event.time, mask=lambda rows: (rows["sock_ino"] == ino) & (rows["new_fd"] == 0), limit=1
        )
        reads += history.events(
            "exec",
            until=event.time,
            mask=lambda rows: (rows["stdin_ino"] == ino) & (rows["stdin_kind"] == StdioKind.INET),
            limit=1,
        )
        if not reads:
            return None
        connection = of_socket(history, event, chain(process, history))
        if connection.direction != "outbound":
            return None
        return _Verdict(shell, "runs what it reads from a connection to", connection, event, related=tuple(reads))

    # -- a ring of pipes -------------------------------------------------------------------------------------------

    def _in_ring(self, event: Event, process: Process, history: NodeHistory) -> _Verdict | None:
        if event.stdin_kind not in _PIPES:
            return None
        sinks = {
            ino
            for ino, kind in ((event.stdout_ino, event.stdout_kind), (event.stderr_ino, event.stderr_kind))
            if kind in _PIPES and ino
        }
        if not sinks:
            return None
        since = event.time - _RING_NS
        downstream, inodes_down = self._follow(history, sinks, since, forward=True)
        upstream, inodes_up = self._follow(history, {event.stdin_ino}, since, forward=False)
        own = {(process.pid, process.start)}
        downstream = {key: p for key, p in downstream.items() if key not in own}
        upstream = {key: p for key, p in upstream.items() if key not in own}
        for key in sorted(downstream.keys() & upstream.keys()):
            connection = self._network_of(downstream[key], history)
            if connection is not None:
                return self._ring_verdict(process, event, downstream[key], connection)
        sources = [(p, c) for p in upstream.values() if (c := self._network_of(p, history)) is not None]
        for sink in downstream.values():
            leaving = self._network_of(sink, history)
            for source, arriving in sources:
                if leaving is not None and leaving.remote == arriving.remote and not _same(source, sink):
                    return self._ring_verdict(process, event, source, arriving, leaving)
        if upstream or downstream or StdioKind.FIFO in (event.stdin_kind, event.stdout_kind):
            pids = {p.pid for p in (*upstream.values(), *downstream.values())}
            self._watch(event, pids, inodes_up | inodes_down, event.time + _RING_NS)
        return None

    @staticmethod
    def _ring_verdict(
        process: Process, event: Event, client: Process, connection: Connection, leaving: Connection | None = None
    ) -> _Verdict:
        other = leaving.evidence if leaving is not None else None
        events = [e for e in (connection.evidence, client.exec, other) if e is not None]
        completing = max((event, *events), key=lambda e: e.time)
        how = f"is joined by pipes to {client.name}, which has a connection to"
        return _Verdict(process, how, connection, completing, related=(event,))

    def _network_of(self, process: Process, history: NodeHistory) -> Connection | None:
        """The outbound connection of a process that is not a command interpreter waiting for it, if any."""
        opened = outbound(history, process)
        if opened:
            newest = opened[0]
            return Connection("outbound", newest.raddr_text, newest.rport, newest)
        began = process.exec
        if began is not None and StdioKind.INET in (began.stdin_kind, began.stdout_kind):
            found = of_socket(history, began, chain(process, history))
            return found if found.direction == "outbound" else None
        return None

    @staticmethod
    def _follow(
        history: NodeHistory, inodes: set[int], since: int, *, forward: bool
    ) -> tuple[dict[tuple[int, int], Process], set[int]]:
        """Processes that read from the pipes (forward) or write to them (backward), and from there on, four steps."""
        found: dict[tuple[int, int], Process] = {}
        seen = set(inodes)
        edge = set(inodes)
        for _ in range(4):
            if not edge or len(found) > 64:
                break
            wanted = sorted(edge)[:_MOST_PIPES]
            edge = set()

            def opens(rows: Array) -> Array:
                access = rows["oflags"] & 3
                right_way = access != 1 if forward else access != 0
                return np.asarray(((rows["file_bits"] & FileBits.FIFO) != 0) & right_way)

            events: list[Event] = []
            for end in ("stdin",) if forward else ("stdout", "stderr"):

                def on_pipe(rows: Array, kind: str = f"{end}_kind") -> Array:
                    return _in(rows[kind], _PIPES)

                for ino in wanted:
                    events += history.events("exec", since=since, where={f"{end}_ino": ino}, mask=on_pipe, limit=32)
            for ino in wanted:
                events += history.events("open", since=since, where={"ino": ino}, mask=opens, limit=16)
            for event in events:
                process = event.process
                key = (process.pid, process.start)
                if key in found:
                    continue
                found[key] = process
                began = process.exec
                if began is None:
                    continue
                ends = (
                    ((began.stdout_ino, began.stdout_kind), (began.stderr_ino, began.stderr_kind))
                    if forward
                    else ((began.stdin_ino, began.stdin_kind),)
                )
                edge |= {ino for ino, kind in ends if kind in _PIPES and ino and ino not in seen}
                if not forward:
                    edge |= _fifos_read_by(history, process, since) - seen
            seen |= edge
        return found, seen

    # -- a process that copies -------------------------------------------------------------------------------------

    def _behind_relay(self, event: Event, process: Process, history: NodeHistory) -> _Verdict | None:
        relay = self._relay_of(process, history)
        if relay is None:
            return None
        if event.stdin_kind == StdioKind.TTY:
            if event.stdout_kind != StdioKind.TTY:
                return None
        elif event.stdout_kind not in _RELAYED:
            return None
        if basename(relay.path) in _GIVE_TERMINALS and is_installed(relay, history):
            return None
        creator = history.parent(relay) if relay.inherited else None
        makers = [relay] if creator is None else [relay, creator]
        if any(accepted(history, p, since=event.time - _FRESH_NS, until=event.time) for p in makers):
            return None  # a server: whoever is served came to it
        lived = event.time - relay.time
        fresh = lived <= _FRESH_NS
        opened = [e for p in makers for e in outbound(history, p, until=event.time + _LATER_NS)]
        if event.stdin_kind == StdioKind.TTY:
            opened = [e for e in opened if e.time <= event.time]
        if not fresh:
            opened = [
                e
                for e in opened
                if event.time - _JUST_BEFORE_NS <= e.time <= event.time and not self._known_address(e, relay, history)
            ]
        if not opened:
            if fresh and event.stdin_kind != StdioKind.TTY:
                self._watch(event, {relay.pid}, set(), event.time + _LATER_NS)
            return None
        newest = opened[0]
        connection = Connection("outbound", newest.raddr_text, newest.rport, newest)
        certain = _is_interactive(process) or (fresh and event.stdin_kind == StdioKind.TTY)
        if certain:
            notes: tuple[str, ...] = ()
        elif fresh:
            notes = (f"A program that feeds a script to a shell looks alike: see what {relay.name} is.",)
        else:
            seconds = lived // _SECOND
            notes = (f"{relay.name} had been running for {seconds} s: it may be a service that runs jobs.",)
        return _Verdict(
            process,
            f"is served by {relay.name}, which has a connection to",
            connection,
            max((event, newest), key=lambda e: e.time),
            severity=None if certain else 5.0,
            related=(event,),
            notes=notes,
        )

    @staticmethod
    def _relay_of(process: Process, history: NodeHistory) -> Process | None:
        """The nearest ancestor that does not share the shell's descriptors: it, or nobody, made them."""
        for ancestor in ancestors(process, history, 4):
            if ancestor.exec is None and not ancestor.path:
                return None
            if ancestor.stdin_ino == process.stdin_ino and ancestor.stdin_kind == process.stdin_kind:
                continue
            # Output that the ancestor shares was not made by it either (`echo id | sh` within its own output).
            return None if (ancestor.stdout_ino, ancestor.stdout_kind) == _output(process) else ancestor
        return None

    @staticmethod
    def _known_address(event: Event, relay: Process, history: NodeHistory) -> bool:
        """Whether a service has called the address before: then it is its server, not somebody new."""
        before = outbound(history, relay, until=event.time - 1)
        return any(e.raddr == event.raddr for e in before)

    @staticmethod
    def _awk_loop(event: Event, history: NodeHistory) -> _Verdict | None:
        """Gawk reads commands from its own network files and runs each by ``sh -c``, joined to it by two pipes."""
        if not _as_awk_starts(event.stdin_kind, event.stdout_kind, event.argv) or event.ppid == 0:
            return None
        awk = history.parent(event.process)
        if awk is None or not any(word in argument for argument in awk.argv for word in _AWK_NETWORK):
            return None
        opened = outbound(history, awk, until=event.time)
        if not opened:
            return None
        connection = Connection("outbound", opened[0].raddr_text, opened[0].rport, opened[0])
        return _Verdict(awk, "runs commands for a connection to", connection, event)

    # -- what is missing -------------------------------------------------------------------------------------------

    def _watch(self, event: Event, pids: set[int], inodes: set[int], expires: int) -> None:
        key = (event.node, event.pid, event.start, event.time)
        before = self._pending.get(key)
        if before is not None:  # a shell may wait for a ring and for a relay at once
            pids, inodes, expires = pids | before.pids, inodes | before.inodes, max(expires, before.expires)
            self._drop(key)
        self._pending[key] = _Pending(event, expires, event.history.batches, pids, inodes)
        for pid in pids:
            self._pids.add(pid)
        for ino in inodes:
            self._stdin.add(ino)
            self._stdout.add(ino)
            self._fifos.add(ino)
        while len(self._pending) > _MAX_PENDING:
            self._drop(next(iter(self._pending)))

    def _drop(self, key: tuple[str, int, int, int]) -> None:
        pending = self._pending.pop(key, None)
        if pending is None:
            return
        for pid in pending.pids:
            self._pids.discard(pid)
        for ino in pending.inodes:
            self._stdin.discard(ino)
            self._stdout.discard(ino)
            self._fifos.discard(ino)

    def _forget(self, node: str, shell: Process) -> None:
        for key in [k for k in self._pending if k[:3] == (node, shell.pid, shell.start)]:
            self._drop(key)

    def _expire(self, event: Event) -> None:
        """Drop what waited too long on this node; called for every candidate, so it must be cheap."""
        while self._pending:
            key, pending = next(iter(self._pending.items()))
            stale = pending.event.history is not event.history if key[0] == event.node else False
            if key[0] != event.node or (pending.expires >= event.time and not stale):
                return
            self._drop(key)

    def _again(self, event: Event, history: NodeHistory, context: EngineContext) -> Iterator[Detection]:
        """Judge those waiting shells again that this event may complete."""
        if event.type == "exec" and not (self._stdin.holds(event.stdin_ino) or self._stdout.holds(event.stdout_ino)):
            return
        for key, pending in list(self._pending.items()):
            if pending.event.history is not history or pending.judged == history.batches:
                continue
            if event.type in ("connect", "io_uring"):
                concerned = event.pid in pending.pids
            elif event.type == "open":
                concerned = event.ino in pending.inodes
            else:
                concerned = bool(pending.inodes & {event.stdin_ino, event.stdout_ino}) and event.pid != key[1]
            if concerned and key in self._pending:
                pending.judged = history.batches
                yield from self._report(self._judge(pending.event, history), event, context)

    tests: ClassVar[tuple[dict[str, Any], ...]] = (
        {
            "name": "a shell on a socket",
            "match": True,
            "events": [
                _connect(),
                {**_SHELL, **_INET},
            ],
        },
        {
            "name": "a renamed shell on a socket, in a container",
            "match": True,
            "events": [
                _connect(container=True),
                {**_SHELL, **_INET, "path": "/var/tmp/kworker", "argv": ["[kworker/0:1]"], "container": True},
            ],
        },
        {
            "name": "the connection was opened by another process",
            "match": True,
            "events": [_connect(pid=700), {**_SHELL, **_INET}],
        },
        {
            "name": "the connection began before Vedette watched",
            "match": True,
            "events": [{**_SHELL, **_INET}],
        },
        {
            "name": "IPv6 and an interpreter",
            "match": True,
            "events": [
                _connect(family=10, raddr="2001:db8::66"),
                {
                    **_SHELL,
                    **_INET,
                    "path": "/usr/bin/python3.11",
                    "raddr": "2001:db8::66",
                    "laddr": "2001:db8::1",
                    "family": 10,
                },
            ],
        },
        {
            "name": "input alone on a socket: blind",
            "match": True,
            "events": [_connect(), {**_SHELL, **_INET, "stdout_kind": 8, "stderr_kind": 8}],
        },
        {
            "name": "an accepted connection",
            "match": False,
            "events": [
                {"event": "accept", "pid": 900, "sock_ino": 77, "family": 2, "raddr": "203.0.113.66", "rport": 40000},
                {**_SHELL, **_INET},
            ],
        },
        {
            "name": "a connection to a port on which somebody listens",
            "match": False,
            "events": [
                {"event": "listen", "pid": 900, "family": 2, "lport": 51000},
                {**_SHELL, **_INET},
            ],
        },
        {
            "name": "what a reported shell starts",
            "match": False,
            "events": [
                _connect(),
                {**_SHELL, **_INET},
                {"event": "fork", "child_pid": 1001},
                {**_SHELL, **_INET, "pid": 1001, "ppid": 1000, "path": "/usr/bin/dash"},
            ],
        },
        {
            "name": "cat copies a socket to the terminal: an HTTP client in bash",
            "match": False,
            "events": [
                _connect(),
                {**_SHELL, **_INET, "path": "/usr/bin/cat", "argv": ["cat"], "stdout_kind": 2, "stderr_kind": 2},
            ],
        },
        {
            "name": "output shipped to a log host",
            "match": False,
            "events": [
                {**_SHELL},
                _connect(),
                {**_SHELL, **_INET, "stdin_kind": 8, "pid": 1001, "ppid": 1000, "path": "/usr/bin/id", "argv": ["id"]},
            ],
        },
        {
            "name": "a loop that reads lines from the socket and runs them",
            "match": True,
            "events": [
                {**_SHELL},
                _connect(),
                {"event": "dup", "sock_ino": 77, "old_fd": 5, "new_fd": 0, "family": 2},
                {**_SHELL, **_INET, "stdin_kind": 8, "pid": 1001, "ppid": 1000, "path": "/usr/bin/id", "argv": ["id"]},
            ],
        },
        {
            "name": "FIFO, shell and netcat in a ring; the connection comes last",
            "match": True,
            "events": [
                {**_SHELL, "argv": ["sh", "-i"], **_stdio(4, 61, 3, 62)},
                {**_SHELL, "pid": 1001, "path": "/usr/bin/nc", "argv": ["nc"], **_stdio(3, 62, 4, 61)},
                _connect(pid=1001),
            ],
        },
        {
            "name": "cat reads the FIFO; the shell comes last",
            "match": True,
            "events": [
                {**_SHELL, "pid": 1001, "path": "/usr/bin/nc", "argv": ["nc"], **_stdio(3, 62, 4, 61)},
                _connect(pid=1001),
                {**_SHELL, "pid": 1002, "path": "/usr/bin/cat", "argv": ["cat", "f"], **_stdio(2, 4, 3, 63)},
                {"event": "open", "pid": 1002, "ino": 61, "file_bits": 256, "path": "/tmp/f"},
                {**_SHELL, "argv": ["sh", "-i"], **_stdio(3, 63, 3, 62)},
            ],
        },
        {
            "name": "commands come by one connection, output leaves by another",
            "match": True,
            "events": [
                {**_SHELL, "pid": 1001, "path": "/usr/bin/nc", "argv": ["nc"], **_stdio(2, 4, 3, 61)},
                _connect(pid=1001),
                {**_SHELL, "pid": 1002, "path": "/usr/bin/nc", "argv": ["nc"], **_stdio(3, 62, 2, 4)},
                {**_SHELL, **_stdio(3, 61, 3, 62)},
                _connect(pid=1002, rport=4445, sock_ino=78),
            ],
        },
        {
            "name": "curl | sh | tee",
            "match": False,
            "events": [
                {**_SHELL, "pid": 1001, "path": "/usr/bin/curl", "argv": ["curl"], **_stdio(2, 4, 3, 61)},
                _connect(pid=1001),
                {**_SHELL, "pid": 1002, "path": "/usr/bin/tee", "argv": ["tee"], **_stdio(3, 62, 2, 4)},
                {**_SHELL, **_stdio(3, 61, 3, 62)},
            ],
        },
        {
            "name": "a ring without any network",
            "match": False,
            "events": [
                {**_SHELL, "pid": 1001, "path": "/usr/bin/tee", "argv": ["tee"], **_stdio(3, 62, 4, 61)},
                {**_SHELL, **_stdio(4, 61, 3, 62)},
            ],
        },
        {
            "name": "socat and a terminal",
            "match": True,
            "events": [
                {**_SHELL, "pid": 900, "path": "/usr/bin/socat", "argv": ["socat"], **_stdio(8, 5, 8, 5)},
                _connect(pid=900),
                {**_SHELL, "ppid": 900, "argv": ["bash", "-li"], **_stdio(2, 9, 2, 9)},
            ],
        },
        {
            "name": "a unix socket pair and a connection that comes later",
            "match": True,
            "events": [
                {**_SHELL, "pid": 900, "path": "/srv/x", "argv": ["x"], **_stdio(8, 5, 8, 5)},
                {**_SHELL, "ppid": 900, **_stdio(6, 9, 6, 9)},
                _connect(pid=900),
            ],
        },
        {
            "name": "a wrapper between relay and shell",
            "match": True,
            "events": [
                {**_SHELL, "pid": 900, "path": "/usr/bin/php8.2", "argv": ["php"], **_stdio(8, 5, 8, 5)},
                _connect(pid=900),
                {**_SHELL, "pid": 950, "ppid": 900, "argv": ["sh", "-c", "id; sh -i"], **_stdio(3, 61, 3, 62)},
                {**_SHELL, "ppid": 950, "argv": ["sh", "-i"], **_stdio(3, 61, 3, 62)},
            ],
        },
        {
            "name": "gawk runs the lines of its own network file",
            "match": True,
            "events": [
                {
                    **_SHELL,
                    "pid": 900,
                    "path": "/usr/bin/gawk",
                    "argv": ["gawk", 'BEGIN{s="/inet/tcp/0/a/1"}'],
                    **_stdio(8, 5, 8, 5),
                },
                _connect(pid=900),
                {**_SHELL, "ppid": 900, "argv": ["sh", "-c", "id"], **_stdio(3, 61, 3, 62)},
            ],
        },
        {
            "name": "an agent that runs a command for its server",
            "match": False,
            "events": [
                {**_SHELL, "pid": 900, "path": "/usr/bin/python3.11", "argv": ["python3"], **_stdio(8, 5, 8, 5)},
                _connect(pid=900),
                {**_SHELL, "ppid": 900, "argv": ["sh", "-c", "id"], **_stdio(3, 61, 3, 62)},
            ],
        },
        {
            "name": "a CI runner's script",
            "match": False,
            "events": [
                {**_SHELL, "pid": 900, "path": "/opt/runner/Worker", "argv": ["Worker"], **_stdio(8, 5, 8, 5)},
                _connect(pid=900),
                {**_SHELL, "ppid": 900, "argv": ["bash", "-e", "/w/job.sh"], **_stdio(3, 61, 3, 62)},
            ],
        },
        {
            "name": "a service that has called its server all along feeds a job to bash",
            "match": False,
            "events": [
                {
                    **_SHELL,
                    "pid": 900,
                    "path": "/opt/runner/runner",
                    "argv": ["runner"],
                    **_stdio(8, 5, 8, 5),
                    "time": 900 * 10**9,
                },
                _connect(pid=900, time=910 * 10**9),
                _connect(pid=900, time=999 * 10**9, sock_ino=78),
                {**_SHELL, "ppid": 900, "argv": ["bash", "--login"], **_stdio(3, 61, 3, 62), "time": 1000 * 10**9},
            ],
        },
        {
            "name": "a service calls somebody new and starts a shell",
            "match": True,
            "events": [
                {
                    **_SHELL,
                    "pid": 900,
                    "path": "/usr/bin/java",
                    "argv": ["java"],
                    **_stdio(8, 5, 8, 5),
                    "time": 900 * 10**9,
                },
                _connect(pid=900, time=910 * 10**9, raddr="198.51.100.9"),
                _connect(pid=900, time=999 * 10**9, sock_ino=78),
                {**_SHELL, "ppid": 900, **_stdio(3, 61, 3, 62), "time": 1000 * 10**9},
            ],
        },
        {
            "name": "sshd gives a terminal",
            "match": False,
            "events": [
                {**_SHELL, "pid": 900, "path": "/usr/sbin/sshd", "argv": ["sshd"], **_stdio(8, 5, 8, 5)},
                _connect(pid=900),
                {**_SHELL, "ppid": 900, "argv": ["-bash"], **_stdio(2, 9, 2, 9)},
            ],
        },
        {
            "name": "a server with a terminal for its visitors",
            "match": False,
            "events": [
                {**_SHELL, "pid": 900, "path": "/usr/bin/jupyter", "argv": ["jupyter"], **_stdio(8, 5, 8, 5)},
                _connect(pid=900),
                {"event": "accept", "pid": 900, "family": 2, "raddr": "198.51.100.4", "sock_ino": 80},
                {**_SHELL, "ppid": 900, "argv": ["bash", "-i"], **_stdio(2, 9, 2, 9)},
            ],
        },
        {
            "name": "a shell on the user's own terminal under a network client",
            "match": False,
            "events": [
                {**_SHELL, "pid": 800, "argv": ["bash"], **_stdio(2, 9, 2, 9)},
                {**_SHELL, "pid": 900, "ppid": 800, "path": "/usr/bin/ftp", "argv": ["ftp"], **_stdio(2, 9, 2, 9)},
                _connect(pid=900),
                {**_SHELL, "ppid": 900, "argv": ["sh"], **_stdio(2, 9, 2, 9)},
            ],
        },
        {
            "name": "an ordinary shell",
            "match": False,
            "events": [{**_SHELL, **_stdio(2, 9, 2, 9)}],
        },
    )


def _in(column: Array, values: Iterable[int]) -> Array:
    """Where a column, shape (N,), has one of a few values; bool array of the same shape."""
    out = np.zeros(len(column), dtype=bool)
    for value in values:
        out |= column == value
    return out


def _fifos_read_by(history: NodeHistory, process: Process, since: int) -> set[int]:
    """Inodes of the FIFOs that a process opened for reading (``cat /tmp/f``)."""
    found = history.events(
        "open",
        pid=process.pid,
        start=process.start,
        since=since,
        mask=lambda rows: ((rows["file_bits"] & FileBits.FIFO) != 0) & ((rows["oflags"] & 3) != 1),
        limit=8,
    )
    return {event.ino for event in found}
