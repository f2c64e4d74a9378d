"""Records that the agent makes itself (snapshot, file hashes), kept until the spool has room for them.

Events of the kernel stay in the ring while the spool is full. These have no ring, so they wait here, in order.
"""

from __future__ import annotations

from collections import deque

from vedette_agent.drain import NO_FLAGS, Batches
from vedette_events.framing import BatchFlags


class OwnRecords:
    """A queue in front of `Batches`, for the draining thread."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._waiting: deque[tuple[bytes, int, BatchFlags]] = deque()

    def put(self, records: bytes, count: int, flags: BatchFlags = NO_FLAGS) -> None:
        """Add ``count`` records; they become one batch."""
        self._waiting.append((records, count, flags))

    def flush(self) -> bool:
        """Append what waits to the spool; False when there was no room for all, which then goes on waiting."""
        while self._waiting:
            records, count, flags = self._waiting[0]
            if not self._batches.append(records, count, flags=flags):
                return False
            self._waiting.popleft()
        return True
