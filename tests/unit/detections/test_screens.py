"""What a screen or a narrow selector drops, `confirm` would have passed over: detections are the same without them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vedette_detector.detectors.host_mounts import ContainerMountsHostDirectory
from vedette_detector.detectors.new_binary import NewBinaryExecuted
from vedette_detector.detectors.reverse_shell import ReverseShell, _operands
from vedette_detector.engine.context import EngineSettings
from vedette_detector.engine.engine import Engine
from vedette_detector.engine.selector import Selector
from vedette_detector.engine.text import split_args
from vedette_detector.sigma.rule_tests import encode_events, make_header
from vedette_events import _native
from vedette_events.columns import Heap
from vedette_events.schema import MountOp

SLOW = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class EveryShell(ReverseShell):
    screen = None  # type: ignore[assignment]


class EveryBinary(NewBinaryExecuted):
    screen = None  # type: ignore[assignment]


class EveryMount(ContainerMountsHostDirectory):
    selectors = (Selector("mount"),)


def found(detector: Any, events: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    unbounded = EngineSettings(confirm_budget_s=1e9)
    outcome = Engine(detectors=[detector], settings=unbounded).process(make_header(), encode_events(events)[0])
    assert outcome.errors == []
    return [(d.time_ns, d.process["pid"], d.description, d.key, d.severity) for d in outcome.detections]


# -- shells --------------------------------------------------------------------------------------------------------

WORDS = [b"-c", b"-i", b"-s", b"-", b"+", b"+o", b"-o", b"-O", b"--rcfile", b"--norc", b"-ec", b"+c", b"id", b"x.sh"]
WORDS += [b"", b"sh", b"ash", b"busybox", b"-login", b"--", b'BEGIN{s="/inet/tcp/0/a/1"}']
arguments = st.lists(st.sampled_from(WORDS), max_size=5)


@SLOW
@given(
    st.lists(
        st.tuples(st.sampled_from([b"/bin/sh", b"/bin/busybox", b"busybox", b"/x/notbusybox"]), arguments), min_size=1
    ),
    st.booleans(),
)
def test_arguments_of_shells_are_read_in_c_as_in_python(execs: list[tuple[bytes, list[bytes]]], cut: bool) -> None:
    tails = [b"".join(a + b"\0" for a in argv) for _, argv in execs]
    if cut:  # an argument vector that was too long ends anywhere
        tails = [tail[:-1] for tail in tails]
    paths, argvs = Heap.of([path for path, _ in execs]), Heap.of(tails)
    rows = b"".join(n.to_bytes(4, "little") for n in range(len(execs)))
    flags = _native.shell_arguments(paths.data, paths.offsets, argvs.data, argvs.offsets, rows)
    for (path, _), tail, flag in zip(execs, tails, flags, strict=True):
        argv = split_args(tail)
        busybox = path.rsplit(b"/", 1)[-1] == b"busybox"
        assert bool(flag & _native.SHELL_BUSYBOX) == busybox
        assert bool(flag & _native.SHELL_DASH_C) == (len(argv) >= 3 and argv[1] == b"-c")
        if not busybox:
            assert bool(flag & _native.SHELL_GIVEN) == bool(_operands(path, argv))


PROGRAMS = [
    "/bin/bash",
    "/usr/bin/dash",
    "/bin/busybox",
    "/usr/bin/gawk",
    "/usr/bin/nc",
    "/tmp/x",
    "/usr/bin/cat",
    "/srv/y",
]


@st.composite
def actions(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Shells and what may be at their ends, joined at random by few pipes, sockets and parents."""
    out: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 8))):
        pid = draw(st.integers(1000, 1004))
        if draw(st.integers(0, 3)) == 0:
            out.append({"event": "connect", "family": 2, "raddr": "203.0.113.66", "rport": 4444, "sock_type": 1})
            out[-1] |= {"pid": pid, "sock_ino": draw(st.sampled_from([77, 78]))}
            continue
        values: dict[str, Any] = {"event": "exec", "pid": pid, "ppid": draw(st.integers(999, 1004))}
        values |= {"path": draw(st.sampled_from(PROGRAMS)), "argv": draw(arguments)}
        for end in ("stdin", "stdout", "stderr"):
            values[f"{end}_kind"] = draw(st.sampled_from([1, 2, 3, 3, 3, 4, 5, 6, 8]))
            values[f"{end}_ino"] = draw(st.sampled_from([61, 62, 63, 77]))
        values |= {"sock_ino": 77, "family": 2, "raddr": "203.0.113.66", "rport": 4444, "laddr": "198.51.100.1"}
        out.append({**values, "lport": 51000, "container": draw(st.booleans())})
    return out


@SLOW
@given(actions())
def test_the_screen_of_shells_loses_no_reverse_shell(events: list[dict[str, Any]]) -> None:
    assert found(ReverseShell(), events) == found(EveryShell(), events)


def test_gawk_is_found_behind_the_screen_whether_its_start_is_known_or_not() -> None:
    gawk = {"event": "exec", "path": "/usr/bin/gawk", "pid": 900, "argv": ["gawk", 'BEGIN{s="/inet/tcp/0/a/1"}']}
    connect = {"event": "connect", "pid": 900, "family": 2, "raddr": "203.0.113.66", "rport": 4444, "sock_type": 1}
    pipes = {"stdin_kind": 3, "stdin_ino": 61, "stdout_kind": 3, "stdout_ino": 62}
    shell = {"event": "exec", "path": "/bin/sh", "argv": ["sh", "-c", "id"], "pid": 901, "ppid": 900, **pipes}
    assert len(found(ReverseShell(), [gawk, connect, shell])) == 1
    # Another program took the process over before: what counts is what it was when the shell began.
    other = {"event": "exec", "path": "/usr/bin/tar", "pid": 900, "argv": ["tar"]}
    assert found(ReverseShell(), [gawk, connect, other, shell]) == []
    assert len(found(ReverseShell(), [gawk, connect, shell, other])) == 1
    # A process that gawk forked has gawk's program.
    forked = {"event": "fork", "pid": 900, "child_pid": 902, "child_start": 5}
    connected = {**connect, "pid": 902, "start": 5}
    events = [gawk, forked, connected, {**shell, "ppid": 902, "parent_start": 5}]
    assert found(ReverseShell(), events) == found(EveryShell(), events)


# -- new programs --------------------------------------------------------------------------------------------------


@st.composite
def programs(draw: st.DrawFn) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 6))):
        path = draw(st.sampled_from(["/tmp/x", "/var/tmp/y", "/usr/bin/env"]))
        if draw(st.booleans()):
            out.append({"event": "open", "pid": 900, "path": path, "oflags": 0o1101, "ino": 5, "dev": 3})
            continue
        changed = draw(st.sampled_from([0, 1, 1_700_000_000 * 10**9, 1_700_000_399 * 10**9, 1_700_001_000 * 10**9]))
        bits = draw(st.sampled_from([0, 1, 3, 7]))
        out.append({"event": "exec", "path": path, "ino": 5, "dev": 3, "ctime": changed, "file_bits": bits})
        out[-1]["container"] = draw(st.booleans())
    return out


@SLOW
@given(programs())
def test_the_screen_of_programs_loses_no_new_one(events: list[dict[str, Any]]) -> None:
    assert found(NewBinaryExecuted(), events) == found(EveryBinary(), events)


# -- mounts --------------------------------------------------------------------------------------------------------

SOURCES = [
    "/hostfs/etc",
    "/host-root",
    "/rootfs",
    "/mnt/host/x",
    "/node-root",
    "/noderoot",
    "/srv",
    "",
    "tmpfs",
    "/HOST",
]
SOURCES += ["/proc/1/root", "/proc/self/fd/3", "/proc/self/fd/root", "/a/proc/77/cwd/etc", "/proc/1/task/2/root"]
SOURCES += ["/proc/self/root", "/var/lib/kubelet/pods", "/var/lib/docker", "/var/lib/containers", "/var/lib/containerd"]
SOURCES += [
    "/etc/kubernetes",
    "/run/containerd/x",
    "/run/crio",
    "/run/k3s",
    "/var/lib/rancher",
    "/dev/sda1",
    "/dev/pts",
]
FILE_SYSTEMS = ["", "ext4", "tmpfs", "fuse.x", "source", "EXT4"]
FLAGS = [0, 1, 32, 4096, 4096 | 16384, 4096 | 32, 8192, 1 << 18, 1 << 18 | 4096]


@pytest.mark.parametrize("op", [MountOp.MOUNT, MountOp.OPEN_TREE, MountOp.FSOPEN, MountOp.FSCONFIG])
def test_the_selectors_of_mounts_lose_no_mount_of_the_host(op: MountOp) -> None:
    combinations = itertools.product(SOURCES, FILE_SYSTEMS, FLAGS, [5, -1])
    events = [
        {
            "event": "mount",
            "op": op,
            "source": source,
            "target": "/mnt",
            "fstype": fstype,
            "mount_flags": flags,
            "result": result,
            "fs_fd": 5,
            "pid": 1000 + number,
            "container": True,
        }
        for number, (source, fstype, flags, result) in enumerate(combinations)
    ]
    wide = found(EveryMount(), events)
    assert wide != []
    assert found(ContainerMountsHostDirectory(), events) == wide
