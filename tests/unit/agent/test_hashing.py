"""Hashes belong to exactly the file state that was seen, or there is none."""

from __future__ import annotations

import ctypes
import hashlib
import os
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from vedette_agent import hashing
from vedette_agent.hashing import MAX_FILE_BYTES, Budget, Executable, Hasher, open_executable
from vedette_events.encode import decode_event


@pytest.fixture
def program(tmp_path: Path) -> Path:
    target = tmp_path / "program"
    target.write_bytes(Path("/bin/sleep").read_bytes())
    target.chmod(0o755)
    return target


@pytest.fixture
def running(program: Path) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([program, "100"])
    while os.readlink(f"/proc/{child.pid}/exe") != str(program):
        assert child.poll() is None
    yield child
    child.kill()
    child.wait()


def state(path: Path, pid: int) -> Executable:
    info = path.stat()
    device = os.major(info.st_dev) << 20 | os.minor(info.st_dev)
    return Executable(pid, device, info.st_ino, info.st_ctime_ns, os.fsencode(path))


def test_a_running_program_is_hashed(program: Path, running: subprocess.Popen[bytes]) -> None:
    wanted = state(program, running.pid)
    record = Hasher(1 << 30).hash(wanted)

    assert isinstance(record, bytes)
    name, values = decode_event(record)
    assert name == "file_hash"
    assert values["sha256"] == hashlib.sha256(program.read_bytes()).digest()
    assert (values["ino"], values["dev"], values["ctime"]) == (wanted.ino, wanted.dev, wanted.ctime)
    assert values["length"] == program.stat().st_size


def test_a_program_whose_process_has_ended_is_found_by_its_path(program: Path) -> None:
    assert Hasher(1 << 30).hash(state(program, 2**22 - 1)) is not None


def test_a_file_that_was_changed_since_has_no_hash(program: Path) -> None:
    wanted = state(program, 2**22 - 1)
    program.chmod(0o700)

    assert Hasher(1 << 30).hash(wanted) is None


def test_another_file_of_the_same_name_has_no_hash(program: Path) -> None:
    wanted = state(program, 2**22 - 1)
    program.unlink()
    program.write_bytes(b"another")

    assert Hasher(1 << 30).hash(wanted) is None


def test_a_fifo_in_its_place_does_not_hold_up_the_thread(program: Path) -> None:
    wanted = state(program, 2**22 - 1)
    program.unlink()
    os.mkfifo(program)

    assert open_executable(wanted) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="making a device needs root")
def test_a_device_is_no_executable(tmp_path: Path) -> None:
    device = tmp_path / "program"
    os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))

    assert open_executable(state(device, 2**22 - 1)) is None


def test_a_giant_is_left_out(tmp_path: Path) -> None:
    giant = tmp_path / "giant"
    with giant.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)

    assert Hasher(1 << 40).hash(state(giant, 2**22 - 1)) is None


def test_each_file_state_is_hashed_once(program: Path, running: subprocess.Popen[bytes]) -> None:
    hasher = Hasher(1 << 30)
    hasher.put([state(program, running.pid)] * 3)
    hasher.start()
    hasher.put([state(program, running.pid)])
    records: list[bytes] = []
    while not records:
        records += hasher.take()

    assert len(records) == 1
    assert (hasher.hashed, hasher.unavailable) == (1, 0)


def test_the_budget_lets_a_second_through_and_then_makes_wait() -> None:
    budget = Budget(1000)
    start = budget._at

    assert budget.spend(1000, start) == 0
    assert budget.spend(500, start) == 0.5
    assert budget.spend(0, start + 0.5) == 0
    assert budget.spend(1000, start + 100) == 0


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Executable]:
    """A file on a FUSE file system whose server answers nothing, and is gone when `/dev/fuse` is closed."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    folder = tmp_path / "fuse"
    folder.mkdir()
    try:
        server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"kernel: no FUSE: {error}")
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"test", os.fsencode(folder), b"fuse", 0, options):
        os.close(server)
        pytest.skip(f"kernel: mount: {os.strerror(ctypes.get_errno())}")
    try:
        # Nobody may ask the file system itself.
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        (number,) = [fields[2] for fields in mounts if fields[4] == str(folder)]
        major, minor = map(int, number.split(":"))
        yield Executable(2**22 - 1, major << 20 | minor, 7, 7, os.fsencode(folder / "program"))
    finally:
        with suppress(OSError):
            os.close(server)  # ends the connection, and with it what waits
        libc.umount2(os.fsencode(folder), 2)


def test_a_file_of_another_than_a_local_file_system_is_not_touched(hanging: Executable) -> None:
    hasher = Hasher(1 << 30)
    assert hasher.hash(hanging) is None
    assert hasher.describe()["remote"] == {"fuse": 1}


def test_a_file_that_hangs_holds_up_no_other(
    hanging: Executable, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "HANGS_AFTER_S", 0.2)
    hasher = Hasher(1 << 30)
    # As where a layer below an overlay hangs: the file system itself is none of the suspicious ones.
    hasher.put([replace(hanging, dev=0xFFFFFFFF), state(program, 2**22 - 1)])
    hasher.start()
    records: list[bytes] = []
    while not records:
        records += hasher.take()
        time.sleep(0.01)

    assert decode_event(records[0])[1]["sha256"] == hashlib.sha256(program.read_bytes()).digest()
    assert hasher.describe() == {"hashed": 1, "unavailable": 0, "remote": {}, "hung": 1, "stopped": False}
    assert len(hasher._hung) == 1


def test_files_that_hang_again_and_again_end_in_no_hashes_until_one_comes_back(
    hanging: Executable, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "HANGS_AFTER_S", 0.1)
    monkeypatch.setattr(hashing, "MAX_HUNG", 2)
    hasher = Hasher(1 << 30)
    hasher.put([replace(hanging, dev=0xFFFFFFFF - n, ino=n) for n in range(3)])
    hasher.start()
    while not hasher.describe()["stopped"]:
        hasher.take()
        time.sleep(0.01)
    assert (hasher.hung, len(hasher._hung)) == (2, 2)
    (server,) = [
        int(fd.name) for fd in Path("/proc/self/fd").iterdir() if os.path.lexists(fd) and os.readlink(fd) == "/dev/fuse"
    ]
    os.close(server)
    hasher.put([state(program, 2**22 - 1)])
    while not hasher.take():
        time.sleep(0.01)
    assert hasher.describe()["stopped"] is False


def test_the_file_system_is_found_by_its_device_number(tmp_path: Path) -> None:
    wanted = state(tmp_path, 1)
    line = subprocess.run(["findmnt", "-nro", "FSTYPE", "-T", tmp_path], check=True, capture_output=True, text=True)
    assert hashing.filesystem(wanted.dev, 2**22 - 1) == line.stdout.strip()
    assert hashing.filesystem(0xFFFFFFFF, os.getpid()) is None


def test_small_files_go_before_large_ones_and_while_one_is_read(tmp_path: Path) -> None:
    large, small = tmp_path / "large", tmp_path / "small"
    with large.open("wb") as file:
        file.truncate(hashing.LARGE_BYTES + 1)  # holes: it takes no space
    small.write_bytes(b"small")
    hasher = Hasher(1 << 40)
    hasher.put([state(large, 2**22 - 1), state(small, 2**22 - 1)])
    hasher.start()
    lengths: list[int] = []
    while len(lengths) < 2:
        lengths += [int(decode_event(record)[1]["length"]) for record in hasher.take()]
        time.sleep(0.01)
    assert lengths == [5, hashing.LARGE_BYTES + 1]
