"""Threat lists: entries, errors with file and line, trust, reload, and membership of whole columns."""

import ipaddress
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette_detector.engine.history import NodeHistory
from vedette_detector.engine.prefilter import Prefilter
from vedette_detector.engine.selector import Selector
from vedette_detector.threat_lists import ThreatLists, fnv1a, signature
from vedette_events import _native
from vedette_events.columns import split_batch
from vedette_events.encode import encode_event, pack_address

LIST = """# name: Example C2
# threat: Example botnet
198.51.100.7
203.0.113.0/28   # a whole range
2001:db8:1::/48
evil.example,Other family
*.worse.example
e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
"""


def test_entries_are_found_with_their_list_and_threat(tmp_path: Path) -> None:
    (tmp_path / "c2.txt").write_text(LIST)
    (tmp_path / "trusted.txt").write_text("# trusted: yes\n203.0.113.5\nok.evil.example\n")
    lists = ThreatLists.load(tmp_path)
    assert lists.errors == []
    assert [(t.name, t.trusted, t.entries) for t in lists.lists] == [("Example C2", False, 6), ("trusted", True, 2)]

    def found(match: object) -> tuple[str, str, str] | None:
        return (match.list_name, match.threat_name, match.entry) if match else None  # type: ignore[attr-defined]

    botnet = ("Example C2", "Example botnet")
    assert found(lists.lookup_ip("198.51.100.7")) == (*botnet, "198.51.100.7")
    assert found(lists.lookup_ip("203.0.113.9")) == (*botnet, "203.0.113.0/28")
    assert found(lists.lookup_ip("::ffff:203.0.113.9")) == (*botnet, "203.0.113.0/28")
    assert found(lists.lookup_ip("2001:db8:1:2::3")) == (*botnet, "2001:db8:1::/48")
    assert found(lists.lookup_ip("203.0.113.5")) is None
    assert found(lists.lookup_ip("203.0.113.16")) is None
    assert found(lists.lookup_ip("nonsense")) is None
    assert found(lists.lookup_domain("EVIL.example.")) == ("Example C2", "Other family", "evil.example")
    assert found(lists.lookup_domain(b"a.b.evil.example")) == ("Example C2", "Other family", "evil.example")
    assert found(lists.lookup_domain("x.worse.example")) == (*botnet, "worse.example")
    assert found(lists.lookup_domain("ok.evil.example")) is None
    assert found(lists.lookup_domain("notevil.example")) is None
    assert found(lists.lookup_sha256("E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855".lower())) == (
        *botnet,
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    )


def test_bad_lines_are_reported_with_file_and_line_and_the_rest_loads(tmp_path: Path) -> None:
    file = tmp_path / "mixed.csv"
    file.write_text("indicator,threat\n198.51.100.7,x\n999.1.1.1\n10.0.0.1/8\nnot a domain\n\n# fine\nevil.example\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    lists = ThreatLists.load(tmp_path)
    assert [(Path(e.file).name, e.line, e.reason) for e in lists.errors] == [
        ("binary.txt", 0, "NotText"),
        ("mixed.csv", 3, "BadAddress"),
        ("mixed.csv", 4, "BadNetwork"),
        ("mixed.csv", 5, "BadEntry"),
    ]
    assert lists.lookup_ip("198.51.100.7") is not None
    assert lists.lookup_domain("evil.example") is not None


def test_the_signature_changes_with_every_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("198.51.100.7\n")
    first = signature(tmp_path)
    assert ThreatLists.load(tmp_path).signature == first
    file.write_text("198.51.100.8\n")
    os.utime(file, ns=(1, 1))
    assert signature(tmp_path) not in (first, ())
    file.unlink()
    assert signature(tmp_path) == ()
    assert ThreatLists.load(tmp_path).lists == []


def test_several_folders_are_one(tmp_path: Path) -> None:
    for name, entry in (("a", "198.51.100.7"), ("b", "evil.example")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "list.txt").write_text(entry + "\n")
    lists = ThreatLists.load(tmp_path / "a", tmp_path / "b", tmp_path / "missing")
    assert lists.lookup_ip("198.51.100.7") is not None
    assert lists.lookup_domain("evil.example") is not None
    assert len(lists.signature) == 2


addresses = st.one_of(
    st.ip_addresses(v=4),
    st.ip_addresses(v=6),
    st.sampled_from(["198.51.100.7", "198.51.100.8", "2001:db8::1", "2001:db8::2"]).map(ipaddress.ip_address),
)


@given(
    listed=st.lists(addresses, max_size=8),
    prefixes=st.lists(st.integers(0, 128), min_size=8, max_size=8),
    asked=st.lists(addresses, min_size=1, max_size=20),
)
def test_columns_let_through_whatever_a_lookup_finds(listed: list, prefixes: list[int], asked: list) -> None:  # type: ignore[type-arg]
    networks = [
        ipaddress.ip_network((ip, min(prefix, ip.max_prefixlen)), strict=False)
        for ip, prefix in zip(listed, prefixes, strict=False)
    ]
    lists = ThreatLists.of(map(str, networks))
    family = np.array([2 if ip.version == 4 else 10 for ip in asked], dtype=np.uint16)
    raddr = np.frombuffer(b"".join(pack_address(ip) for ip in asked), dtype="<u4").reshape(-1, 4)
    selected = lists.match_ips(family, raddr)
    for ip, passed in zip(asked, selected.tolist(), strict=True):
        plain = ip.ipv4_mapped or ip if ip.version == 6 else ip
        expected = any(plain.version == n.version and plain in n for n in networks)
        assert (lists.lookup_ip(ip) is not None) == expected
        assert passed or not expected


@given(st.lists(st.binary(max_size=30), max_size=20))
def test_hashes_are_those_of_the_prefilter_in_c(names: list[bytes]) -> None:
    assert fnv1a(names).tolist() == [_native.fnv1a(name) for name in names]


@pytest.mark.parametrize(
    ("question", "selected"),
    [("evil.example", True), ("WWW.Evil.Example", True), ("notevil.example", False), ("example", False)],
)
def test_dns_events_are_selected_by_name_or_parent(question: str, selected: bool) -> None:
    labels = b"".join(bytes([len(x)]) + x.encode() for x in question.split("."))
    payload = b"\0\1\1\0\0\1" + bytes(6) + labels + b"\0\0\1\0\1"
    history = NodeHistory("node")
    segments = history.append(split_batch(encode_event("dns", direction=1, payload=payload, time=1)), 0)
    found = Prefilter([[Selector("dns", threat="domain")]]).select(
        "dns", segments["dns"], ThreatLists.of(["evil.example"])
    )
    assert bool(found) == selected


def test_a_quarter_of_a_million_entries_load(tmp_path: Path) -> None:
    ips = [str(ipaddress.IPv4Address(0x0B000000 + 7 * n)) for n in range(200_000)]
    names = [f"host-{n}.evil-{n % 977}.example" for n in range(50_000)]
    (tmp_path / "big.txt").write_text("\n".join(ips + names))
    lists = ThreatLists.load(tmp_path)
    assert lists.lists[0].entries == 250_000
    assert lists.lookup_ip(ips[-1]) is not None
    assert lists.lookup_ip("10.0.0.1") is None
    assert lists.lookup_domain("a." + names[-1]) is not None
    assert len(lists.domain_hashes) == 50_000
