"""SHA-256 of executables that were run or mapped, once per file state, in the background and within a budget.

The draining thread hands over what the ring's C code has seen for the first time. The file is opened through
``/proc/<pid>/exe``, else by its path below ``/proc/<pid>/root``, and only counts when inode and change time are still
those of the event: a process that has ended, or a file that was changed since, has no hash rather than a wrong one.
Files that the agent's user may not read have none either.
"""

from __future__ import annotations

import os
import queue
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from vedette_events.encode import encode_event

MAX_FILE_BYTES = 256 << 20
"""Larger files are not hashed: no executable that anybody was sent is as large, and one would use up many seconds."""

CACHE_ENTRIES = 8192
QUEUE_ENTRIES = 4096
_CHUNK = 256 << 10


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


class Hasher(threading.Thread):
    """Hashes what is `put` and keeps the records until they are `take`-n."""

    def __init__(self, bytes_per_s: int) -> None:
        super().__init__(name="hasher", daemon=True)
        import hashlib  # brings OpenSSL, which an agent that hashes nothing does without

        self._sha256 = hashlib.sha256
        self._budget = Budget(bytes_per_s)
        self._queue: queue.Queue[Executable] = queue.Queue(QUEUE_ENTRIES)
        self._done: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._known: OrderedDict[tuple[int, int, int], None] = OrderedDict()
        self.hashed = 0
        """Files hashed."""
        self.unavailable = 0
        """Files that were gone, changed, unreadable, too large, or too many at once."""

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
        """The ``file_hash`` records finished since the last call."""
        records = []
        with suppress(queue.Empty):
            while True:
                records.append(self._done.get_nowait())
        return records

    def run(self) -> None:
        """The thread's body."""
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)  # per thread on Linux
        while True:
            record = self.hash(self._queue.get())
            if record is None:
                self.unavailable += 1
            else:
                self.hashed += 1
                self._done.put(record)

    def hash(self, wanted: Executable) -> bytes | None:
        """The ``file_hash`` record of one executable, or None when there is none to be had."""
        fd = open_executable(wanted)
        if fd is None:
            return None
        try:
            if os.fstat(fd).st_size > MAX_FILE_BYTES:
                return None
            digest = self._sha256()
            length = 0
            while True:
                time.sleep(self._budget.spend(_CHUNK, time.monotonic()))
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
