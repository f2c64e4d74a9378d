"""Names for the numbers that rules compare with: flags, enumerations, errno.

Names that the schema itself gives (``FileBits``, ``StdioKind``, ...) are taken from there. The rest are the kernel's,
from the uapi headers named beside each table; the values are those of x86-64 and arm64, which agree here.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import IntFlag
from functools import cache
from typing import Literal

from vedette_events import schema

BitTest = Literal["all_bits", "any_bits"]

# include/uapi/asm-generic/fcntl.h; WRITE, CREATE and READ_ONLY are Vedette's words for what rules ask most.
OFLAGS: dict[str, int] = {
    "O_WRONLY": 0o1,
    "O_RDWR": 0o2,
    "O_CREAT": 0o100,
    "O_EXCL": 0o200,
    "O_NOCTTY": 0o400,
    "O_TRUNC": 0o1000,
    "O_APPEND": 0o2000,
    "O_NONBLOCK": 0o4000,
    "O_DSYNC": 0o10000,
    "O_CLOEXEC": 0o2000000,
    "O_PATH": 0o10000000,
    "O_TMPFILE": 0o20000000,
}
# include/uapi/asm-generic/mman-common.h
PROT: dict[str, int] = {"PROT_READ": 1, "PROT_WRITE": 2, "PROT_EXEC": 4}
MAP: dict[str, int] = {"MAP_SHARED": 1, "MAP_PRIVATE": 2, "MAP_FIXED": 0x10, "MAP_ANONYMOUS": 0x20}
# include/uapi/linux/mount.h
MS: dict[str, int] = {
    "MS_RDONLY": 1,
    "MS_NOSUID": 2,
    "MS_NODEV": 4,
    "MS_NOEXEC": 8,
    "MS_REMOUNT": 32,
    "MS_BIND": 4096,
    "MS_MOVE": 8192,
    "MS_REC": 16384,
    "MS_UNBINDABLE": 1 << 17,
    "MS_PRIVATE": 1 << 18,
    "MS_SLAVE": 1 << 19,
    "MS_SHARED": 1 << 20,
}
# include/uapi/linux/memfd.h
MFD: dict[str, int] = {"MFD_CLOEXEC": 1, "MFD_ALLOW_SEALING": 2, "MFD_HUGETLB": 4, "MFD_NOEXEC_SEAL": 8, "MFD_EXEC": 16}
# include/uapi/linux/userfaultfd.h, with the O_ flags that the call takes
UFFD: dict[str, int] = {"UFFD_USER_MODE_ONLY": 1, "O_CLOEXEC": 0o2000000, "O_NONBLOCK": 0o4000}
# include/uapi/linux/stat.h
MODE: dict[str, int] = {
    "S_ISUID": 0o4000,
    "S_ISGID": 0o2000,
    "S_ISVTX": 0o1000,
    "S_IXUSR": 0o100,
    "S_IXGRP": 0o10,
    "S_IXOTH": 0o1,
    "S_IWOTH": 0o2,
}
# include/uapi/linux/fcntl.h
AT: dict[str, int] = {"AT_REMOVEDIR": 0x200, "AT_SYMLINK_FOLLOW": 0x400, "AT_EMPTY_PATH": 0x1000}
# include/uapi/linux/fs.h
RENAME: dict[str, int] = {"RENAME_NOREPLACE": 1, "RENAME_EXCHANGE": 2, "RENAME_WHITEOUT": 4}
# include/uapi/linux/capability.h, in order of their numbers
CAPABILITIES: tuple[str, ...] = (
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
)
CAPS: dict[str, int] = {f"CAP_{name}": 1 << number for number, name in enumerate(CAPABILITIES)}
# include/uapi/linux/ptrace.h and arch/x86/include/uapi/asm/ptrace-abi.h
PTRACE: dict[str, int] = {
    "PTRACE_TRACEME": 0,
    "PTRACE_PEEKTEXT": 1,
    "PTRACE_PEEKDATA": 2,
    "PTRACE_PEEKUSER": 3,
    "PTRACE_POKETEXT": 4,
    "PTRACE_POKEDATA": 5,
    "PTRACE_POKEUSER": 6,
    "PTRACE_CONT": 7,
    "PTRACE_KILL": 8,
    "PTRACE_SINGLESTEP": 9,
    "PTRACE_GETREGS": 12,
    "PTRACE_SETREGS": 13,
    "PTRACE_GETFPREGS": 14,
    "PTRACE_SETFPREGS": 15,
    "PTRACE_ATTACH": 16,
    "PTRACE_DETACH": 17,
    "PTRACE_SYSCALL": 24,
    "PTRACE_SETOPTIONS": 0x4200,
    "PTRACE_GETEVENTMSG": 0x4201,
    "PTRACE_GETSIGINFO": 0x4202,
    "PTRACE_SETSIGINFO": 0x4203,
    "PTRACE_GETREGSET": 0x4204,
    "PTRACE_SETREGSET": 0x4205,
    "PTRACE_SEIZE": 0x4206,
    "PTRACE_INTERRUPT": 0x4207,
    "PTRACE_LISTEN": 0x4208,
}
# include/linux/socket.h, include/linux/net.h, include/uapi/linux/in.h
AF: dict[str, int] = {
    "AF_UNIX": 1,
    "AF_INET": 2,
    "AF_INET6": 10,
    "AF_NETLINK": 16,
    "AF_PACKET": 17,
    "AF_ALG": 38,
    "AF_VSOCK": 40,
    "AF_XDP": 44,
}
SOCK: dict[str, int] = {"SOCK_STREAM": 1, "SOCK_DGRAM": 2, "SOCK_RAW": 3, "SOCK_SEQPACKET": 5, "SOCK_PACKET": 10}
IPPROTO: dict[str, int] = {"IPPROTO_ICMP": 1, "IPPROTO_TCP": 6, "IPPROTO_UDP": 17, "IPPROTO_ICMPV6": 58}


@dataclass(frozen=True)
class Names:
    """The names that a field's values have.

    Attributes:
        values: name → number.
        flags: whether the numbers are bits to be combined (``|has``), or alternatives.
        groups: names for "any of these bits".
    """

    values: dict[str, int]
    flags: bool
    groups: dict[str, int]

    def test(self, name: str) -> tuple[BitTest, int] | None:
        """How ``|has: name`` is tested, or None for an unknown name."""
        if name in self.groups:
            return "any_bits", self.groups[name]
        value = self.values.get(name)
        return None if value is None else ("all_bits", value)


_OWN: dict[tuple[str | None, str], Names] = {
    (None, "oflags"): Names(OFLAGS, True, {"WRITE": 0o3, "CREATE": OFLAGS["O_CREAT"] | 0o20000000}),
    (None, "prot"): Names(PROT, True, {}),
    (None, "map_flags"): Names(MAP, True, {}),
    (None, "mount_flags"): Names(MS, True, {}),
    (None, "memfd_flags"): Names(MFD, True, {}),
    (None, "uffd_flags"): Names(UFFD, True, {}),
    (None, "mode"): Names(MODE, True, {"SETID": 0o6000, "EXECUTABLE": 0o111}),
    ("rename", "at_flags"): Names(RENAME, True, {}),
    (None, "at_flags"): Names(AT, True, {}),
    (None, "caps"): Names(CAPS, True, {}),
    (None, "old_caps"): Names(CAPS, True, {}),
    (None, "request"): Names(PTRACE, False, {}),
    (None, "family"): Names(AF, False, {}),
    (None, "sock_type"): Names(SOCK, False, {}),
    (None, "protocol"): Names(IPPROTO, False, {}),
    (None, "result"): Names({f"-{name}": -number for number, name in errno.errorcode.items()}, False, {}),
}


@cache
def names_of(event: str, field: str) -> Names | None:
    """The names that a field of an event type has, or None."""
    for known in (*schema.HEADER, *schema.BY_NAME[event].fields):
        if known.name == field and known.flags is not None:
            members = {str(member.name): int(member.value) for member in known.flags}
            return Names(members, issubclass(known.flags, IntFlag), {})
    return _OWN.get((event, field)) or _OWN.get((None, field))
