"""The small judgements that detectors rest on: names, directions, watched values, sources of mounts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette_detector.detectors.connections import of_socket
from vedette_detector.detectors.host_mounts import is_host_source
from vedette_detector.detectors.processes import is_build_tool, is_interpreter_name, is_shell_name
from vedette_detector.detectors.watch import WatchedValues
from vedette_detector.engine.engine import Engine
from vedette_detector.sigma.rule_tests import encode_events, make_header


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"ld", True),
        (b"x86_64-linux-gnu-ld.bfd", True),
        (b"gcc-12", True),
        (b"aarch64-linux-gnu-g++-13", True),
        (b"rustc", True),
        (b"sold", False),
        (b"build", False),
        (b"ldapsearch", False),
    ],
)
def test_build_tools_are_known_by_name_with_target_and_version(name: bytes, expected: bool) -> None:
    assert is_build_tool(name) is expected


@pytest.mark.parametrize(
    ("name", "shell", "interpreter"),
    [
        (b"bash", True, False),
        (b"ksh93", True, False),
        (b"zsh-5.9", True, False),
        (b"python3.11", False, True),
        (b"python3-config", False, False),
        (b"kworker", False, False),
    ],
)
def test_shells_and_interpreters(name: bytes, shell: bool, interpreter: bool) -> None:
    assert (is_shell_name(name), is_interpreter_name(name)) == (shell, interpreter)


@pytest.mark.parametrize(
    ("source", "fstype", "flags", "expected"),
    [
        (b"/dev/sda1", b"ext4", 0, "a disk"),
        (b"/dev/mapper/vg-root", b"", 0, "a device"),
        (b"/dev/shm", b"", 0, None),
        (b"/dev/fuse", b"fuse.sshfs", 0, None),
        (b"tmpfs", b"tmpfs", 0, None),
        (b"/host/etc", b"", 4096, "a directory of the host"),
        (b"/hostname", b"", 4096, None),
        (b"/proc/1/root/etc", b"", 4096, "a directory of the host"),
        (b"/proc/self/ns/net", b"", 4096, None),
        (b"/srv/data", b"", 4096, None),
    ],
)
def test_sources_of_mounts(source: bytes, fstype: bytes, flags: int, expected: str | None) -> None:
    assert is_host_source(source, fstype, flags) == expected


SOCKET: dict[str, Any] = {
    "event": "exec",
    "path": "/bin/sh",
    "stdin_kind": 5,
    "sock_ino": 77,
    "family": 2,
    "raddr": "203.0.113.66",
    "rport": 4444,
    "lport": 51000,
}
OUT: dict[str, Any] = {"event": "connect", "family": 2, "raddr": "203.0.113.66", "rport": 4444, "sock_ino": 77}
IN: dict[str, Any] = {"event": "accept", "family": 2, "raddr": "203.0.113.66", "rport": 4444, "sock_ino": 77}


@pytest.mark.parametrize(
    ("before", "socket", "direction", "seen"),
    [
        ([OUT], {}, "outbound", True),
        ([IN], {}, "inbound", True),
        ([IN, OUT], {}, "outbound", True),
        ([OUT, IN], {}, "inbound", True),
        ([{**OUT, "result": -111}], {}, "outbound", False),
        ([{**OUT, "sock_ino": 5}], {}, "outbound", True),
        ([{**OUT, "sock_ino": 5, "pid": 7, "rport": 40000}], {"lport": 22, "rport": 40000}, "inbound", False),
        ([{**IN, "sock_ino": 5, "lport": 51000}], {}, "inbound", True),
        ([{"event": "listen", "family": 2, "lport": 51000}], {}, "inbound", False),
        ([], {}, "outbound", False),
        ([], {"lport": 80, "rport": 40000}, "inbound", False),
        ([], {"lport": 80, "rport": 90}, "unknown", False),
    ],
)
def test_direction_of_a_socket(
    before: list[dict[str, Any]], socket: dict[str, Any], direction: str, seen: bool
) -> None:
    engine = Engine()
    records, _ = encode_events([*before, {**SOCKET, **socket}])
    engine.process(make_header(), records)
    history = engine.history("test-node", bytes(16))
    (event,) = history.events("exec")

    found = of_socket(history, event, [event.process])

    assert found.direction == direction
    assert (found.evidence is not None) is seen


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=30), st.lists(st.integers(0, 5), max_size=10))
def test_watched_values_count_who_watches(steps: list[tuple[bool, int]], column: list[int]) -> None:
    watched = WatchedValues("pid")
    expected: list[int] = []
    for adds, value in steps:
        if adds:
            watched.add(value)
            expected.append(value)
        else:
            watched.discard(value)
            if value in expected:
                expected.remove(value)

    found = watched.evaluate(np.array(column, dtype=np.uint32))

    assert found.tolist() == [value in expected for value in column]
    assert len(watched) == len(set(expected))
    assert all(watched.holds(value) for value in expected)


def test_watched_values_are_equal_only_to_themselves() -> None:
    one, two = WatchedValues("pid"), WatchedValues("pid")

    assert one == one
    assert one != two
    assert len({one, two}) == 2
