"""The event schema: every record that the kernel side emits, written once.

From this module come the C header of the BPF programs (``agent/vedette_agent/bpf/events.gen.h``), the
numpy dtypes of the detector (`vedette_events.dtypes`) and the reference page (``docs/reference/events.md``).
`vedette_events.generate` writes them; a test fails when they are stale.

A record is variable in length and little-endian:

    header (72 bytes, the same for every type)
    fields of the type (fixed size)
    uint16 length of each tail, then padding to a multiple of 8
    the tails, one after another, then padding to a multiple of 8

*Tails* hold what the kernel read as bytes: paths, arguments, names, payloads. Their bytes are chosen by
whoever runs the process and are never valid text by right.

Evolution: a field or tail is only ever appended to a type and says ``since`` which version it exists; a type
is only ever added. A reader of version N reads N and N-1: what an older record lacks reads as zero or empty.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Literal

SCHEMA_VERSION = 1
"""Version that the agent of this tree writes; `readable_versions` says what a detector accepts."""

FieldKind = Literal["u8", "u16", "u32", "u64", "s32", "s64", "comm", "addr", "sha256"]

FIELD_SIZES: dict[FieldKind, int] = {
    "u8": 1,
    "u16": 2,
    "u32": 4,
    "u64": 8,
    "s32": 4,
    "s64": 8,
    "comm": 16,
    "addr": 16,
    "sha256": 32,
}
"""Size in bytes of each kind. ``addr`` is four uint32 words holding network-order bytes: an IPv6 address, or an
IPv4 address in the last word with the others zero. ``comm`` is NUL-padded bytes."""

TailKind = Literal["path", "text", "args", "bytes"]
"""``path`` and ``text``: bytes without terminator; ``args``: strings each ended by NUL; ``bytes``: a payload."""


@dataclass(frozen=True)
class Field:
    """One fixed-size value of a record."""

    name: str
    kind: FieldKind
    doc: str
    since: int = 1
    flags: type[IntFlag] | type[IntEnum] | None = None


@dataclass(frozen=True)
class Tail:
    """One variable-length value of a record; ``limit`` is its greatest length in bytes."""

    name: str
    kind: TailKind
    limit: int
    doc: str
    since: int = 1


@dataclass(frozen=True)
class EventType:
    """One type of event. ``code`` is what the record's header carries."""

    code: int
    name: str
    doc: str
    fields: tuple[Field, ...] = ()
    tails: tuple[Tail, ...] = ()
    since: int = 1


class Common(IntFlag):
    """``flags`` of every record's header."""

    TRUNCATED = 1 << 0  # at least one tail is shorter than what the process gave
    COMPAT = 1 << 1  # entered through the 32-bit system call table
    IO_URING = 1 << 2  # performed by io_uring, not by a system call
    SNAPSHOT = 1 << 3  # made from /proc when the agent started, not by a kernel hook
    NO_PROCESS = 1 << 4  # seen outside process context: pid, uid and comm say nothing
    PATH_PARTIAL = 1 << 5  # a path was deeper than the walk's bound: its beginning is missing
    KTHREAD = 1 << 6  # the acting task is a kernel thread
    FAULT = 1 << 7  # user memory could not be read: the tail concerned is empty


class FileBits(IntFlag):
    """What is known of a file: the ``file_bits`` field of exec, open and mmap."""

    OVERLAY = 1 << 0  # lies on an overlay file system (a container's root)
    UPPER = 1 << 1  # lies in the overlay's upper layer: made or changed since the container was created
    NO_LOWER = 1 << 2  # has no lower file: was not in the image at all (when the kernel allows to tell)
    UNLINKED = 1 << 3  # has no name any more (link count zero)
    MEMFD = 1 << 4  # made by memfd_create
    TMPFS = 1 << 5  # lies on tmpfs or ramfs, /dev/shm included
    SETUID = 1 << 6  # has the set-user-id mode bit
    SETGID = 1 << 7
    FIFO = 1 << 8
    CHRDEV = 1 << 9
    BLKDEV = 1 << 10
    SOCKET = 1 << 11
    DIRECTORY = 1 << 12
    PROC = 1 << 13  # lies on procfs
    CGROUPFS = 1 << 14  # lies on cgroup v1 or v2


class ExecBits(IntFlag):
    """``exec_bits`` of exec."""

    SCRIPT = 1 << 0  # an interpreter was run for a script (#! or binfmt_misc); ``filename`` is the script
    OLD_CREDS_UNKNOWN = 1 << 1  # old_* are not known (process older than the agent)
    CWD_UNREACHABLE = 1 << 2  # the working directory is not below the process's root (CVE-2024-21626's mark)
    ENV_TRUNCATED = 1 << 3  # more environment than was searched for loader variables
    SECUREEXEC = 1 << 4  # the kernel ran the file with AT_SECURE (set-user-id and the like)


class StdioKind(IntEnum):
    """What a standard descriptor refers to."""

    NONE = 0
    FILE = 1
    TTY = 2
    PIPE = 3
    FIFO = 4
    INET = 5
    UNIX = 6
    OTHER_SOCKET = 7
    NULL = 8
    OTHER = 9


class MountOp(IntEnum):
    """Which call made a ``mount`` event."""

    MOUNT = 1
    MOVE_MOUNT = 2
    OPEN_TREE = 3
    FSOPEN = 4
    FSCONFIG = 5
    FSMOUNT = 6
    PIVOT_ROOT = 7
    MOUNT_SETATTR = 8


class ModuleOp(IntEnum):
    """Which call made a ``module`` event."""

    INIT = 1
    FINIT = 2
    DELETE = 3


class CredCall(IntEnum):
    """Which call made a ``setuid`` event."""

    SETUID = 1
    SETREUID = 2
    SETRESUID = 3
    SETFSUID = 4
    SETGID = 5
    SETREGID = 6
    SETRESGID = 7
    SETFSGID = 8
    CAPSET = 9


class DnsDirection(IntEnum):
    """``direction`` of dns."""

    QUERY = 1
    ANSWER = 2


class MemoryRegion(IntFlag):
    """``region`` of mprotect and mmap."""

    STACK = 1 << 0
    HEAP = 1 << 1
    ANONYMOUS = 1 << 2
    FILE = 1 << 3


HEADER: tuple[Field, ...] = (
    Field("size", "u32", "Length of the record in bytes, a multiple of 8."),
    Field("type", "u16", "Code of the event type."),
    Field("flags", "u16", "What holds for every type.", flags=Common),
    Field("time", "u64", "Nanoseconds since boot (CLOCK_BOOTTIME), suspend included."),
    Field("cgroup", "u64", "Id of the cgroup of the acting process: the inode of its directory."),
    Field("start", "u64", "When the acting process started, ns since boot; (pid, start) names a process for ever."),
    Field("pid", "u32", "Process id (thread group id) in the initial namespace."),
    Field("tid", "u32", "Thread id in the initial namespace."),
    Field("ppid", "u32", "Process id of the parent in the initial namespace."),
    Field("uid", "u32", "Real user id."),
    Field("euid", "u32", "Effective user id."),
    Field("result", "s32", "What the call returned; a negative errno for an attempt that failed."),
    Field("comm", "comm", "The thread's name: chosen by the process itself, never evidence alone."),
)

SOCK: tuple[Field, ...] = (
    Field("family", "u16", "Address family: 1 unix, 2 IPv4, 10 IPv6, 16 netlink, 17 packet, ..."),
    Field("sock_type", "u16", "1 stream, 2 datagram, 3 raw."),
    Field("protocol", "u16", "IP protocol number."),
    Field("lport", "u16", "Local port, host byte order."),
    Field("rport", "u16", "Remote port, host byte order."),
    Field("fd", "u16", "File descriptor of the socket; 65535 where there is none."),
    Field("sock_pad", "u32", "Zero."),
    Field("laddr", "addr", "Local address."),
    Field("raddr", "addr", "Remote address."),
    Field("sock_ino", "u64", "Inode of the socket; joins with the stdio inodes of exec."),
)

FILE: tuple[Field, ...] = (
    Field("ino", "u64", "Inode number."),
    Field("dev", "u32", "Device of the file system (kernel encoding, major << 20 | minor)."),
    Field("file_bits", "u32", "What is known of the file.", flags=FileBits),
)

_PATH = 4096
_NAME = 256

EVENT_TYPES: tuple[EventType, ...] = (
    EventType(
        1,
        "exec",
        "A process has started to run a new program.",
        (
            *FILE,
            Field("ctime", "u64", "The file's change time, ns since the epoch."),
            Field("parent_start", "u64", "When the parent started, ns since boot."),
            Field("caps", "u64", "Effective capabilities afterwards."),
            Field("old_caps", "u64", "Effective capabilities before."),
            Field("old_uid", "u32", "Real user id before."),
            Field("old_euid", "u32", "Effective user id before."),
            Field("gid", "u32", "Real group id."),
            Field("egid", "u32", "Effective group id."),
            Field("ns_pid", "u32", "Process id in the process's own pid namespace."),
            Field("pid_ns", "u32", "Inode of that pid namespace."),
            Field("mnt_ns", "u32", "Inode of the mount namespace."),
            Field("exec_bits", "u32", "How the program was started.", flags=ExecBits),
            Field("stdin_ino", "u64", "Inode behind descriptor 0; pipes and sockets join by it."),
            Field("stdout_ino", "u64", "Inode behind descriptor 1."),
            Field("stderr_ino", "u64", "Inode behind descriptor 2."),
            Field("stdin_kind", "u8", "What descriptor 0 is.", flags=StdioKind),
            Field("stdout_kind", "u8", "What descriptor 1 is.", flags=StdioKind),
            Field("stderr_kind", "u8", "What descriptor 2 is.", flags=StdioKind),
            Field("argc", "u8", "Number of arguments, 255 for more."),
            Field("mode", "u32", "The file's mode bits."),
            *SOCK,
        ),
        (
            Tail("path", "path", _PATH, "The executable as the kernel resolved it, in the process's root."),
            Tail("argv", "args", 4096, "Argument vector."),
            Tail("cwd", "path", _PATH, "Working directory."),
            Tail("filename", "path", _PATH, "What was passed to execve; the script's path for a script."),
            Tail("env", "args", 1024, "Only LD_PRELOAD, LD_LIBRARY_PATH and LD_AUDIT, as NAME=value."),
        ),
    ),
    EventType(
        2,
        "exit",
        "A process (its last thread) has ended.",
        (Field("exit_code", "u32", "Status as wait(2) gives it: code << 8 | signal."), Field("pad", "u32", "Zero.")),
    ),
    EventType(
        3,
        "fork",
        "A process was created; the header is the parent's. Threads are not reported.",
        (
            Field("child_start", "u64", "When the child started, ns since boot."),
            Field("child_pid", "u32", "Process id of the child in the initial namespace."),
            Field("child_ns_pid", "u32", "Process id of the child in its own pid namespace."),
            Field("parent_start", "u64", "When the parent's own parent started, ns since boot; zero if unknown."),
        ),
    ),
    EventType(
        4,
        "cgroup",
        "First event of a cgroup that was not seen before (or again after its entry left the kernel's table).",
        (Field("hierarchy", "u32", "1 or 2: which cgroup version the id belongs to."), Field("pad", "u32", "Zero.")),
        (Tail("path", "path", _PATH, "Path below the hierarchy's root."),),
    ),
    EventType(
        5,
        "open",
        "A file was opened, or an attempt failed: for writing, or of a name that some rule asks for, or a FIFO.",
        (
            *FILE,
            Field("oflags", "u32", "Flags of open(2)."),
            Field("mode", "u32", "Mode bits of the file."),
            Field("resolve", "u64", "openat2's resolve flags."),
            Field("fd", "s32", "The new descriptor, or -1."),
            Field("pad", "u32", "Zero."),
        ),
        (
            Tail("path", "path", _PATH, "Resolved path; what was passed when the open failed."),
            Tail("dir", "path", _PATH, "For a failed open of a relative path: the directory it was relative to."),
        ),
    ),
    EventType(
        6,
        "unlink",
        "A name was removed, or an attempt failed (unlink, unlinkat, rmdir).",
        (Field("at_flags", "u32", "AT_REMOVEDIR and the like."), Field("pad", "u32", "Zero.")),
        (
            Tail("path", "path", _PATH, "Path as passed."),
            Tail("dir", "path", _PATH, "Directory that a relative path is relative to."),
        ),
    ),
    EventType(
        7,
        "rename",
        "A file was renamed, or an attempt failed.",
        (Field("at_flags", "u32", "renameat2's flags."), Field("pad", "u32", "Zero.")),
        (
            Tail("path", "path", _PATH, "Old path as passed."),
            Tail("dir", "path", _PATH, "Directory that a relative old path is relative to."),
            Tail("new_path", "path", _PATH, "New path as passed."),
            Tail("new_dir", "path", _PATH, "Directory that a relative new path is relative to."),
        ),
    ),
    EventType(
        8,
        "link",
        "A hard link was made, or an attempt failed.",
        (Field("at_flags", "u32", "linkat's flags."), Field("pad", "u32", "Zero.")),
        (
            Tail("path", "path", _PATH, "Existing path as passed."),
            Tail("dir", "path", _PATH, "Directory that a relative existing path is relative to."),
            Tail("new_path", "path", _PATH, "Path of the link as passed."),
            Tail("new_dir", "path", _PATH, "Directory that a relative link path is relative to."),
        ),
    ),
    EventType(
        9,
        "symlink",
        "A symbolic link was made, or an attempt failed.",
        (),
        (
            Tail("path", "path", _PATH, "What the link points to, as passed."),
            Tail("new_path", "path", _PATH, "Path of the link as passed."),
            Tail("new_dir", "path", _PATH, "Directory that a relative link path is relative to."),
        ),
    ),
    EventType(
        10,
        "chmod",
        "A file's mode was changed, or an attempt failed.",
        (Field("mode", "u32", "The new mode."), Field("pad", "u32", "Zero.")),
        (
            Tail("path", "path", _PATH, "Path as passed, or resolved from the descriptor (fchmod)."),
            Tail("dir", "path", _PATH, "Directory that a relative path is relative to."),
        ),
    ),
    EventType(
        11,
        "mount",
        "A mount was made or prepared, or an attempt failed (old and new mount calls).",
        (
            Field("mount_flags", "u64", "Flags of the call."),
            Field("op", "u32", "Which call it was.", flags=MountOp),
            Field("fs_fd", "s32", "The descriptor that the call worked on (fsconfig, fsmount, move_mount), or -1."),
        ),
        (
            Tail("source", "path", _PATH, "Source: device, directory, or fsconfig's value."),
            Tail("target", "path", _PATH, "Where it was to be mounted."),
            Tail("fstype", "text", _NAME, "File system type; fsconfig's key."),
        ),
    ),
    EventType(
        12,
        "umount",
        "A file system was unmounted, or an attempt failed.",
        (Field("umount_flags", "u64", "Flags of umount2(2)."),),
        (Tail("target", "path", _PATH, "Path as passed."),),
    ),
    EventType(
        13,
        "mmap",
        "A file that is new in its container, has no name or is a memfd was mapped executable.",
        (
            *FILE,
            Field("ctime", "u64", "The file's change time, ns since the epoch."),
            Field("addr", "u64", "Address of the mapping."),
            Field("length", "u64", "Length in bytes."),
            Field("prot", "u32", "PROT_ bits."),
            Field("map_flags", "u32", "MAP_ bits."),
        ),
        (Tail("path", "path", _PATH, "Resolved path of the file."),),
    ),
    EventType(
        14,
        "mprotect",
        "Memory was made executable: writable at the same time, or on the stack or heap.",
        (
            Field("addr", "u64", "Start address."),
            Field("length", "u64", "Length in bytes."),
            Field("prot", "u32", "PROT_ bits."),
            Field("region", "u32", "Where the range lies.", flags=MemoryRegion),
        ),
    ),
    EventType(
        15,
        "socket",
        "A socket of an unusual family or type was made (raw, packet, netlink by a container, vsock, ...).",
        (
            Field("family", "u16", "Address family."),
            Field("sock_type", "u16", "Socket type."),
            Field("protocol", "u16", "Protocol."),
            Field("pad", "u16", "Zero."),
        ),
    ),
    EventType(
        16,
        "connect",
        "connect(2), or the first datagram to an address (sendto, sendmsg); failed attempts too.",
        SOCK,
        (
            Tail("path", "path", _NAME, "Path of a unix socket as passed; a leading NUL marks an abstract name."),
            Tail("bound_path", "path", _PATH, "Where the listener's socket file lies, in the listener's mounts."),
        ),
    ),
    EventType(
        17,
        "bind",
        "A socket was bound to an address.",
        SOCK,
        (Tail("path", "path", _NAME, "Path of a unix socket as passed."),),
    ),
    EventType(
        18,
        "listen",
        "A socket began to listen.",
        (*SOCK, Field("backlog", "u32", "Backlog."), Field("pad", "u32", "Zero.")),
    ),
    EventType(19, "accept", "A connection was accepted.", SOCK),
    EventType(
        20,
        "dup",
        "A socket was duplicated onto another descriptor (dup, dup2, dup3, fcntl); 0, 1 and 2 always.",
        (
            Field("old_fd", "s32", "Descriptor duplicated."),
            Field("new_fd", "s32", "Resulting descriptor."),
            *SOCK,
        ),
    ),
    EventType(
        21,
        "ptrace",
        "ptrace(2): attach, seize, traceme, writes to memory or registers; failed attempts too.",
        (
            Field("request", "u64", "PTRACE_ request."),
            Field("target_start", "u64", "When the target process started, ns since boot; zero if unknown."),
            Field("target_pid", "u32", "Target process in the initial namespace; zero if unknown."),
            Field("target_ns_pid", "u32", "Target as passed."),
        ),
    ),
    EventType(
        22,
        "vm_read",
        "process_vm_readv(2) on another process; failed attempts too.",
        (
            Field("target_start", "u64", "When the target process started, ns since boot; zero if unknown."),
            Field("target_pid", "u32", "Target process in the initial namespace; zero if unknown."),
            Field("target_ns_pid", "u32", "Target as passed."),
        ),
    ),
    EventType(
        23,
        "vm_write",
        "process_vm_writev(2) on another process; failed attempts too.",
        (
            Field("target_start", "u64", "When the target process started, ns since boot; zero if unknown."),
            Field("target_pid", "u32", "Target process in the initial namespace; zero if unknown."),
            Field("target_ns_pid", "u32", "Target as passed."),
        ),
    ),
    EventType(
        24,
        "setuid",
        "A process changed its user, group or capabilities; failed attempts too.",
        (
            Field("caps", "u64", "Effective capabilities afterwards."),
            Field("old_caps", "u64", "Effective capabilities before."),
            Field("old_uid", "u32", "Real user id before."),
            Field("old_euid", "u32", "Effective user id before."),
            Field("gid", "u32", "Real group id afterwards."),
            Field("egid", "u32", "Effective group id afterwards."),
            Field("call", "u32", "Which call it was.", flags=CredCall),
            Field("old_creds_unknown", "u32", "1 when old_* are not known."),
        ),
    ),
    EventType(
        25,
        "memfd",
        "memfd_create(2): an anonymous file in memory.",
        (Field("memfd_flags", "u32", "MFD_ bits."), Field("fd", "s32", "The new descriptor, or -1.")),
        (Tail("name", "text", _NAME, "Name as passed."),),
    ),
    EventType(
        26,
        "userfaultfd",
        "userfaultfd(2); failed attempts too. /dev/userfaultfd is seen as an open.",
        (Field("uffd_flags", "u32", "Flags as passed."), Field("pad", "u32", "Zero.")),
    ),
    EventType(
        27,
        "module",
        "A kernel module was to be loaded or removed; failed attempts too.",
        (
            Field("op", "u32", "Which call it was.", flags=ModuleOp),
            Field("module_flags", "u32", "Flags of the call."),
            Field("length", "u64", "Length of the image in bytes (init_module)."),
        ),
        (
            Tail("path", "path", _PATH, "Resolved path of the module file (finit_module)."),
            Tail("params", "text", 512, "Parameters as passed."),
            Tail("name", "text", 64, "Name (delete_module, or read from the image where that is possible)."),
        ),
    ),
    EventType(
        28,
        "io_uring",
        "A request submitted through io_uring that would have been an event as a system call.",
        (
            Field("opcode", "u32", "IORING_OP_ code."),
            Field("op_flags", "u32", "The request's own flags (open's oflags and the like) where readable."),
            *SOCK,
        ),
        (
            Tail("path", "path", _PATH, "Path as passed, where the request has one."),
            Tail("new_path", "path", _PATH, "Second path as passed (rename, link)."),
        ),
    ),
    EventType(
        29,
        "dns",
        "A DNS query or answer, UDP or TCP, port 53.",
        (Field("direction", "u32", "Query or answer.", flags=DnsDirection), Field("pad", "u32", "Zero."), *SOCK),
        (Tail("payload", "bytes", 1472, "The DNS message, without TCP's length prefix."),),
    ),
    EventType(
        30,
        "file_hash",
        "The agent has hashed an executable; made by the agent, at most once per file state.",
        (
            Field("ino", "u64", "Inode number."),
            Field("dev", "u32", "Device, as in exec."),
            Field("pad", "u32", "Zero."),
            Field("ctime", "u64", "The file's change time, ns since the epoch."),
            Field("length", "u64", "Size in bytes."),
            Field("sha256", "sha256", "SHA-256 of the contents."),
        ),
    ),
)

BY_NAME: dict[str, EventType] = {t.name: t for t in EVENT_TYPES}
BY_CODE: dict[int, EventType] = {t.code: t for t in EVENT_TYPES}


def pad8(size: int) -> int:
    """Round ``size`` in bytes up to a multiple of 8."""
    return (size + 7) & ~7


def fields_of(event: EventType, version: int = SCHEMA_VERSION) -> tuple[Field, ...]:
    """The type's own fields that exist in ``version``, in record order, header excluded."""
    return tuple(f for f in event.fields if f.since <= version)


def tails_of(event: EventType, version: int = SCHEMA_VERSION) -> tuple[Tail, ...]:
    """The type's tails that exist in ``version``, in record order."""
    return tuple(t for t in event.tails if t.since <= version)


HEADER_SIZE = sum(FIELD_SIZES[f.kind] for f in HEADER)


def tail_lengths_offset(event: EventType, version: int = SCHEMA_VERSION) -> int:
    """Offset in bytes of the tail lengths from the record's start."""
    return HEADER_SIZE + sum(FIELD_SIZES[f.kind] for f in fields_of(event, version))


def fixed_size(event: EventType, version: int = SCHEMA_VERSION) -> int:
    """Size in bytes of everything before the tails, padding included."""
    return pad8(tail_lengths_offset(event, version) + 2 * len(tails_of(event, version)))


def readable_versions() -> tuple[int, ...]:
    """Schema versions that a detector of this tree accepts, newest first."""
    return tuple(v for v in (SCHEMA_VERSION, SCHEMA_VERSION - 1) if v >= 1)


def check() -> None:
    """Verify the rules that the C side relies on.

    Raises:
        ValueError: a field is not naturally aligned, a name is used twice, or a record could exceed its bound.
    """
    if HEADER_SIZE % 8:
        raise ValueError(f"header is {HEADER_SIZE} bytes, not a multiple of 8")
    for event in EVENT_TYPES:
        names = [f.name for f in (*HEADER, *event.fields)] + [t.name for t in event.tails]
        doubled = {n for n in names if names.count(n) > 1}
        if doubled:
            raise ValueError(f"{event.name}: {', '.join(sorted(doubled))} named twice")
        offset = HEADER_SIZE
        for field in event.fields:
            alignment = min(FIELD_SIZES[field.kind], 8) if field.kind not in ("comm", "sha256", "addr") else 4
            if offset % alignment:
                raise ValueError(f"{event.name}.{field.name}: offset {offset} is not a multiple of {alignment}")
            offset += FIELD_SIZES[field.kind]
        if offset % 2:
            raise ValueError(f"{event.name}: tail lengths would lie at the odd offset {offset}")


check()
assert struct.calcsize("<IHHQQQIIIIIi16s") == HEADER_SIZE
