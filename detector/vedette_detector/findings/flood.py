"""Bounds how many different findings one resource can cause.

Whoever runs code in a container chooses the paths and names that aggregation keys are made of, and could fill the
database, and hide one finding among thousands, by varying them. Beyond the bound, further findings of the same type
and resource become occurrences of one finding that says so.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

OVERFLOW_KEY = ("(many different)",)
_IDS_KEPT = 500_000
"""Finding ids remembered over all resources (some 50 MB); beyond that the resource heard of longest ago goes."""


class FloodGate:
    """Counts different findings for each type and resource in periods of fixed length."""

    def __init__(self, limit: int, period_s: float = 3600.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._period_s = period_s
        self._clock = clock
        self._seen: OrderedDict[tuple[str, str], tuple[float, set[str]]] = OrderedDict()
        self._total = 0

    def admits(self, finding_type: str, resource: str, finding_id: str) -> bool:
        """Whether a finding may stand for itself."""
        key, now = (finding_type, resource), self._clock()
        began, ids = self._seen.get(key, (now, set()))
        if now - began >= self._period_s:
            self._total -= len(ids)
            began, ids = now, set()
        self._seen[key] = (began, ids)
        self._seen.move_to_end(key)
        if finding_id in ids:
            return True
        if len(ids) >= self.limit:
            return False
        ids.add(finding_id)
        self._total += 1
        while self._total > _IDS_KEPT and len(self._seen) > 1:
            _, (_, forgotten) = self._seen.popitem(last=False)
            self._total -= len(forgotten)
        return True

    @property
    def note(self) -> str:
        """What the finding that takes the rest says."""
        return (
            f"More than {self.limit} different findings of this type came from this resource within "
            f"{self._period_s / 60:.0f} minutes: the further ones are occurrences of this one."
        )
