"""Masks on columns agree with masks on values; selectors are checked against the schema."""

import numpy as np
import pytest

from vedette_detector.engine.selector import AnyLiteral, Mask, Selector, SelectorError
from vedette_detector.sigma.condition import Conjunction, Number

VALUES = [0, 1, 2, 3, 5, 7, 127, 128, 255, 256, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, -1, -2, -128]


@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "u8", "i4", "i8"])
@pytest.mark.parametrize("op", ["eq", "ne", "lt", "le", "gt", "ge", "any_bits", "all_bits", "no_bits"])
def test_a_column_lets_through_what_each_value_passes(kind: str, op: str) -> None:
    info = np.iinfo(kind)
    column = np.array([v for v in VALUES if info.min <= v <= info.max], dtype=kind)
    for value in VALUES:
        mask = Mask("uid", op, value)  # type: ignore[arg-type]
        expected = [mask.holds(int(v)) for v in column]
        found = mask.evaluate(column).tolist()
        if info.min < 0 and not info.min <= value <= info.max and op.endswith("bits"):
            assert all(got or not wanted for got, wanted in zip(found, expected, strict=True))
        else:
            assert found == expected


@pytest.mark.parametrize("op", ["in_", "not_in"])
@pytest.mark.parametrize("values", [(), (1,), (0, 3, 255, 256, -1), tuple(range(0, 300, 3))])
def test_sets_agree_too(op: str, values: tuple[int, ...]) -> None:
    column = np.arange(256, dtype=np.uint8)
    mask = Mask("uid", op, values)  # type: ignore[arg-type]
    assert mask.evaluate(column).tolist() == [mask.holds(v) for v in range(256)]


@pytest.mark.parametrize("op", ["eq", "ne", "lt", "le", "gt", "ge", "any_bits", "all_bits"])
@pytest.mark.parametrize("number", [0, 1, 2, 3, 64])
def test_the_opposite_of_a_number_condition_loses_nothing(op: str, number: int) -> None:
    leaf = Number("exec", "uid", op, number)  # type: ignore[arg-type]
    (alternative,) = leaf.necessary("exec", negated=True)
    for value in range(130):
        if not Mask("uid", op, number).holds(value):  # type: ignore[arg-type]
            assert all(mask.holds(value) for mask in alternative.masks)
    assert (alternative == Conjunction()) == (op == "all_bits")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Selector("nothing"), "there is no event type 'nothing'"),
        (lambda: Selector("exec", (Mask("nope", "eq", 1),)), "exec has no field 'nope'"),
        (lambda: Selector("exec", (Mask("comm", "eq", 1),)), "exec.comm: eq does not apply to comm"),
        (lambda: Selector("exec", (Mask("raddr", "eq", 1),)), "exec.raddr: eq does not apply to addr"),
        (lambda: Selector("exec", (Mask("uid", "net", ("10.0.0.0/8",)),)), "exec.uid: net does not apply to u32"),
        (lambda: Selector("exec", literals=(AnyLiteral(("dir",), frozenset({b"x"})),)), "exec has no tail 'dir'"),
        (lambda: Selector("open", threat="ip"), "open has no remote address"),
        (lambda: Selector("exec", threat="domain"), "threat='domain' applies to dns events only"),
        (lambda: AnyLiteral(("path",), frozenset({b"\0"})), "an empty literal occurs everywhere"),
        (lambda: AnyLiteral((), frozenset({b"x"})), "AnyLiteral needs at least one tail and one literal"),
        (lambda: Mask("uid", "is", 1), "mask on uid: unknown operator 'is'"),  # type: ignore[arg-type]
        (lambda: Mask("uid", "eq", (1,)), "mask on uid: eq takes an int"),
        (lambda: Mask("uid", "in_", 1), "mask on uid: in_ takes a tuple of ints"),
    ],
)
def test_mistakes_are_named(make: object, message: str) -> None:
    with pytest.raises(SelectorError) as caught:
        make()  # type: ignore[operator]
    assert str(caught.value) == message
