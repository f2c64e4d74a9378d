"""A queue of what many nodes send, in which each has its turn.

One node that sends more than can be processed, because it is broken or hostile, makes itself wait and not the others:
nodes take turns, and a turn is worth the same number of bytes for each (deficit round robin, Shreedhar and Varghese,
SIGCOMM 1995). What one node puts in stays in order.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

TURN = 1 << 20
"""What a turn is worth, in bytes of records: the largest batch that an agent makes of its ring."""


@dataclass
class _Lane(Generic[T]):
    waiting: deque[tuple[T, int]] = field(default_factory=deque)
    credit: int = 0


class FairQueue(Generic[T]):
    """Items of several nodes; for one event loop."""

    def __init__(self, turn: int = TURN) -> None:
        self._turn = turn
        self._lanes: OrderedDict[str, _Lane[T]] = OrderedDict()  # the first is whose turn it is
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return sum(len(lane.waiting) for lane in self._lanes.values())

    def empty(self) -> bool:
        """Whether nothing waits."""
        return not self._lanes

    def put(self, node: str, item: T, size: int) -> None:
        """Append an item of ``size`` bytes to those of its node."""
        self._lanes.setdefault(node, _Lane()).waiting.append((item, size))
        self._filled.set()

    async def wait(self) -> None:
        """Wait until there is something, or `wake` is called."""
        await self._filled.wait()
        if self.empty():
            self._filled.clear()

    def wake(self) -> None:
        """Let `wait` return once."""
        self._filled.set()

    def get(self) -> T:
        """The next item of the node whose turn it is.

        Raises:
            IndexError: nothing waits.
        """
        while self._lanes:
            node, lane = next(iter(self._lanes.items()))
            item, size = lane.waiting[0]
            # Nobody waits behind one that is alone, so it needs no credit and collects no debt.
            alone = len(self._lanes) == 1
            if lane.credit >= size or alone:
                lane.waiting.popleft()
                lane.credit = 0 if alone else lane.credit - size
                if not lane.waiting:
                    del self._lanes[node]
                if not self._lanes:
                    self._filled.clear()
                return item
            self._lanes.move_to_end(node)
            next(iter(self._lanes.values())).credit += self._turn
        raise IndexError("nothing waits")
