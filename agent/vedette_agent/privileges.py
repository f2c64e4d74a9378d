"""Give up every privilege that watching does not need.

What stays: an ordinary uid and gid without groups, and four capabilities as permitted and effective:

    CAP_BPF         load programs, make maps
    CAP_PERFMON     attach them to tracepoints, read kernel memory in them
    CAP_NET_ADMIN   attach the program that sees DNS answers (cgroup_skb)
    CAP_SYS_PTRACE  follow /proc/<pid>/exe and /proc/<pid>/root to hash executables

Everything else goes for good: the bounding, inheritable and ambient sets are emptied, no_new_privs is set, and the
process is not dumpable, so that another process of the same uid can neither trace it nor read its memory.

Linux keeps capabilities per thread: `drop` must run before any thread is started (capabilities(7)).
"""

from __future__ import annotations

import ctypes
import os
import threading
from dataclasses import dataclass

from vedette_agent.errors import PrivilegeError

CAP_DAC_READ_SEARCH = 2
CAP_SETPCAP = 8
CAP_NET_ADMIN = 12
CAP_SYS_PTRACE = 19
CAP_PERFMON = 38
CAP_BPF = 39
NEEDED = frozenset({CAP_BPF, CAP_PERFMON})
"""Without these nothing can be watched."""
KEPT = NEEDED | {CAP_NET_ADMIN, CAP_SYS_PTRACE}
NAMES = {
    CAP_DAC_READ_SEARCH: "CAP_DAC_READ_SEARCH",
    CAP_NET_ADMIN: "CAP_NET_ADMIN",
    CAP_SYS_PTRACE: "CAP_SYS_PTRACE",
    CAP_PERFMON: "CAP_PERFMON",
    CAP_BPF: "CAP_BPF",
}

_VERSION_3 = 0x20080522  # _LINUX_CAPABILITY_VERSION_3, <linux/capability.h>
_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@dataclass(frozen=True)
class Privileges:
    """What the calling thread may do."""

    uid: int
    gid: int
    effective: frozenset[int]
    permitted: frozenset[int]


_libc = ctypes.CDLL(None, use_errno=True)


def current() -> Privileges:
    """The calling thread's user and capabilities."""
    data = (_Data * 2)()
    if _libc.capget(ctypes.byref(_Header(_VERSION_3, 0)), data) != 0:
        raise PrivilegeError(f"capget: {os.strerror(ctypes.get_errno())}")
    effective = data[0].effective | data[1].effective << 32
    permitted = data[0].permitted | data[1].permitted << 32
    return Privileges(os.geteuid(), os.getegid(), _members(effective), _members(permitted))


def missing(privileges: Privileges) -> list[str]:
    """Names of the capabilities that are wanted and not there, the indispensable ones first."""
    absent = KEPT - privileges.effective
    return [NAMES[cap] for cap in sorted(absent, key=lambda cap: (cap not in NEEDED, cap))]


def drop(uid: int, gid: int, keep: frozenset[int] = KEPT) -> Privileges:
    """Become ``uid`` and keep only ``keep`` (as far as they are there).

    Started without CAP_SETUID and already as another user than root (a container), the user stays what it is.

    Returns:
        What is left, read back from the kernel.

    Raises:
        PrivilegeError: a step failed, or more is left than was meant to be.
    """
    if threading.active_count() > 1:
        raise PrivilegeError("privileges must be dropped before threads are started")
    before = current()
    kept = keep & before.permitted
    if CAP_SETPCAP in before.effective:
        for cap in range(64):
            present = _prctl(_PR_CAPBSET_READ, cap, optional=True)
            if present == 1:
                _prctl(_PR_CAPBSET_DROP, cap)
    if before.uid == 0:
        _prctl(_PR_SET_KEEPCAPS, 1)
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        except OSError as error:
            raise PrivilegeError(f"cannot become uid {uid}, gid {gid}: {error.strerror}") from error
        _prctl(_PR_SET_KEEPCAPS, 0)
    mask = sum(1 << cap for cap in kept)
    data = (_Data * 2)(
        _Data(mask & 0xFFFFFFFF, mask & 0xFFFFFFFF, 0),
        _Data(mask >> 32, mask >> 32, 0),
    )
    if _libc.capset(ctypes.byref(_Header(_VERSION_3, 0)), data) != 0:
        raise PrivilegeError(f"capset: {os.strerror(ctypes.get_errno())}")
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, optional=True)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)
    after = current()
    if after.permitted != kept or after.effective != kept or after.uid == 0:
        raise PrivilegeError(f"after dropping, uid {after.uid} with capabilities {sorted(after.permitted)} is left")
    return after


def _members(mask: int) -> frozenset[int]:
    return frozenset(cap for cap in range(64) if mask >> cap & 1)


def _prctl(option: int, argument: int, *, optional: bool = False) -> int:
    unsigned = [ctypes.c_ulong(value) for value in (argument, 0, 0, 0)]
    result = int(_libc.prctl(option, *unsigned))
    if result < 0 and not optional:
        raise PrivilegeError(f"prctl({option}, {argument}): {os.strerror(ctypes.get_errno())}")
    return result
