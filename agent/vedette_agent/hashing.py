"""SHA-256 of executables that were run or mapped, once per file state, in the background and within a budget.

The draining thread hands over what the ring's C code has seen for the first time. The file is opened through
``/proc/<pid>/exe``, else by its path below ``/proc/<pid>/root``, and only counts when inode and change time are still
those of the event: a process that has ended, or a file that was changed since, has no hash rather than a wrong one.
Files that the agent's user may not read have none either.

Whoever serves a file can keep its reader waiting for ever: a FUSE server in a container, an NFS server that is gone.
So files of other than local file systems are not touched at all, and files are read in a thread that is left behind
when it hangs. Large files wait for small ones, because it takes no disk space to make a large one (holes).
"""

from __future__ import annotations

import os
import queue
import stat
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from vedette_events.encode import encode_event

MAX_FILE_BYTES = 256 << 20
"""Larger files are not hashed: no executable that anybody was sent is as large, and one would use up many seconds."""

CACHE_ENTRIES = 8192
QUEUE_ENTRIES = 4096
LARGE_BYTES = 16 << 20
"""Larger files are read only while no smaller ones wait."""
LARGE_ENTRIES = 64
HANGS_AFTER_S = 20.0
"""A thread that has been with one step of a file for so long hangs: a disk answers within seconds."""
MAX_HUNG = 4
"""Threads left behind that still hang; with as many, nothing is hashed until one of them comes back."""
_CHUNK = 256 << 10
_MOUNTINFO_BYTES = 4 << 20
LOCAL_FILESYSTEMS = frozenset(
    {
        *("bcachefs", "btrfs", "cramfs", "devtmpfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "hugetlbfs"),
        *("iso9660", "jfs", "minix", "nilfs2", "ntfs3", "overlay", "ramfs", "reiserfs", "romfs", "rootfs", "squashfs"),
        *("tmpfs", "udf", "vfat", "xfs", "zfs"),
    }
)
"""File systems whose reads end by themselves (names as in /proc/filesystems)."""


@dataclass(frozen=True)
class Executable:
    """A file state as an event named it: kernel device number, inode, change time in ns since the epoch."""

    pid: int
    dev: int
    ino: int
    ctime: int
    path: bytes


class Budget:
    """Lets ``bytes_per_s`` through, with at most one second saved up."""

    def __init__(self, bytes_per_s: int) -> None:
        self._rate = bytes_per_s
        self._left = float(bytes_per_s)
        self._at = time.monotonic()

    def spend(self, size: int, now_s: float) -> float:
        """Take ``size`` bytes. Returns the seconds to wait before going on."""
        self._left = min(self._left + (now_s - self._at) * self._rate, self._rate) - size
        self._at = now_s
        return max(0.0, -self._left / self._rate)


def filesystem(dev: int, pid: int) -> str | None:
    """Type of the mounted file system with this kernel device number; None when no mount of it is found.

    It is looked up in the mounts that the process sees, then in those of the host. That asks the kernel alone, while
    statfs(2) asks whoever serves the file system. What the kernel mounts for itself (memfd) is in no list.
    """
    wanted = b"%d:%d" % (dev >> 20, dev & 0xFFFFF)
    for reader in (pid, 1, os.getpid()):
        with suppress(OSError), open(f"/proc/{reader}/mountinfo", "rb") as file:
            for line in file.read(_MOUNTINFO_BYTES).split(b"\n"):
                # 36 35 98:0 /root /mount options optional... - type source options (proc(5))
                fields = line.split(b" ", 3)
                if len(fields) == 4 and fields[2] == wanted:
                    return line.partition(b" - ")[2].split(b" ", 1)[0].decode("ascii", "replace")
    return None


def open_executable(wanted: Executable) -> int | None:
    """A descriptor of exactly that file state, or None when it cannot be had any more."""
    candidates = [b"/proc/%d/exe" % wanted.pid]
    if wanted.path.startswith(b"/"):
        candidates += [b"/proc/%d/root" % wanted.pid + wanted.path, wanted.path]
    for path in candidates:
        with suppress(OSError, ValueError):
            # Found first and opened only when it is the file: by now the name may belong to a device, whose driver
            # acts on the open (a watchdog starts), and a container may make devices that only its own rules forbid.
            found = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                info = os.fstat(found)
                if stat.S_ISREG(info.st_mode) and (info.st_ino, info.st_ctime_ns) == (wanted.ino, wanted.ctime):
                    return os.open(b"/proc/self/fd/%d" % found, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            finally:
                os.close(found)
    return None


class Later:
    """Stands for: not now."""


class _Lane:
    """One thread's work, so that a thread that hangs can be left behind with it."""

    def __init__(self) -> None:
        self.since_s: float | None = None
        """When the step under way began, monotonic clock; None between files and while waiting for the budget."""
        self.left_behind = False


class Hasher:
    """Hashes what is `put` and keeps the records until they are `take`-n."""

    def __init__(self, bytes_per_s: int) -> None:
        import hashlib  # brings OpenSSL, which an agent that hashes nothing does without

        self._sha256 = hashlib.sha256
        self._budget = Budget(bytes_per_s)
        self._queue: queue.Queue[Executable] = queue.Queue(QUEUE_ENTRIES)
        self._large: deque[Executable] = deque()
        self._done: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._known: OrderedDict[tuple[int, int, int], None] = OrderedDict()
        self._lane: _Lane | None = None
        self._hung: list[_Lane] = []
        self._started = False
        self.hashed = 0
        """Files hashed."""
        self.unavailable = 0
        """Files that were gone, changed, unreadable, too large, or too many at once."""
        self.remote: Counter[str] = Counter()
        """Files left alone because their file system is not local, by its type."""
        self.hung = 0
        """Files whose reading did not end."""

    def start(self) -> None:
        """Begin to hash."""
        self._started = True
        self._lane = _Lane()
        threading.Thread(target=self._run, args=(self._lane,), name="hasher", daemon=True).start()

    def put(self, executables: Iterable[Executable]) -> None:
        """Hand over new executables (draining thread; never waits)."""
        for executable in executables:
            key = (executable.dev, executable.ino, executable.ctime)
            if key in self._known:
                self._known.move_to_end(key)
                continue
            self._known[key] = None
            if len(self._known) > CACHE_ENTRIES:
                self._known.popitem(last=False)
            try:
                self._queue.put_nowait(executable)
            except queue.Full:
                self.unavailable += 1

    def take(self) -> list[bytes]:
        """The ``file_hash`` records finished since the last call (draining thread; never waits)."""
        self._leave_what_hangs()
        records = []
        with suppress(queue.Empty):
            while True:
                records.append(self._done.get_nowait())
        return records

    def describe(self) -> dict[str, Any]:
        """What was hashed and what was not, and why, for the heartbeat."""
        return {
            "hashed": self.hashed,
            "unavailable": self.unavailable,
            "remote": dict(self.remote),
            "hung": self.hung,
            "stopped": self._started and self._lane is None,
        }

    def _leave_what_hangs(self) -> None:
        lane = self._lane
        since = lane.since_s if lane is not None else None
        if lane is not None and since is not None and time.monotonic() - since > HANGS_AFTER_S:
            lane.left_behind = True
            self._hung.append(lane)
            self.hung += 1
            self._lane = None
        self._hung = [hung for hung in self._hung if hung.since_s is not None]
        if self._started and self._lane is None and len(self._hung) < MAX_HUNG:
            self.start()

    def _run(self, lane: _Lane) -> None:
        """A thread's body; ends when it was left behind."""
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)  # per thread on Linux
        try:
            while not lane.left_behind:
                large = bool(self._large) and self._queue.empty()
                self._enter(self._large.popleft() if large else self._queue.get(), lane, large)
        finally:
            lane.since_s = None

    def _enter(self, wanted: Executable, lane: _Lane, large: bool) -> None:
        record = self.hash(wanted, lane, large)
        if lane.left_behind:
            return  # counted as hung
        if isinstance(record, bytes):
            self.hashed += 1
            self._done.put(record)
        elif record is Later:
            if len(self._large) < LARGE_ENTRIES:
                self._large.append(wanted)
            else:
                self.unavailable += 1
        elif record is None:
            self.unavailable += 1

    def hash(self, wanted: Executable, lane: _Lane | None = None, large: bool = True) -> bytes | type[Later] | None:
        """The ``file_hash`` record of one executable.

        Args:
            wanted: the file state.
            lane: the thread's; told of each step.
            large: whether a large file may be read now; if so, small ones that come meanwhile go first.

        Returns:
            `Later` for a large file that may not; None when there is no hash to be had.
        """
        lane = lane or _Lane()
        kind = filesystem(wanted.dev, wanted.pid)
        if kind is not None and kind not in LOCAL_FILESYSTEMS:
            if kind in self.remote or len(self.remote) < 16:
                self.remote[kind] += 1
            else:
                self.remote["other"] += 1
            return None
        lane.since_s = time.monotonic()
        fd = open_executable(wanted)
        if fd is None:
            lane.since_s = None
            return None
        try:
            size = os.fstat(fd).st_size
            if size > MAX_FILE_BYTES:
                return None
            if size > LARGE_BYTES and not large:
                return Later
            digest = self._sha256()
            length = 0
            while True:
                lane.since_s = None
                if size > LARGE_BYTES:
                    with suppress(queue.Empty):
                        while not lane.left_behind:
                            self._enter(self._queue.get_nowait(), lane, False)
                time.sleep(self._budget.spend(_CHUNK, time.monotonic()))
                lane.since_s = time.monotonic()
                data = os.read(fd, _CHUNK)
                if not data:
                    break
                digest.update(data)
                length += len(data)
                if length > MAX_FILE_BYTES:
                    return None
            if os.fstat(fd).st_ctime_ns != wanted.ctime:
                return None  # written to while it was read
        except OSError:
            return None
        finally:
            os.close(fd)
            lane.since_s = None
        return encode_event(
            "file_hash",
            time=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            pid=wanted.pid,
            ino=wanted.ino,
            dev=wanted.dev,
            ctime=wanted.ctime,
            length=length,
            sha256=digest.digest(),
        )
