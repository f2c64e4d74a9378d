"""What only root can prepare, before the agent becomes an ordinary user: directories, the bpffs, limits.

Started as an ordinary user (in a container), all of it has been prepared by somebody else, and nothing happens here.
"""

from __future__ import annotations

import ctypes
import os
import resource
import stat
from contextlib import suppress
from pathlib import Path

from vedette_agent.errors import AgentError

_BPF_FS_MAGIC = 0xCAFE4A11  # <linux/magic.h>


class PrepareError(AgentError):
    """A directory or the bpffs could not be prepared."""

    reason = "NotPrepared"
    exit_code = 3


def is_bpffs(path: Path) -> bool:
    """Whether ``path`` lies on a bpffs."""
    buffer = ctypes.create_string_buffer(256)
    if ctypes.CDLL(None).statfs(os.fsencode(path), buffer) != 0:
        return False
    return int.from_bytes(buffer.raw[:8], "little") & 0xFFFFFFFF == _BPF_FS_MAGIC


def own_directory(path: Path, uid: int) -> None:
    """Make ``path`` (mode 0700) and give it to ``uid``, with the files of whoever had it before.

    Raises:
        PrepareError: it cannot be made or given away, is no directory, or others may write to it.
    """
    try:
        with suppress(FileNotFoundError):
            found = path.lstat()
            if stat.S_ISDIR(found.st_mode) and (found.st_uid, found.st_gid, found.st_mode & 0o777) == (uid, uid, 0o700):
                return  # nobody else has had a say in it, and without CAP_DAC_OVERRIDE it could not even be opened
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        # By descriptor and without following links: whoever owned the directory before must not steer the chown.
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            before = os.fstat(fd)
            if before.st_uid != uid and before.st_mode & 0o022:
                raise PrepareError(f"cannot prepare {path}: others than its owner may write to it")
            # Root's alone for as long as its names are looked at, so that none can be exchanged in between. A name
            # may be a hard link to a file of somebody else, so only the owner's own files go with the directory.
            os.fchown(fd, 0, 0)
            os.fchmod(fd, 0o700)
            for name in os.listdir(fd) if before.st_uid != uid else ():
                if os.stat(name, dir_fd=fd, follow_symlinks=False).st_uid == before.st_uid:
                    os.chown(name, uid, uid, dir_fd=fd, follow_symlinks=False)
            os.fchown(fd, uid, uid)
        finally:
            os.close(fd)
    except OSError as error:
        raise PrepareError(f"cannot prepare {path}: {error.strerror}") from error


def mount_bpffs(path: Path, uid: int) -> None:
    """Make ``path`` a bpffs that belongs to ``uid``, with everything pinned in it.

    Raises:
        PrepareError: it cannot be mounted.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not is_bpffs(path):
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.mount(b"bpf", os.fsencode(path), b"bpf", ctypes.c_ulong(2 | 4 | 8), b"mode=0700") != 0:
                raise PrepareError(f"cannot mount a bpffs on {path}: {os.strerror(ctypes.get_errno())}")
        # By descriptor: the owner of what was pinned before could put a link in the place of a directory meanwhile.
        for _, _, files, fd in os.fwalk(path):
            os.fchown(fd, uid, uid)
            for name in files:
                os.chown(name, uid, uid, dir_fd=fd, follow_symlinks=False)
        os.chmod(path, 0o700)
    except OSError as error:
        raise PrepareError(f"cannot prepare {path}: {error.strerror}") from error


def in_memory(path: Path) -> Path:
    """Copy a file that root may read to where this process still can when it is no longer root.

    Returns:
        A path that holds for this process alone and for its whole life.

    Raises:
        PrepareError: it cannot be read.
    """
    try:
        contents = path.read_bytes()
        fd = os.memfd_create(path.name, os.MFD_CLOEXEC)
        with os.fdopen(os.dup(fd), "wb") as copy:
            copy.write(contents)
    except OSError as error:
        raise PrepareError(f"cannot read {path}: {error.strerror}") from error
    return Path(f"/proc/self/fd/{fd}")


def raise_limits(nice: int) -> None:
    """Lift the limit on locked memory, which kernels before 5.11 charge maps to, and take the scheduling priority."""
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, nice)
