"""The filters document for agents, derived from selectors."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest

from vedette_detector.engine.selector import AnyLiteral, Mask, Selector
from vedette_detector.filters import derive, open_names


@dataclass(frozen=True)
class Unit:
    selectors: tuple[Selector, ...]
    open_names: tuple[str, ...] = ()


def opening(*groups: tuple[bytes, ...], masks: tuple[Mask, ...] = (), tail: str = "path") -> Selector:
    return Selector("open", masks, tuple(AnyLiteral((tail,), frozenset(group)) for group in groups))


WRITES = Mask("oflags", "any_bits", os.O_WRONLY | os.O_RDWR)


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        (opening((b"/etc/shadow\0", b"/etc/gshadow\0")), {"shadow", "gshadow"}),
        (opening((b"\0/etc/shadow\0",)), {"shadow"}),
        (opening((b"shadow",)), {"shadow"}),
        (opening((b"/.ssh/",)), set()),
        (opening((b"/proc/",), (b"/mem\0",)), {"mem"}),
        (opening((b"/etc/shadow\0",), masks=(WRITES,)), set()),
        (opening((b"/etc/shadow\0",), masks=(Mask("oflags", "no_bits", os.O_WRONLY),)), {"shadow"}),
        (opening((b"/x\0",), tail="dir"), set()),
        (Selector("open"), set()),
        (opening((b"bad\nname\0", b"x" * 300 + b"\0", b"good\0")), {"good"}),
    ],
    ids=str,
)
def test_names_whose_reading_is_wanted(selector: Selector, names: set[str]) -> None:
    assert open_names(selector) == names


def test_the_version_follows_the_content_alone() -> None:
    one, other = Unit((opening((b"/a\0",)),)), Unit((opening((b"/b\0",)),))
    assert derive([one, other]) == derive([other, one, one])
    assert derive([one])["version"] != derive([other])["version"]
    assert derive([])["open_names"] == []


def test_a_unit_may_name_files_itself() -> None:
    assert derive([Unit((), ("docker.sock", "a/b", ""))])["open_names"] == ["docker.sock"]


@pytest.mark.parametrize(
    ("selector", "sockets", "protections"),
    [
        (Selector("socket"), False, False),
        (Selector("socket", (Mask("family", "eq", 17),)), False, False),
        (Selector("socket", (Mask("family", "in_", (2, 17)),)), True, False),
        (Selector("mprotect"), False, False),
        (Selector("mprotect", (Mask("region", "any_bits", 1),)), False, False),
        (Selector("mprotect", (Mask("region", "any_bits", 4),)), False, True),
    ],
    ids=str,
)
def test_ordinary_sockets_and_mappings_are_sent_only_when_a_rule_asks(
    selector: Selector, sockets: bool, protections: bool
) -> None:
    document = derive([Unit((selector,))])
    assert (document["all_sockets"], document["all_mprotect"]) == (sockets, protections)
