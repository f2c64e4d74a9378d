"""What already runs when the agent starts: processes, listening sockets and cgroups, read from /proc.

Each becomes an ordinary record (``exec``, ``listen``, ``cgroup``) with the flag SNAPSHOT. `Snapshotter` makes them in
a forked child, for two reasons: the memory that it takes goes back when the child ends, and the child of an agent that
was started by root keeps CAP_DAC_READ_SEARCH, which listing another user's ``/proc/<pid>/fd`` needs, while the agent
itself goes without.

How far a snapshot differs from what the kernel hooks tell:

- ``time`` is when the snapshot was taken, not when the program was started.
- ``start`` is exact where the kernel's task iterator could be asked (`vedette_agent.start_times`); else it comes from
  /proc/<pid>/stat and is up to a clock tick (10 ms) early, and the detector cannot join it with later events.
- ``filename``, ``env`` and the credentials before the exec are unknown; of ``file_bits``, UPPER and NO_LOWER are.
- without CAP_DAC_READ_SEARCH the stdio kinds of other users' processes stay NONE and listeners have no process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import stat
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vedette_agent import cgroups, start_times
from vedette_agent.privileges import CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE, drop
from vedette_events.encode import encode_event
from vedette_events.schema import Common, ExecBits, FileBits, StdioKind

BLOCK_BYTES = 256 << 10
"""Records are handed over in blocks of about this size; each becomes one batch."""

TIMEOUT_S = 60.0
"""Time for the whole snapshot. Reading /proc can wait for ever: for the file system that a program was started from,
and for whoever serves the pages of a process's arguments (userfaultfd, FUSE)."""

ARGV_BYTES = 4096
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PF_KTHREAD = 0x00200000  # include/linux/sched.h; the flags word of /proc/<pid>/stat
_SOCKET = re.compile(rb"socket:\[(\d+)\]\Z")
_NAMESPACE = re.compile(rb"[a-z]+:\[(\d+)\]\Z")
_FILESYSTEMS = {0x794C7630: FileBits.OVERLAY, 0x01021994: FileBits.TMPFS, 0x858458F6: FileBits.TMPFS}  # <linux/magic.h>
_BLOCK = struct.Struct("<II")
_TCP_LISTEN = 10  # enum in include/net/tcp_states.h


@dataclass(frozen=True)
class SocketEntry:
    """One socket of a network namespace, from /proc/<pid>/net; addresses are the 16 bytes of an ``addr`` field."""

    family: int
    sock_type: int
    protocol: int
    lport: int
    rport: int
    laddr: bytes
    raddr: bytes
    listening: bool


@dataclass(frozen=True)
class ProcessEntry:
    """One process as /proc tells it. Times in ns since boot, cut to clock ticks."""

    pid: int
    ppid: int
    start: int
    comm: bytes
    kernel_thread: bool


@dataclass
class Cgroups:
    """Turns cgroup paths into ids. ``hierarchy`` is 1 (the v1 memory controller) or 2."""

    hierarchy: int
    mount: bytes | None
    root: bytes = b"/"
    namespace: bytes = b""
    ids: dict[bytes, int] = field(default_factory=dict)

    @classmethod
    def find(cls, hierarchy: int | None = None, below: Path | None = None) -> Cgroups:
        """Find where the hierarchy is mounted; the one with the memory controller in v1, if any, else v2."""
        if hierarchy is None:
            hierarchy = 1 if cgroups.find(1, below) else 2
        mount = cgroups.find(hierarchy, below)
        if mount is None:
            return cls(hierarchy, None)
        namespace = cgroups.namespace_path(mount)
        return cls(hierarchy, mount.path, b"/" if namespace else mount.root, namespace)

    def path_of(self, content: bytes) -> bytes:
        """The path in the whole hierarchy that a /proc/<pid>/cgroup with ``content`` means; empty: none."""
        return cgroups.from_namespace(cgroups.own_path(content, self.hierarchy), self.namespace)

    def id_of(self, path: bytes) -> int:
        """Id of the cgroup at ``path`` below the hierarchy's root: its directory's inode; 0 when it cannot be told."""
        known = self.ids.get(path)
        if known is None:
            known = 0
            if self.mount is not None:
                below = path[len(self.root) :] if self.root != b"/" and path.startswith(self.root) else path
                with contextlib.suppress(OSError):
                    known = os.stat(self.mount + b"/" + below.lstrip(b"/")).st_ino
            self.ids[path] = known
        return known


def parse_stat(content: bytes) -> ProcessEntry:
    """Read /proc/<pid>/stat. The name stands in parentheses and may hold any byte, parentheses and newlines too.

    Raises:
        ValueError: not such a line.
    """
    before, _, rest = content.partition(b"(")
    comm, _, after = rest.rpartition(b")")
    values = after.split()
    if len(values) < 20:
        raise ValueError(f"{content[:80]!r} is not a line of /proc/<pid>/stat")
    return ProcessEntry(
        pid=int(before),
        ppid=int(values[1]),
        start=int(values[19]) * _TICK_NS,
        comm=comm,
        kernel_thread=bool(int(values[6]) & _PF_KTHREAD),
    )


def parse_inet(content: bytes, family: int, sock_type: int, protocol: int) -> Iterator[tuple[int, SocketEntry]]:
    """Inode and socket of each line of /proc/net/tcp, tcp6, udp, udp6 or raw."""
    for line in content.splitlines()[1:]:
        values = line.split()
        if len(values) < 10:
            continue
        laddr, lport = _inet_address(values[1])
        raddr, rport = _inet_address(values[2])
        listening = protocol == 6 and int(values[3], 16) == _TCP_LISTEN
        yield int(values[9]), SocketEntry(family, sock_type, protocol, lport, rport, laddr, raddr, listening)


def parse_unix(content: bytes) -> Iterator[tuple[int, SocketEntry]]:
    """Inode and socket of each line of /proc/net/unix; what a name with newlines makes of lines is passed over."""
    for line in content.splitlines()[1:]:
        values = line.split(None, 7)
        with contextlib.suppress(ValueError, IndexError):
            yield int(values[6]), SocketEntry(1, int(values[4], 16), 0, 0, 0, bytes(16), bytes(16), False)


def _inet_address(text: bytes) -> tuple[bytes, int]:
    address, _, port = text.partition(b":")
    # Words of 32 bits, each printed in host byte order (Documentation/networking/proc_net_tcp.rst).
    words = struct.pack(f"={len(address) // 8}I", *(int(address[i : i + 8], 16) for i in range(0, len(address), 8)))
    return words.rjust(16, b"\0"), int(port, 16)


def _read(path: bytes, limit: int = 8 << 20) -> bytes:
    with open(path, "rb", buffering=0) as file:
        parts = []
        while limit > 0 and (part := file.read(min(limit, 1 << 16))):
            parts.append(part)
            limit -= len(part)
        return b"".join(parts)


def _link(path: bytes) -> bytes:
    try:
        return os.readlink(path)
    except OSError:
        return b""


class _Reader:
    """Reads /proc once; records come out of `records`."""

    def __init__(self, hierarchy: Cgroups, now_ns: int, skip_pids: frozenset[int], exact: Mapping[int, int]) -> None:
        self._cgroups = hierarchy
        self._exact = exact
        self._now = now_ns
        self._skip = skip_pids
        self._starts: dict[int, int] = {}
        self._sockets: dict[int, dict[int, SocketEntry]] = {}
        self._owners: dict[int, tuple[ProcessEntry, int, int, dict[str, Any]]] = {}
        self._libc = ctypes.CDLL(None)

    def records(self) -> Iterator[bytes]:
        """All records, parents before children; what disappears meanwhile is left out."""
        entries = []
        for name in os.listdir(b"/proc"):
            if not name.isdigit():
                continue
            with contextlib.suppress(OSError, ValueError, LookupError):
                entry = self._exactly(parse_stat(_read(b"/proc/" + name + b"/stat")))
                self._starts[entry.pid] = entry.start
                if not entry.kernel_thread and entry.pid not in self._skip:
                    entries.append(entry)
        named: set[bytes] = set()
        for entry in sorted(entries, key=lambda e: (e.start, e.pid)):
            # A process may end at any moment, and then any file of it fails.
            with contextlib.suppress(OSError, ValueError, LookupError):
                cgroup_path = self._cgroups.path_of(_read(b"/proc/%d/cgroup" % entry.pid))
                record = self._exec(entry, self._cgroups.id_of(cgroup_path))
                if cgroup_path and cgroup_path not in named:
                    named.add(cgroup_path)
                    yield self._cgroup(entry, cgroup_path)
                yield record
        yield from self._listeners()

    def _exactly(self, entry: ProcessEntry) -> ProcessEntry:
        exact = self._exact.get(entry.pid, 0)
        # Another process may have come by the same pid since the iterator was read.
        return replace(entry, start=exact) if 0 <= exact - entry.start <= 2 * _TICK_NS else entry

    def _header(self, entry: ProcessEntry, status: dict[str, Any], cgroup: int) -> dict[str, Any]:
        return {
            "flags": Common.SNAPSHOT,
            "time": self._now,
            "cgroup": cgroup,
            "start": entry.start,
            "pid": entry.pid,
            "tid": entry.pid,
            "ppid": entry.ppid,
            "uid": status["uid"],
            "euid": status["euid"],
            "comm": entry.comm,
        }

    def _cgroup(self, entry: ProcessEntry, path: bytes) -> bytes:
        return encode_event(
            "cgroup",
            truncate=True,
            flags=Common.SNAPSHOT,
            time=self._now,
            cgroup=self._cgroups.id_of(path),
            start=entry.start,
            pid=entry.pid,
            tid=entry.pid,
            ppid=entry.ppid,
            comm=entry.comm,
            hierarchy=self._cgroups.hierarchy,
            path=path,
        )

    def _exec(self, entry: ProcessEntry, cgroup: int) -> bytes:
        base = b"/proc/%d/" % entry.pid
        status = parse_status(_read(base + b"status"))
        values = self._header(entry, status, cgroup)
        argv = _read(base + b"cmdline", ARGV_BYTES + 1)
        if len(argv) > ARGV_BYTES:
            argv = argv[:ARGV_BYTES]
            values["flags"] |= Common.TRUNCATED
        values |= {
            "gid": status["gid"],
            "egid": status["egid"],
            "caps": status["caps"],
            "ns_pid": status["ns_pid"],
            "parent_start": self._starts.get(entry.ppid, 0),
            "pid_ns": _namespace(base + b"ns/pid"),
            "mnt_ns": _namespace(base + b"ns/mnt"),
            "exec_bits": ExecBits.OLD_CREDS_UNKNOWN,
            "argv": argv,
            "argc": min(argv.count(b"\0"), 255),
            "cwd": _link(base + b"cwd"),
            **self._file(base + b"exe"),
        }
        self._note_descriptors(entry, cgroup, base, status, values)
        return encode_event("exec", truncate=True, **values)

    def _file(self, exe: bytes) -> dict[str, Any]:
        path = _link(exe)
        values: dict[str, Any] = {"path": path.removesuffix(b" (deleted)")}
        try:
            info = os.stat(exe)
        except OSError:
            return values
        bits = self._filesystem(exe)
        if info.st_nlink == 0:
            bits |= FileBits.UNLINKED
        else:
            values["path"] = path  # a file may really be called "x (deleted)"
        if path.startswith(b"/memfd:"):
            bits |= FileBits.MEMFD
        bits |= FileBits.SETUID if info.st_mode & stat.S_ISUID else 0
        bits |= FileBits.SETGID if info.st_mode & stat.S_ISGID else 0
        device = os.major(info.st_dev) << 20 | os.minor(info.st_dev)
        values |= {"ino": info.st_ino, "dev": device, "ctime": info.st_ctime_ns, "mode": info.st_mode}
        return values | {"file_bits": int(bits)}

    def _filesystem(self, path: bytes) -> FileBits:
        buffer = ctypes.create_string_buffer(256)
        if self._libc.statfs(path, buffer) != 0:
            return FileBits(0)
        return _FILESYSTEMS.get(int.from_bytes(buffer.raw[:4], "little"), FileBits(0))

    def _note_descriptors(
        self, entry: ProcessEntry, cgroup: int, base: bytes, status: dict[str, Any], values: dict[str, Any]
    ) -> None:
        """Fill in what the standard descriptors are, and remember who owns which socket."""
        try:
            descriptors = os.listdir(base + b"fd")
        except OSError:
            return
        sockets: dict[int, SocketEntry] | None = None
        for name in descriptors:
            target = _link(base + b"fd/" + name)
            socket = _SOCKET.match(target)
            number = int(name)
            if socket is None and number > 2:
                continue
            if sockets is None and socket is not None:
                sockets = self._namespace_sockets(base)
            found = (sockets or {}).get(int(socket[1])) if socket else None
            if socket and found and found.listening:
                self._owners[int(socket[1])] = (entry, cgroup, number, status)
            if number > 2:
                continue
            stream = ("stdin", "stdout", "stderr")[number]
            kind, inode = self._stdio(base + b"fd/" + name, target, found)
            values |= {f"{stream}_kind": kind, f"{stream}_ino": inode}
            if kind is StdioKind.INET and found is not None and "raddr" not in values:
                values |= {**_sock_fields(found), "fd": number, "sock_ino": inode}

    def _stdio(self, path: bytes, target: bytes, socket: SocketEntry | None) -> tuple[StdioKind, int]:
        try:
            info = os.stat(path)
        except OSError:
            return StdioKind.NONE, 0
        if stat.S_ISSOCK(info.st_mode):
            if socket is None:
                return StdioKind.OTHER_SOCKET, info.st_ino
            return (StdioKind.UNIX if socket.family == 1 else StdioKind.INET), info.st_ino
        if stat.S_ISFIFO(info.st_mode):
            return (StdioKind.PIPE if target.startswith(b"pipe:[") else StdioKind.FIFO), info.st_ino
        if stat.S_ISCHR(info.st_mode):
            major, minor = os.major(info.st_rdev), os.minor(info.st_rdev)
            if (major, minor) == (1, 3):
                return StdioKind.NULL, info.st_ino
            # Documentation/admin-guide/devices.txt: 4 tty and serial, 5 /dev/tty and console, 136-143 pseudo terminals.
            terminal = major in (4, 5) or 136 <= major <= 143
            return (StdioKind.TTY if terminal else StdioKind.OTHER), info.st_ino
        return (StdioKind.FILE if stat.S_ISREG(info.st_mode) else StdioKind.OTHER), info.st_ino

    def _namespace_sockets(self, base: bytes) -> dict[int, SocketEntry]:
        namespace = _namespace(base + b"ns/net")
        sockets = self._sockets.get(namespace)
        if sockets is None:
            sockets = self._sockets[namespace] = {}
            tables = (("tcp", 2, 1, 6), ("tcp6", 10, 1, 6), ("udp", 2, 2, 17), ("udp6", 10, 2, 17))
            for table, family, sock_type, protocol in tables:
                with contextlib.suppress(OSError, ValueError):
                    sockets.update(parse_inet(_read(base + b"net/" + table.encode()), family, sock_type, protocol))
            with contextlib.suppress(OSError):
                # The names in this table may hold newlines and so forge lines; a socket of the others stays what it is.
                for inode, entry in parse_unix(_read(base + b"net/unix")):
                    sockets.setdefault(inode, entry)
        return sockets

    def _listeners(self) -> Iterator[bytes]:
        for inode, (entry, cgroup, number, status) in self._owners.items():
            found = next((s[inode] for s in self._sockets.values() if inode in s), None)
            if found is not None:
                header = self._header(entry, status, cgroup)
                yield encode_event("listen", **header, **_sock_fields(found), fd=number, sock_ino=inode)


def parse_status(content: bytes) -> dict[str, Any]:
    """Users, groups, effective capabilities and innermost process id of /proc/<pid>/status."""
    lines = dict(line.partition(b":")[::2] for line in content.splitlines())
    uids, gids = lines[b"Uid"].split(), lines[b"Gid"].split()
    return {
        "uid": int(uids[0]),
        "euid": int(uids[1]),
        "gid": int(gids[0]),
        "egid": int(gids[1]),
        "caps": int(lines[b"CapEff"], 16),
        "ns_pid": int(lines.get(b"NSpid", b"0").split()[-1]),
    }


def _namespace(path: bytes) -> int:
    match = _NAMESPACE.match(_link(path))
    return int(match[1]) if match else 0


def _sock_fields(socket: SocketEntry) -> dict[str, Any]:
    return {
        "family": socket.family,
        "sock_type": socket.sock_type,
        "protocol": socket.protocol,
        "lport": socket.lport,
        "rport": socket.rport,
        "laddr": socket.laddr,
        "raddr": socket.raddr,
    }


def take(
    hierarchy: int | None = None,
    skip_pids: frozenset[int] = frozenset(),
    exact: Mapping[int, int] | None = None,
    cgroup_root: Path | None = None,
) -> Iterator[tuple[int, bytes]]:
    """Blocks of records: (number of records, records), in an order in which each parent precedes its children.

    Args:
        hierarchy: cgroup version of the ids, as the BPF programs use it; None to find out in the same way.
        skip_pids: processes to leave out (the snapshot's own).
        exact: exact start times by process id.
        cgroup_root: below which to look for the host's cgroup mounts; None: anywhere.
    """
    reader = _Reader(
        Cgroups.find(hierarchy, cgroup_root), time.clock_gettime_ns(time.CLOCK_BOOTTIME), skip_pids, exact or {}
    )
    block: list[bytes] = []
    size = 0
    for record in reader.records():
        block.append(record)
        size += len(record)
        if size >= BLOCK_BYTES:
            yield len(block), b"".join(block)
            block, size = [], 0
    if block:
        yield len(block), b"".join(block)


class Snapshotter:
    """A child that waits until the programs are attached, then takes the snapshot and sends it through a pipe.

    It must be made before threads are started and before privileges are dropped.
    """

    def __init__(self, uid: int, gid: int, cgroup_root: Path | None = None) -> None:
        go_read, self._go = os.pipe()
        self._pipe, records_write = os.pipe()
        self._buffer = bytearray()
        self._blocks: list[tuple[int, bytes]] = []
        self.finished = False
        self.failed = False
        self._deadline = float("inf")
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                os.close(self._go)
                os.close(self._pipe)
                _child(go_read, records_write, uid, gid, parent, cgroup_root)
                status = 0
            finally:
                os._exit(status)
        os.close(go_read)
        os.close(records_write)
        os.set_blocking(self._pipe, False)

    def start(self, hierarchy: int | None, starts: bytes = b"") -> None:
        """Take the snapshot now; ``starts`` is what `start_times.read` has returned."""
        self._deadline = time.monotonic() + TIMEOUT_S
        data = memoryview(bytes([hierarchy or 0]) + starts)
        with contextlib.suppress(BrokenPipeError):
            while data:
                data = data[os.write(self._go, data) :]
        os.close(self._go)
        self._go = -1

    def poll(self, limit_bytes: int = 1 << 20) -> list[tuple[int, bytes]]:
        """The blocks that have arrived; sets ``finished`` when there will be no more. Never waits."""
        while not self.finished and sum(len(records) for _, records in self._blocks) < limit_bytes:
            try:
                data = os.read(self._pipe, 1 << 18)
            except BlockingIOError:
                if time.monotonic() > self._deadline:
                    self._end(kill=True)
                break
            if not data:
                self._end()
                break
            self._buffer += data
            while len(self._buffer) >= _BLOCK.size:
                count, size = _BLOCK.unpack_from(self._buffer)
                if len(self._buffer) < _BLOCK.size + size:
                    break
                self._blocks.append((count, bytes(self._buffer[_BLOCK.size : _BLOCK.size + size])))
                del self._buffer[: _BLOCK.size + size]
        blocks, self._blocks = self._blocks, []
        return blocks

    def wait(self, timeout_s: float) -> None:
        """Wait until there is something to `poll`."""
        select.select([self._pipe], [], [], timeout_s)

    def cancel(self) -> None:
        """End the child without a snapshot."""
        if self._go >= 0:
            os.close(self._go)
            self._go = -1
        if not self.finished:
            self._end(kill=True)

    def _end(self, *, kill: bool = False) -> None:
        os.close(self._pipe)
        if kill:
            with contextlib.suppress(OSError):
                os.kill(self._pid, signal.SIGKILL)
        # Not waited for without end: a process that waits for a file system may not even be killed.
        self.failed = self._reap(0.5) != 0
        self.finished = True
        self._buffer = bytearray()

    def _reap(self, timeout_s: float) -> int | None:
        """The child's status; None when it has not ended in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                return status
            if time.monotonic() > deadline:
                return None
            time.sleep(0.002)


def _child(go: int, out: int, uid: int, gid: int, parent: int, cgroup_root: Path | None) -> None:
    # It reads what other processes chose to call themselves; it needs nothing of root but reading /proc.
    drop(uid, gid, keep=frozenset({CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE}))
    said = b""
    while part := os.read(go, 1 << 16):
        said += part
    if not said:
        return
    exact = start_times.parse(said[1:])
    for count, records in take(said[0] or None, frozenset({os.getpid(), parent}), exact, cgroup_root):
        data = memoryview(_BLOCK.pack(count, len(records)) + records)
        while data:
            data = data[os.write(out, data) :]
