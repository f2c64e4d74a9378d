"""A file with the layout of a BPF ring buffer, written as the kernel would, for `vedette_events._native.Ring`."""

from __future__ import annotations

import mmap
import os

PAGE = mmap.PAGESIZE
HEADER = 8
BUSY, DISCARD = 1 << 31, 1 << 30


class FileRing:
    """The kernel's side: `put` reserves and commits a sample."""

    def __init__(self, size: int = 1 << 16) -> None:
        self.size = size
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * PAGE + size)
        self._memory = mmap.mmap(self.fd, 2 * PAGE + size)

    @property
    def consumer(self) -> int:
        return int.from_bytes(self._memory[:8], "little")

    @property
    def producer(self) -> int:
        return int.from_bytes(self._memory[PAGE : PAGE + 8], "little")

    def put(self, record: bytes, mark: int = 0) -> bool:
        """Append one sample; False when there is no room, as the kernel would drop it."""
        sample = (len(record) | mark).to_bytes(4, "little") + bytes(4) + record
        sample = sample.ljust(-(-len(sample) // 8) * 8, b"\0")
        producer = self.producer
        if producer + len(sample) - self.consumer > self.size - 1:
            return False
        for i, byte in enumerate(sample):
            self._memory[2 * PAGE + (producer + i) % self.size] = byte
        self._memory[PAGE : PAGE + 8] = (producer + len(sample)).to_bytes(8, "little")
        return True

    def finish(self, position: int) -> None:
        """Take the busy mark from the sample at ``position``."""
        at = 2 * PAGE + position % self.size + 3
        self._memory[at] &= 0x7F

    def close(self) -> None:
        self._memory.close()
        os.close(self.fd)
