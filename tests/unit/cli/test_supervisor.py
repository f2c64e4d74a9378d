"""The supervisor with real processes: small Python programs stand in for the detector and the agent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vedette_cli.errors import CommandError
from vedette_cli.location import Location, find
from vedette_cli.supervisor import Supervisor, check_host, detector_command, locked, restart_pause, start_ticks

LISTENER = """
import signal, socket, sys
listener = socket.socket(socket.AF_UNIX)
import os
path = sys.argv[1]
if os.path.exists(path):
    os.unlink(path)
listener.bind(path)
listener.listen(8)
signal.signal(signal.SIGTERM, lambda *_: (print("detector stopped", flush=True), sys.exit(0)))
print("detector up", flush=True)
while True:
    signal.pause()
"""

WAITER = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: (print("agent stopped", flush=True), sys.exit(0)))
print("agent up", flush=True)
while True:
    signal.pause()
"""


def program(text: str, *arguments: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", textwrap.dedent(text), *arguments]


@pytest.fixture
def location(tmp_path: Path) -> Location:
    (tmp_path / "run").mkdir()
    (tmp_path / "data").mkdir()
    return Location(tmp_path / "data", tmp_path / "run")


def run_until(supervisor: Supervisor, done: Callable[[], bool], seconds: float = 60) -> int:
    """Run the supervisor on this thread and stop it, as a signal would, when ``done``."""
    deadline = time.monotonic() + seconds

    def tick() -> None:
        assert time.monotonic() < deadline, "the supervisor did not get there"
        if done():
            os.kill(os.getpid(), signal.SIGTERM)

    return supervisor.run(tick)


def test_starts_the_agent_after_the_detector_listens_and_stops_it_first(location: Location) -> None:
    log: list[str] = []
    supervisor = Supervisor(location, program(LISTENER, str(location.socket)), program(WAITER), log.append)
    assert run_until(supervisor, lambda: "agent: agent up" in log) == 0
    assert log == [
        "detector: detector up",
        "agent: agent up",
        "agent: agent stopped",
        "detector: detector stopped",
    ]
    assert not location.record.exists()


def test_starts_a_killed_part_again_while_the_other_stays(location: Location) -> None:
    log: list[str] = []
    supervisor = Supervisor(location, program(LISTENER, str(location.socket)), program(WAITER), log.append)
    pids: list[int] = []

    def done() -> bool:
        if log.count("agent: agent up") == 1 and not pids:
            record = json.loads(location.record.read_text())
            assert record["data_dir"] == str(location.data_dir)
            pids.extend(record["parts"][name]["pid"] for name in ("detector", "agent"))
            os.kill(pids[0], signal.SIGKILL)
        return log.count("detector: detector up") == 2

    assert run_until(supervisor, done) == 0
    assert "the detector was killed by SIGKILL; starting it again in 0.2 s" in log
    assert log.count("agent: agent up") == 1


def test_a_part_with_wrong_settings_ends_the_command(location: Location) -> None:
    log: list[str] = []
    broken = program("import sys; print('no such directory: /x\\x1b[31m'); sys.exit(2)")
    assert Supervisor(location, broken, program(WAITER), log.append).run() == 1
    assert log == [
        "detector: no such directory: /x\\e[31m",
        "the detector ended with exit code 2: its settings are wrong, the lines above say which",
    ]


def test_gives_up_on_a_part_that_never_worked(location: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vedette_cli.supervisor.FIRST_PAUSE_S", 0.001)
    log: list[str] = []
    supervisor = Supervisor(
        location, program(LISTENER, str(location.socket)), program("raise SystemExit(3)"), log.append
    )
    assert supervisor.run() == 1
    assert "the agent ended with exit code 3, 5 times in a row; giving up" in log
    assert log[-1] == "detector: detector stopped"


def test_replaces_what_a_killed_supervisor_left_behind(location: Location) -> None:
    with subprocess.Popen(program(WAITER), stdout=subprocess.PIPE) as left:
        assert left.stdout is not None
        assert left.stdout.readline() == b"agent up\n"
        # Reaped as soon as it ends, or it would stay as a zombie with the same start time.
        reaper = threading.Thread(target=left.wait)
        reaper.start()
        parts = {"agent": {"pid": left.pid, "start_ticks": start_ticks(left.pid)}}
        location.record.write_text(json.dumps({"parts": parts}))
        log: list[str] = []
        supervisor = Supervisor(location, program(LISTENER, str(location.socket)), program(WAITER), log.append)
        assert run_until(supervisor, lambda: "agent: agent up" in log) == 0
        reaper.join()
    assert left.returncode == 0
    assert log[0] == f"stopping the agent (process {left.pid}) that an earlier Vedette left behind"


def test_leaves_a_process_alone_that_only_has_the_same_pid(location: Location) -> None:
    with subprocess.Popen(program(WAITER), stdout=subprocess.PIPE) as stranger:
        parts = {"agent": {"pid": stranger.pid, "start_ticks": (start_ticks(stranger.pid) or 0) - 1}}
        location.record.write_text(json.dumps({"parts": parts}))
        log: list[str] = []
        supervisor = Supervisor(location, program(LISTENER, str(location.socket)), program(WAITER), log.append)
        assert run_until(supervisor, lambda: "agent: agent up" in log) == 0
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"parts": 3}', '{"parts": {"agent": {}}}', '{"parts": {"agent": null}}']
)
def test_a_damaged_record_does_not_stop_the_start(location: Location, content: str) -> None:
    location.record.write_text(content)
    log: list[str] = []
    supervisor = Supervisor(location, program(LISTENER, str(location.socket)), program(WAITER), log.append)
    assert run_until(supervisor, lambda: "agent: agent up" in log) == 0
    assert log[0] == "detector: detector up"


def test_only_one_runs_on_a_directory(location: Location) -> None:
    with locked(location), pytest.raises(CommandError) as caught, locked(location):
        pass
    assert caught.value.reason == "AlreadyRunning"
    assert f"process {os.getpid()} holds" in caught.value.message
    with locked(location):
        pass


def test_pauses_grow_and_are_bounded() -> None:
    assert [restart_pause(n) for n in (1, 2, 3, 4, 8, 9, 500)] == [0.2, 0.4, 0.8, 1.6, 25.6, 30.0, 30.0]


def test_says_all_that_is_wrong_with_a_host_at_once(tmp_path: Path) -> None:
    with pytest.raises(CommandError) as caught:
        check_host(uid=1000, btf=tmp_path / "vmlinux")
    assert caught.value.reason == "HostUnsuitable"
    assert "not root" in caught.value.message
    assert "no type information" in caught.value.message
    assert "sudo vedette run" in caught.value.hint


def test_a_password_in_the_store_url_is_not_in_the_argument_vector(tmp_path: Path) -> None:
    location = Location(tmp_path, tmp_path, "postgresql://vedette:secret@db/vedette")
    assert not [argument for argument in detector_command(location) if "secret" in argument]


def test_commands_find_the_running_vedettes_data(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"data_dir": "/srv/v", "store_url": "sqlite:////srv/v.db"}))
    assert find(None, tmp_path, None) == Location(Path("/srv/v"), tmp_path, "sqlite:////srv/v.db")
    assert find(Path("/else"), tmp_path, None) == Location(Path("/else"), tmp_path, "")
    assert find(None, tmp_path / "none", None) == Location(Path("/var/lib/vedette"), tmp_path / "none", "")
