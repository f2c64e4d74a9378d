"""Hashes belong to exactly the file state that was seen, or there is none."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

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

    assert record is not None
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
