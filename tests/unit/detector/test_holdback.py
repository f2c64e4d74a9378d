"""Order is kept for each key, and others pass."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from vedette_detector.holdback import HoldBack


def test_a_key_comes_out_whole_and_in_order() -> None:
    held: HoldBack[str, int] = HoldBack()
    for key, item in (("a", 1), ("b", 2), ("a", 3)):
        held.hold(key, item)
    held.release("a")
    held.hold("a", 4)
    assert (held.holds("a"), held.holds("b"), len(held)) == (True, True, 4)
    assert held.released() == [1, 3, 4]
    assert (held.holds("a"), held.holds("b"), held.released(), len(held)) == (False, True, [], 1)


def test_a_key_that_is_not_held_is_released_to_no_effect() -> None:
    held: HoldBack[str, int] = HoldBack()
    held.release("a")
    held.hold("a", 1)
    assert held.released() == []
    assert held.holds("a")


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("hrt"), st.sampled_from("abc")), max_size=60))
def test_nothing_is_lost_doubled_or_overtaken(steps: list[tuple[str, str]]) -> None:
    held: HoldBack[str, tuple[str, int]] = HoldBack()
    out: list[tuple[str, int]] = []
    put = 0
    for step, key in [*steps, *(("r", k) for k in "abc"), ("t", "")]:
        if step == "h":
            held.hold(key, (key, put))
            put += 1
        elif step == "r":
            held.release(key)
        else:
            out += held.released()
    assert len(out) == put
    assert len(held) == 0
    for key in "abc":
        numbers = [n for k, n in out if k == key]
        assert numbers == sorted(numbers)
