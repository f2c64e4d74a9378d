"""Masks whose values change while the engine runs: what a detector has begun to watch.

A detector that has seen half of something (a shell on pipes, whose far end has not connected yet) must be asked again
about the other half, which alone looks like nothing. It notes the process or inode here, and the prefilter, which
evaluates masks on whole columns, lets just the events through that carry it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vedette_detector.engine.selector import Mask


class WatchedValues(Mask):
    """Passes where a field has one of the values that are watched at the moment; none at first.

    Behaves as any `Mask` for the prefilter. Equal only to itself, so that plans never share it by accident.
    """

    def __init__(self, field: str) -> None:
        super().__init__(field, "ne", -1)
        object.__setattr__(self, "_values", {})
        object.__setattr__(self, "_sorted", None)

    _values: dict[int, int]
    _sorted: bytes | None

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def add(self, value: int) -> None:
        """Begin to watch a value; as many `discard` calls end it."""
        self._values[value] = self._values.get(value, 0) + 1
        object.__setattr__(self, "_sorted", None)

    def discard(self, value: int) -> None:
        """Stop watching a value that was added once."""
        left = self._values.get(value, 0) - 1
        if left > 0:
            self._values[value] = left
        else:
            self._values.pop(value, None)
        object.__setattr__(self, "_sorted", None)

    def __len__(self) -> int:
        return len(self._values)

    def holds(self, value: int) -> bool:
        """Tell whether one value is watched."""
        return value in self._values

    def evaluate(
        self, column: np.ndarray[Any, Any], family: np.ndarray[Any, Any] | None = None
    ) -> np.ndarray[Any, Any]:
        """Tell which values of a column, shape (N,), are watched; bool array of the same shape."""
        known = np.frombuffer(self.watched(), dtype=np.uint64)
        return np.isin(column.astype(np.uint64, copy=False), known)

    def watched(self) -> bytes:
        """The values that are watched now, uint64 ascending."""
        if self._sorted is None:
            object.__setattr__(self, "_sorted", np.array(sorted(self._values), dtype=np.uint64).tobytes())
        assert self._sorted is not None
        return self._sorted
