"""A bound on the work that one node's events can cause.

Confirming a candidate takes Python and looking back: a tenth of a millisecond to two. Who runs code on a node chooses
how many candidates there are, and could keep a worker busy that judges a hundred other nodes too. So each node has a
budget of time for confirming in each period of its own clock. Beyond it:

- containers that have used little so far go on as before, up to twice the budget: a flood in one container must not
  blind the others;
- of everything else the first candidate of each kind (rule, container, program) is examined, and then the 4th, the
  16th and so on; the others are counted, and the count is handed on with what of them was examined.

The clock is that of the node's events, not of the wall: a spool that is being caught up with has a budget for each of
the seconds in which its events happened.
"""

from __future__ import annotations

from dataclasses import dataclass

_CONTAINER_SHARE = 8
"""The eighth part of the budget is a container's own."""
_MOST_KINDS = 1024
"""Different kinds told apart in one period on one node: names of programs are free to choose. Beyond, all are one."""
_OTHERS = (0, b"")


@dataclass(frozen=True)
class Unexamined:
    """Candidates that were not examined.

    Attributes:
        unit: id of the rule or detector.
        event_type: type of the events.
        cgroup: id of the cgroup of the container or service.
        container_id: the container's id; None on the host, or when it is not known.
        program: the program of the last of them, made safe to show.
        count: how many.
    """

    unit: str
    event_type: str
    cgroup: int
    container_id: str | None
    program: str
    count: int


class WorkBudget:
    """The budget of one node.

    Args:
        budget_s: CPU seconds for each period.
        period_s: length of a period, seconds of the node's clock.
    """

    def __init__(self, budget_s: float, period_s: float) -> None:
        self.budget_s = budget_s
        self.period_s = period_s
        self._ends = 0
        self._spent = 0.0
        self._by_cgroup: dict[int, float] = {}
        self._kinds: dict[tuple[int, int, bytes], int] = {}
        self._skipped: dict[tuple[int, int], int] = {}

    def advance(self, now_ns: int) -> None:
        """Begin a new period when the node's clock (ns since boot) has passed the end of this one."""
        if now_ns < self._ends:
            return
        self._ends = now_ns + int(self.period_s * 1e9)
        self._spent = 0.0
        for record in (self._by_cgroup, self._kinds, self._skipped):
            record.clear()

    @property
    def exhausted(self) -> bool:
        """Whether candidates have to be told apart by now."""
        return self._spent >= self.budget_s

    def charge(self, cgroup: int, seconds: float) -> None:
        """Book what examining a candidate has taken."""
        self._spent += seconds
        self._by_cgroup[cgroup] = self._by_cgroup.get(cgroup, 0.0) + seconds

    def admits(self, unit: int, cgroup: int, program: bytes) -> bool:
        """Whether a candidate is examined; counts it when it is not. Ask only when the budget is `exhausted`.

        Args:
            unit: number of the rule or detector.
            cgroup: cgroup of the acting process.
            program: what it runs, as far as the event tells.
        """
        own = self._by_cgroup.get(cgroup, 0.0)
        if own < self.budget_s / _CONTAINER_SHARE and self._spent < 2 * self.budget_s:
            return True
        kind = (unit, cgroup, program)
        if kind not in self._kinds and len(self._kinds) >= _MOST_KINDS:
            kind = (unit, *_OTHERS)
        seen = self._kinds[kind] = self._kinds.get(kind, 0) + 1
        if seen & (seen - 1) == 0 and seen.bit_length() % 2 == 1:  # a power of four
            return True
        self._skipped[(unit, cgroup)] = self._skipped.get((unit, cgroup), 0) + 1
        return False

    def skipped(self, unit: int, cgroup: int) -> int:
        """How many candidates of a unit and container were not examined in this period so far."""
        return self._skipped.get((unit, cgroup), 0)
