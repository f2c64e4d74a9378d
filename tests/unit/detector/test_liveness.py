"""Who is silent: decided by what the monotonic clock says, whatever becomes of the wall clock."""

from __future__ import annotations

from typing import Any

import pytest

from vedette_detector.liveness import Liveness

WALL = 1_790_000_000
SECOND = 10**9
HOUR = 3600


class Clocks:
    """A wall clock and a monotonic one, set by the test."""

    def __init__(self) -> None:
        self.wall, self.monotonic = float(WALL), 1000.0

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds

    def liveness(self, **more: Any) -> Liveness:
        return Liveness(30.0, clock=lambda: self.monotonic, wall_ns=lambda: int(self.wall * SECOND), **more)


@pytest.mark.parametrize("jump", [0, -10 * HOUR, 10 * HOUR])
def test_a_wall_clock_that_is_set_makes_nobody_silent_and_nobody_heard(jump: int) -> None:
    clocks = Clocks()
    liveness = clocks.liveness()
    liveness.heartbeat("a", {})
    clocks.pass_(20)
    clocks.wall += jump
    assert (liveness.silent("a"), liveness.age_s("a")) == (False, 20.0)
    clocks.pass_(11)
    assert (liveness.silent("a"), liveness.age_s("a")) == (True, 31.0)
    assert liveness.heartbeat("a", {}) == 31.0
    assert liveness.silent("a") is False


def test_what_was_heard_before_the_start_is_as_old_as_it_was_then() -> None:
    clocks = Clocks()
    known = {"a": ((WALL - 25) * SECOND, {"pid": 1}), "future": ((WALL + HOUR) * SECOND, {})}
    liveness = clocks.liveness(known=known, batches={"a": (WALL - 40) * SECOND})
    assert (liveness.age_s("a"), liveness.batch_age_s("a"), liveness.age_s("future")) == (25.0, 40.0, 0.0)
    clocks.wall -= 10 * HOUR
    clocks.pass_(6)
    assert (liveness.silent("a"), liveness.silent("future")) == (True, False)
    age = liveness.heartbeat("a", {})
    assert age == 31.0
    assert liveness.before_start(31.0) is True
    clocks.pass_(1)
    assert liveness.heartbeat("a", {}) is None


def test_a_gap_that_began_before_the_start_is_known_as_such() -> None:
    clocks = Clocks()
    liveness = clocks.liveness()
    clocks.pass_(10)
    assert [liveness.before_start(age) for age in (9.0, 11.0)] == [False, True]


def test_a_node_that_never_sent_a_heartbeat_is_silent() -> None:
    clocks = Clocks()
    liveness = clocks.liveness()
    liveness.batch("a")
    clocks.pass_(2)
    assert (liveness.silent("a"), liveness.age_s("a"), liveness.sign_age_s("a")) == (True, None, 2.0)
    assert liveness.nodes == ["a"]
    liveness.forget("a")
    assert (liveness.nodes, liveness.sign_age_s("a")) == ([], None)


def test_an_agent_is_as_old_as_its_process() -> None:
    clocks = Clocks()
    liveness = clocks.liveness()
    for pid in (1, 1, 2, 2):
        liveness.heartbeat("a", {"pid": pid})
        clocks.pass_(10)
    assert liveness.agent_age_s("a") == 20.0
