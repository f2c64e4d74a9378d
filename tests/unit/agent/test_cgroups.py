"""Where the host's cgroups are found: on hosts with v1, v2 and both, and from containers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette_agent import cgroups
from vedette_agent.cgroups import CgroupMount, choose, from_namespace, parse_mounts

V2_HOST = b"30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
HYBRID_HOST = rb"""31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
35 31 0:32 / /sys/fs/cgroup/memory rw shared:1 - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
41 31 0:38 / /sys/fs/cgroup/my\040unified rw - cgroup2 cgroup2 rw
garbage
"""
# A container on v1 has no cgroup namespace: its own mounts have its path as root.
HYBRID_POD = b"""35 31 0:32 /kubepods/pod1/cid /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory
41 31 0:38 /kubepods/pod1/cid /sys/fs/cgroup/unified ro - cgroup2 cgroup2 rw
"""
HYBRID_POD_WITH_HOST = (
    HYBRID_POD
    + b"""61 60 0:32 / /host/cgroup/memory rw - cgroup cgroup rw,memory
62 60 0:38 / /host/cgroup/unified rw - cgroup2 cgroup2 rw
"""
)
# On v2 it has one: its own cgroup is its root, and the host's is so many levels above.
V2_POD = b"30 24 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n"
V2_POD_WITH_HOST = V2_POD + b"61 60 0:26 /../../../.. /host/cgroup ro - cgroup2 cgroup rw\n"
V2_POD_MOUNTED_OVER = V2_POD + b"61 60 0:26 /../../../.. /sys/fs/cgroup ro - cgroup2 cgroup rw\n"


@pytest.mark.parametrize(
    ("mountinfo", "memory", "unified"),
    [
        (V2_HOST, None, (b"/", b"/sys/fs/cgroup")),
        (HYBRID_HOST, (b"/", b"/sys/fs/cgroup/memory"), (b"/", b"/sys/fs/cgroup/my unified")),
        (
            HYBRID_POD,
            (b"/kubepods/pod1/cid", b"/sys/fs/cgroup/memory"),
            (b"/kubepods/pod1/cid", b"/sys/fs/cgroup/unified"),
        ),
        (HYBRID_POD_WITH_HOST, (b"/", b"/host/cgroup/memory"), (b"/", b"/host/cgroup/unified")),
        (V2_POD, None, (b"/", b"/sys/fs/cgroup")),
        (V2_POD_WITH_HOST, None, (b"/../../../..", b"/host/cgroup")),
        (V2_POD_MOUNTED_OVER, None, (b"/../../../..", b"/sys/fs/cgroup")),
        (b"", None, None),
    ],
)
def test_the_mount_that_shows_most_is_taken(
    mountinfo: bytes, memory: tuple[bytes, bytes] | None, unified: tuple[bytes, bytes] | None
) -> None:
    mounts = parse_mounts(mountinfo)
    found = [choose(mounts, hierarchy) for hierarchy in (1, 2)]

    assert [(m.root, m.path) if m else None for m in found] == [memory, unified]


def test_a_named_directory_is_the_only_place_searched() -> None:
    mounts = parse_mounts(HYBRID_POD_WITH_HOST)

    assert choose(mounts, 2, b"/sys/fs/cgroup") == CgroupMount(2, b"/kubepods/pod1/cid", b"/sys/fs/cgroup/unified")
    assert choose(mounts, 2, b"/host/cgroup/unified") == CgroupMount(2, b"/", b"/host/cgroup/unified")
    assert choose(mounts, 2, b"/host/cgrou") is None


def test_this_machine_shows_all_of_its_cgroups() -> None:
    mount = cgroups.find(2) or cgroups.find(1)
    assert mount is not None

    assert cgroups.shows_all(mount)
    assert cgroups.namespace_path(mount) == b""


def test_a_part_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    assert not cgroups.shows_all(CgroupMount(2, b"/", os.fsencode(tmp_path)))
    assert not cgroups.shows_all(CgroupMount(2, b"/", os.fsencode(tmp_path / "absent")))


@pytest.mark.parametrize(
    ("path", "namespace", "expected"),
    [
        (b"/kubepods/pod1/cid", b"", b"/kubepods/pod1/cid"),
        (b"/", b"/kubepods/pod1/cid", b"/kubepods/pod1/cid"),
        (b"/below", b"/kubepods/pod1/cid", b"/kubepods/pod1/cid/below"),
        (b"/../../pod2/other", b"/kubepods/pod1/cid", b"/kubepods/pod2/other"),
        (b"/../../../system.slice/ssh.service", b"/kubepods/pod1/cid", b"/system.slice/ssh.service"),
        (b"", b"/kubepods/pod1/cid", b""),
    ],
)
def test_paths_of_a_namespace(path: bytes, namespace: bytes, expected: bytes) -> None:
    assert from_namespace(path, namespace) == expected


def test_the_namespace_is_found_by_where_this_process_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, pid in (("a/pod1/x", 1), ("a/pod2/y", os.getpid()), ("b/pod3/z", 2)):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "cgroup.procs").write_text(f"{pid}\n")
    monkeypatch.setattr(cgroups, "own_path", lambda content, hierarchy: b"/")

    assert cgroups.namespace_path(CgroupMount(2, b"/../../..", os.fsencode(tmp_path))) == b"/a/pod2/y"
    assert cgroups.namespace_path(CgroupMount(2, b"/../..", os.fsencode(tmp_path))) == b""


@given(st.binary(max_size=300))
def test_no_mount_table_ends_the_agent(mountinfo: bytes) -> None:
    mounts = parse_mounts(mountinfo + b" - cgroup2 cgroup2 rw")
    choose(mounts, 2)
