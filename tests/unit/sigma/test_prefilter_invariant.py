"""The prefilter never rejects what the exact check accepts: random rules against random events."""

from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vedette_detector.engine.event import Event
from vedette_detector.engine.history import NodeHistory
from vedette_detector.engine.prefilter import Prefilter
from vedette_detector.engine.segments import Segment
from vedette_detector.sigma.fields import categories
from vedette_detector.sigma.loader import load_rule_text
from vedette_detector.threat_lists import ThreatLists
from vedette_events.columns import split_batch
from vedette_events.encode import encode_event

# Few different pieces, so that rules and events meet often.
PIECES = (
    "/",
    "/usr/bin/",
    "nmap",
    "NMAP",
    ".",
    "..",
    "./",
    "a",
    "B",
    "-c ",
    " ",
    "sh",
    "é",
    "É",
    "k",
    "\u212a",
    "x.y",
    "@",
)
word = st.lists(st.sampled_from(PIECES), max_size=4).map("".join)
raw = st.one_of(word.map(lambda s: s.encode()), st.binary(max_size=6).map(lambda b: b.replace(b"\0", b"x")))
number = st.sampled_from((0, 1, 2, 3, 6, 80, 443, 0x7FFFFFFF, 0xFFFFFFFF))
address = st.sampled_from(("198.51.100.7", "203.0.113.9", "2001:db8::1", "::ffff:198.51.100.7", "0.0.0.0"))


@st.composite
def events(draw: st.DrawFn) -> bytes:
    name = draw(
        st.sampled_from(("exec", "open", "rename", "unlink", "symlink", "link", "chmod", "connect", "dns", "memfd"))
    )
    values: dict[str, Any] = {"pid": draw(number), "uid": draw(number), "result": draw(st.sampled_from((0, -1, 3)))}
    if name == "exec":
        values |= {"path": draw(raw), "argv": draw(st.lists(raw, max_size=4)), "cwd": draw(raw)}
        values |= {"file_bits": draw(st.integers(0, 15)), "filename": draw(raw), "env": draw(st.lists(raw, max_size=2))}
    elif name == "open":
        values |= {"path": draw(raw), "dir": draw(raw), "oflags": draw(st.sampled_from((0, 1, 2, 0o101, 0o1000)))}
    elif name in ("unlink", "chmod"):
        values |= {"path": draw(raw), "dir": draw(raw)}
    elif name == "symlink":
        values |= {"path": draw(raw), "new_path": draw(raw), "new_dir": draw(raw)}
    elif name in ("rename", "link"):
        values |= {"path": draw(raw), "dir": draw(raw), "new_path": draw(raw), "new_dir": draw(raw)}
    elif name == "connect":
        text = draw(address)
        values |= {"family": draw(st.sampled_from((1, 10 if ":" in text else 2))), "raddr": text}
        values |= {"rport": draw(st.sampled_from((80, 443))), "path": draw(st.sampled_from((b"", b"\0"))) + draw(raw)}
    elif name == "dns":
        labels = draw(st.lists(st.sampled_from((b"www", b"EVIL", b"evil", b"k", b"example", b"a.b")), max_size=4))
        name_bytes = b"".join(bytes([len(label)]) + label for label in labels)
        values["payload"] = b"\x12\x34\x01\x00\x00\x01" + bytes(6) + name_bytes + b"\0\0\x01\0\x01"
        values["direction"] = draw(st.sampled_from((1, 2)))
        values["family"] = 2
    else:
        values["name"] = draw(raw)
    return encode_event(name, **values)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\")


@st.composite
def items(draw: st.DrawFn, category: str) -> tuple[str, Any]:
    fields = {name: spec for (_, name), spec in categories()[category].fields.items()}
    name = draw(st.sampled_from(sorted(fields)))
    spec = fields[name]
    if spec.kind == "int":
        modifier = draw(st.sampled_from(("", "|lt", "|lte", "|gt", "|gte", "|neq")))
        value: Any = draw(st.sampled_from((0, 1, 2, 3, 80, 443, -1, 2**40)))
        if draw(st.booleans()) and modifier in ("", "|neq"):
            value = [value, draw(st.sampled_from((1, 6, 443)))]
        if name in ("file_bits", "oflags") and draw(st.booleans()):
            flags = ("OVERLAY", "UPPER", "NO_LOWER") if name == "file_bits" else ("WRITE", "O_CREAT", "O_TRUNC")
            chosen = draw(st.lists(st.sampled_from(flags), min_size=1, max_size=2, unique=True))
            return name + draw(st.sampled_from(("|has", "|has|all"))), chosen
        return name + modifier, value
    if spec.kind == "bool":
        return name, draw(st.booleans())
    if spec.kind == "ip":
        if draw(st.booleans()):
            return f"{name}|cidr", draw(st.sampled_from(("198.51.100.0/24", "2001:db8::/32", "0.0.0.0/0", "::/0")))
        return name, draw(st.lists(address, min_size=1, max_size=3))
    if draw(st.integers(0, 12)) == 0:
        return name, draw(st.sampled_from((None, "")))
    modifier = draw(
        st.sampled_from(
            (
                "",
                "",
                "|contains",
                "|startswith",
                "|endswith",
                "|contains|all",
                "|cased",
                "|re",
                "|re|i",
                "|windash",
                "|base64offset|contains",
                "|neq",
                "|contains|cased",
            )
        )
    )
    if "|re" in modifier:
        return name + modifier, draw(
            st.sampled_from(
                (
                    "nmap",
                    "^/usr/bin/n.ap$",
                    "(nmap|sh)",
                    "nma?p",
                    "[nm]map",
                    "K+",
                    "(?:a|nmap){2}",
                    "(?i)k.?sh",
                    "nm[a-z]{1,2}",
                    "(?:|a)b",
                    "x\\.y",
                    "@sh",
                    "sh|",
                    "/+usr/bin",
                    "a.*nmap",
                )
            )
        )
    wild = st.lists(st.sampled_from((*PIECES, "*", "?")), min_size=1, max_size=4).map("".join)
    values = draw(st.lists(wild, min_size=1, max_size=3))
    if modifier == "|windash":
        values = ["-c" + v for v in values]
    if "base64" in modifier:
        values = [v.replace("*", "").replace("?", "") + "nmap" for v in values]
    return name + modifier, [_escaped(v) for v in values]


@st.composite
def rules(draw: st.DrawFn) -> str:
    category = draw(
        st.sampled_from(
            (
                "process_creation",
                "file_event",
                "network_connection",
                "dns_query",
                "exec",
                "connect",
                "unlink",
                "memfd",
                "file_rename",
                "open",
            )
        )
    )
    selections: dict[str, Any] = {}
    for name in ("alpha", "beta", "gamma"):
        if draw(st.integers(0, 9)) == 0:
            selections[name] = [draw(st.sampled_from(("nmap", "usr*bin", "-c sh")))]  # keywords
        elif draw(st.integers(0, 4)) == 0:
            selections[name] = [dict([draw(items(category))]) for _ in range(2)]
        else:
            selections[name] = dict(draw(st.lists(items(category), min_size=1, max_size=2)))
    condition = draw(
        st.sampled_from(
            (
                "alpha",
                "alpha and beta",
                "alpha or beta",
                "not alpha",
                "alpha and not beta",
                "alpha or not beta",
                "(alpha or beta) and gamma",
                "not (alpha and beta) or gamma",
                "1 of *",
                "all of alpha*",
                "not 1 of *",
                "alpha and not (beta or not gamma)",
            )
        )
    )
    return yaml.safe_dump(
        {
            "title": "Random rule",
            "id": "00000000-0000-4000-8000-000000000000",
            "logsource": {"product": "linux", "category": category},
            "detection": {**selections, "condition": condition},
            "level": "low",
        }
    )


def pairs(prefilter: Prefilter, name: str, segment: Segment) -> set[tuple[int, int]]:
    """The (row, unit) pairs that a prefilter lets through."""
    selected = prefilter.select(name, segment, ThreatLists())
    return {(row, unit) for unit, rows in selected.items() for row in rows.tolist()}


# Tens of milliseconds each on a quiet machine, ten times that on a busy one: more than a test has by default.
@pytest.mark.timeout(900)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(text=rules(), records=st.lists(events(), min_size=1, max_size=12))
def test_prefilter_lets_every_match_through(text: str, records: list[bytes]) -> None:
    loaded = load_rule_text(text)
    assert [str(error) for error in loaded.errors] == []
    rule = loaded.rules[0]
    category = categories()[rule.category]
    prefilter = Prefilter([rule.selectors])
    history = NodeHistory("node")
    segments = history.append(split_batch(b"".join(records)), 0)
    for name, segment in segments.items():
        selected = {row for row, _ in pairs(prefilter, name, segment)}
        if name not in category.masks:
            assert selected == set()
            continue
        for row in range(len(segment.rows)):
            event = Event(name, segment, row, history)
            is_of_category = all(
                mask.evaluate(segment.rows[mask.field][row : row + 1])[0] for mask in category.masks[name]
            )
            if is_of_category and rule.condition.matches(event):
                assert row in selected, (event.as_dict(), rule.selectors)
            if not is_of_category:
                assert row not in selected


@pytest.mark.timeout(900)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(texts=st.lists(rules(), min_size=2, max_size=8), records=st.lists(events(), min_size=1, max_size=12))
def test_many_rules_select_what_each_alone_selects(texts: list[str], records: list[bytes]) -> None:
    rules_ = [load_rule_text(text).rules[0] for text in texts]
    together = Prefilter([rule.selectors for rule in rules_])
    history = NodeHistory("node")
    segments = history.append(split_batch(b"".join(records)), 0)
    for name, segment in segments.items():
        expected = {
            (row, number)
            for number, rule in enumerate(rules_)
            for row, _ in pairs(Prefilter([rule.selectors]), name, segment)
        }
        assert pairs(together, name, segment) == expected
