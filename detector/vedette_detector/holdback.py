"""Keeps what must wait, and everything of the same kind behind it, in order. Pure."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class HoldBack(Generic[K, T]):
    """Items held back under a key each: the order of one key's items never changes, others pass them.

    An item of a key that is held must be held too (`holds`), until `released` gives all of the key at once.
    """

    def __init__(self) -> None:
        self._held: dict[K, list[T]] = {}
        self._free: dict[K, None] = {}

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def holds(self, key: K) -> bool:
        """Whether something of this key is held."""
        return key in self._held

    def hold(self, key: K, item: T) -> None:
        """Hold an item behind those of its key."""
        self._held.setdefault(key, []).append(item)

    def release(self, key: K) -> None:
        """Let the key's items come with the next `released`, with those that are held until then."""
        if key in self._held:
            self._free[key] = None

    def released(self) -> list[T]:
        """The items of all keys released since the last call; they are held no longer."""
        free, self._free = self._free, {}
        return [item for key in free for item in self._held.pop(key)]
