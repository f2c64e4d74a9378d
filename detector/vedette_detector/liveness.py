"""Which agents are alive: when each node was last heard of, and the one place that calls a node silent.

What happens within this process is measured by the monotonic clock, so that no setting of the wall clock makes a node
silent or keeps a silent one quiet. Only for what was heard before the process started is the wall clock asked, once, at
the start; from then on that age grows by the monotonic clock as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Heard:
    """What is known of one node."""

    at_ns: int
    """When the newest heartbeat came, wall clock, ns since the epoch; for showing only."""
    heartbeat: dict[str, Any]
    mark_s: float
    """The same on the monotonic clock; lies before the start of the process for what was heard before it."""
    agent_mark_s: float
    """When this agent's process was first heard of, monotonic clock."""


@dataclass
class Liveness:
    """Newest heartbeats and newest batches of all nodes.

    Args:
        silent_after_s: time without a heartbeat after which a node counts as silent.
        known: what an earlier process has stored: node → (wall clock in ns, heartbeat).
        batches: node → wall clock in ns of the newest batch that an earlier process applied.
    """

    silent_after_s: float
    known: Mapping[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    batches: Mapping[str, int] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    wall_ns: Callable[[], int] = time.time_ns

    def __post_init__(self) -> None:
        now, wall = self.clock(), self.wall_ns()
        self.started_s = now

        def mark(at_ns: int) -> float:
            # A clock that was set back while no detector ran must not make an age negative.
            return now - max(0, wall - at_ns) / 1e9

        self._heard = {node: Heard(at, heartbeat, mark(at), mark(at)) for node, (at, heartbeat) in self.known.items()}
        self._batch_mark = {node: mark(at) for node, at in self.batches.items()}

    def heartbeat(self, node: str, heartbeat: dict[str, Any]) -> float | None:
        """Take a heartbeat; returns the seconds since the one before if the node was silent by then."""
        age = self.age_s(node)
        before, now = self._heard.get(node), self.clock()
        same = before is not None and _process(before.heartbeat) == _process(heartbeat)
        since = before.agent_mark_s if before is not None and same else now
        self._heard[node] = Heard(self.wall_ns(), heartbeat, now, since)
        return age if age is not None and age > self.silent_after_s else None

    def batch(self, node: str) -> None:
        """A batch of the node was applied."""
        self._batch_mark[node] = self.clock()

    def heard(self, node: str) -> Heard | None:
        """The newest heartbeat of a node; None when none ever came."""
        return self._heard.get(node)

    def age_s(self, node: str) -> float | None:
        """Seconds since the newest heartbeat; None when none ever came."""
        heard = self._heard.get(node)
        return max(0.0, self.clock() - heard.mark_s) if heard is not None else None

    def agent_age_s(self, node: str) -> float | None:
        """Seconds since the agent's process was first heard of; None when no heartbeat ever came."""
        heard = self._heard.get(node)
        return max(0.0, self.clock() - heard.agent_mark_s) if heard is not None else None

    def batch_age_s(self, node: str) -> float | None:
        """Seconds since the newest batch was applied; None when none ever came."""
        mark = self._batch_mark.get(node)
        return max(0.0, self.clock() - mark) if mark is not None else None

    def sign_age_s(self, node: str) -> float | None:
        """Seconds since the node gave any sign, a heartbeat or a batch; None when it never did."""
        return min((age for age in (self.age_s(node), self.batch_age_s(node)) if age is not None), default=None)

    def silent(self, node: str) -> bool:
        """Whether the node's agent does not report: no heartbeat for too long, or never one."""
        age = self.age_s(node)
        return age is None or age > self.silent_after_s

    def before_start(self, age_s: float) -> bool:
        """Whether that long ago lies before this process."""
        return self.clock() - age_s < self.started_s

    @property
    def running_s(self) -> float:
        """Seconds since the process started."""
        return self.clock() - self.started_s

    @property
    def nodes(self) -> list[str]:
        """The nodes that a heartbeat or a batch has come from."""
        return sorted({*self._heard, *self._batch_mark})

    def forget(self, node: str) -> None:
        """Remove a node."""
        self._heard.pop(node, None)
        self._batch_mark.pop(node, None)


def _process(heartbeat: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(heartbeat.get(name) for name in ("boot_id", "pid", "started_at"))
