"""open, unlink, rename, link, symlink, chmod, mount and umount as the kernel reports them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live_collect import Collector, Record

libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
OVERLAY, UPPER, NO_LOWER, UNLINKED, MEMFD, TMPFS, FIFO, PROC = 1, 2, 4, 8, 16, 32, 256, 8192


def syscall(number: int, *arguments: Any) -> int:
    """The call's result, or the negative errno."""
    result = libc.syscall(number, *arguments)
    return -ctypes.get_errno() if result == -1 else int(result)


def mine(records: list[Record], event: str) -> list[Record]:
    return [r for r in records if r.event == event and r.pid == os.getpid()]


def do(collect: Collector, event: str, action: Callable[[], Any]) -> Record:
    [record] = mine(collect(action), event)
    return record


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(b"x")
    return tmp_path


def test_open_for_writing_is_reported_with_the_resolved_path(collect: Collector, place: Path) -> None:
    (place / "link").symlink_to("file")

    def act() -> None:
        os.close(os.open(place / "link", os.O_WRONLY | os.O_APPEND))

    event = do(collect, "open", act)
    status = (place / "file").stat()
    assert event.path == os.fsencode(place / "file")
    assert (event.ino, event.mode, event.oflags & 0o2003) == (status.st_ino, status.st_mode, os.O_WRONLY | os.O_APPEND)
    assert (event.dev >> 20, event.dev & 0xFFFFF) == (os.major(status.st_dev), os.minor(status.st_dev))
    assert event.fd == event.result >= 0
    assert (event.dir, event.uid, event.tid) == (b"", 0, os.getpid())


def test_reading_is_reported_only_for_wanted_names(collect: Collector, place: Path) -> None:
    (place / "shadow").write_bytes(b"")

    def act() -> None:
        for name in ("file", "shadow"):
            os.close(os.open(place / name, os.O_RDONLY))

    assert [r.path for r in mine(collect(act), "open")] == [os.fsencode(place / "shadow")]


@pytest.mark.parametrize(
    "call",
    [
        lambda path: syscall(2, path, os.O_RDONLY),
        lambda path: syscall(257, AT_FDCWD, path, os.O_RDONLY, 0),
        lambda path: syscall(437, AT_FDCWD, path, (ctypes.c_uint64 * 3)(0, 0, 0), 24),
    ],
    ids=["open", "openat", "openat2"],
)
def test_every_open_call_is_seen_and_a_failed_one_of_a_wanted_name_too(
    collect: Collector, place: Path, call: Callable[[bytes], int]
) -> None:
    (place / "shadow").write_bytes(b"")
    wanted, missing = os.fsencode(place / "shadow"), os.fsencode(place / "no" / "shadow")
    found = mine(collect(lambda: (os.close(call(wanted)), call(missing))), "open")
    assert [(r.path, r.result >= 0) for r in found] == [(wanted, True), (missing, False)]
    assert (found[1].result, found[1].fd) == (-errno.ENOENT, -1)


def test_a_failed_relative_open_tells_its_directory(collect: Collector, place: Path) -> None:
    fd = os.open(place, os.O_RDONLY)

    def act() -> None:
        with pytest.raises(FileNotFoundError):
            os.open("no/such", os.O_WRONLY, dir_fd=fd)

    event = do(collect, "open", act)
    os.close(fd)
    assert (event.path, event.dir, event.result) == (b"no/such", os.fsencode(place), -errno.ENOENT)


def test_opens_of_fifos_are_reported_and_of_character_devices_not(collect: Collector, place: Path) -> None:
    os.mkfifo(place / "pipe")

    def act() -> None:
        os.close(os.open(place / "pipe", os.O_RDONLY | os.O_NONBLOCK))
        os.close(os.open("/dev/null", os.O_WRONLY))

    event = do(collect, "open", act)
    assert event.path == os.fsencode(place / "pipe")
    assert event.file_bits & FIFO


def test_bytes_that_are_no_text_stay_as_they_are(collect: Collector, place: Path) -> None:
    name = b"\xff\x1b[31m\n\xe2\x80\xae x"
    event = do(
        collect, "open", lambda: os.close(os.open(os.path.join(os.fsencode(place), name), os.O_CREAT | os.O_WRONLY))
    )
    assert event.path == os.path.join(os.fsencode(place), name)


def test_a_path_of_4000_bytes_is_whole(collect: Collector, place: Path) -> None:
    base = os.open(place, os.O_RDONLY)
    directory, length = os.fsencode(place), 0
    while len(directory) < 3800:
        os.mkdir(b"d" * 200, dir_fd=base)
        deeper = os.open(b"d" * 200, os.O_RDONLY, dir_fd=base)
        os.close(base)
        base, directory = deeper, directory + b"/" + b"d" * 200
        length += 1
    event = do(collect, "open", lambda: os.close(os.open(b"leaf", os.O_CREAT | os.O_WRONLY, dir_fd=base)))
    os.close(base)
    assert event.path == directory + b"/leaf"
    assert event.flags == 0


def descend(place: Path, name: bytes, levels: int) -> int:
    """Make ``levels`` directories, one in the other; a descriptor of the last."""
    base = os.open(place, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=base)
        deeper = os.open(name, os.O_RDONLY, dir_fd=base)
        os.close(base)
        base = deeper
    return base


def test_a_path_of_400_components_is_whole(collect: Collector, place: Path) -> None:
    base = descend(place, b"d", 400)
    event = do(collect, "open", lambda: os.close(os.open(b"leaf", os.O_CREAT | os.O_WRONLY, dir_fd=base)))
    os.close(base)
    assert event.path == os.fsencode(place) + b"/d" * 400 + b"/leaf"
    assert event.flags == 0


def test_a_path_longer_than_4096_bytes_says_that_its_beginning_is_missing(collect: Collector, place: Path) -> None:
    base = descend(place, b"d" * 30, 150)
    event = do(collect, "open", lambda: os.close(os.open(b"leaf", os.O_CREAT | os.O_WRONLY, dir_fd=base)))
    os.close(base)
    assert event.path.endswith((b"/" + b"d" * 30) * 100 + b"/leaf")
    assert 4000 < len(event.path) <= 4096
    assert event.flags & 0x20


def test_a_32_bit_call_is_seen_as_such(collect: Collector, helper: Path, place: Path) -> None:
    (place / "shadow").write_bytes(b"")
    path = os.fsencode(place / "shadow")
    found = collect(lambda: subprocess.run([helper, "open32", path], check=True, stdout=subprocess.DEVNULL))
    [event] = [r for r in found if r.event == "open" and r.path == path]
    assert event.flags & 2
    assert event.comm == b"live_helper"


def test_what_io_uring_opens_and_removes_is_seen(collect: Collector, helper: Path, place: Path) -> None:
    (place / "shadow").write_bytes(b"")
    path = os.fsencode(place / "shadow")

    def act() -> None:
        for what in ("uring_open", "uring_unlink"):
            subprocess.run([helper, what, path], check=True, stdout=subprocess.DEVNULL)

    found = [r for r in collect(act) if r.event == "io_uring" and r.comm == b"live_helper"]
    assert [(r.opcode, r.path, r.flags & 4) for r in found] == [(18, path, 4), (36, path, 4)]
    assert not (place / "shadow").exists()


NAMES: list[tuple[str, str, Callable[[Path], Any], dict[str, Any]]] = [
    ("unlink", "unlink", lambda p: os.unlink(p / "file"), {"path": "{p}/file", "at_flags": 0}),
    (
        "rmdir",
        "unlink",
        lambda p: os.rmdir(p / "file"),
        {"path": "{p}/file", "at_flags": 0x200, "result": -errno.ENOTDIR},
    ),
    (
        "unlinkat",
        "unlink",
        lambda p: syscall(263, AT_FDCWD, b"nothing", 0),
        {"path": "nothing", "dir": "{cwd}", "result": -2},
    ),
    ("rename", "rename", lambda p: os.rename(p / "file", p / "new"), {"path": "{p}/file", "new_path": "{p}/new"}),
    (
        "renameat2",
        "rename",
        lambda p: syscall(316, AT_FDCWD, os.fsencode(p / "file"), AT_FDCWD, os.fsencode(p / "new"), 1),
        {"path": "{p}/file", "new_path": "{p}/new", "at_flags": 1},
    ),
    ("link", "link", lambda p: os.link(p / "file", p / "hard"), {"path": "{p}/file", "new_path": "{p}/hard"}),
    (
        "symlink",
        "symlink",
        lambda p: os.symlink("to", p / "soft"),
        {"path": "to", "new_path": "{p}/soft", "new_dir": ""},
    ),
    ("chmod", "chmod", lambda p: os.chmod(p / "file", 0o4755), {"path": "{p}/file", "mode": 0o4755}),
    (
        "fchmodat2",
        "chmod",
        lambda p: syscall(452, AT_FDCWD, b"no", 0o700, 0),
        {"path": "no", "dir": "{cwd}", "result": -2},
    ),
    (
        "umount",
        "umount",
        lambda p: syscall(166, os.fsencode(p), 2),
        {"target": "{p}", "umount_flags": 2, "result": -22},
    ),
    (
        "mount that fails",
        "mount",
        lambda p: syscall(165, b"source", os.fsencode(p), b"nosuchfs", 0, 0),
        {"source": "source", "target": "{p}", "fstype": "nosuchfs", "op": 1, "result": -errno.ENODEV, "fs_fd": -1},
    ),
    (
        "relative bind mount that fails",
        "mount",
        lambda p: syscall(165, b"no/source", b"no/target", 0, 4096, 0),
        {"source": "{cwd}/no/source", "target": "{cwd}/no/target", "mount_flags": 4096, "op": 1, "result": -2},
    ),
    (
        "fsopen",
        "mount",
        lambda p: syscall(430, b"nosuchfs", 0),
        {"fstype": "nosuchfs", "op": 4, "result": -errno.ENODEV},
    ),
    (
        "fsconfig",
        "mount",
        lambda p: syscall(431, 999, 1, b"key", b"value", 0),
        {"fstype": "key", "source": "value", "op": 5},
    ),
    ("fsmount", "mount", lambda p: syscall(432, 999, 0, 0), {"op": 6, "fs_fd": 999, "result": -errno.EBADF}),
    (
        "move_mount",
        "mount",
        lambda p: syscall(429, 999, b"", AT_FDCWD, os.fsencode(p), 4),
        {"op": 2, "fs_fd": 999, "target": "{p}", "mount_flags": 4, "result": -errno.EBADF},
    ),
    (
        "open_tree",
        "mount",
        lambda p: syscall(428, AT_FDCWD, b"/nowhere", 1),
        {"op": 3, "source": "/nowhere", "result": -2},
    ),
    (
        "pivot_root",
        "mount",
        lambda p: syscall(155, b"/no", b"/no/put"),
        {"op": 7, "source": "/no", "target": "/no/put"},
    ),
    (
        "mount_setattr",
        "mount",
        lambda p: syscall(442, AT_FDCWD, b"/nowhere", 0, (ctypes.c_uint64 * 4)(1, 0, 0, 0), 32),
        {"op": 8, "target": "/nowhere", "mount_flags": 1, "result": -2},
    ),
]


@pytest.mark.parametrize(("event", "action", "expected"), [row[1:] for row in NAMES], ids=[row[0] for row in NAMES])
def test_names_and_mounts(
    collect: Collector, place: Path, event: str, action: Callable[[Path], Any], expected: dict[str, Any]
) -> None:
    def act() -> None:
        with contextlib.suppress(OSError):
            action(place)

    record = do(collect, event, act)
    wanted = {
        key: os.fsencode(value.format(p=place, cwd=os.getcwd())) if isinstance(value, str) else value
        for key, value in expected.items()
    }
    assert {key: record.values[key] for key in wanted} == wanted


def test_fchmod_tells_the_path_of_the_descriptor(collect: Collector, place: Path) -> None:
    fd = os.open(place / "file", os.O_RDONLY)
    event = do(collect, "chmod", lambda: os.fchmod(fd, 0o600))
    os.close(fd)
    assert (event.path, event.mode, event.dir) == (os.fsencode(place / "file"), 0o600, b"")
