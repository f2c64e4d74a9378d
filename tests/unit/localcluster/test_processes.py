from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tools.localcluster import layout as layout_module
from tools.localcluster import processes
from tools.localcluster.layout import Layout


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setattr(layout_module, "BASE", tmp_path)
    made = Layout("test")
    made.pids.mkdir(parents=True)
    made.logs.mkdir()
    return made


def _note(layout: Layout, name: str, pid: int, start_time: int) -> None:
    (layout.pids / f"{name}.json").write_text(json.dumps({"pid": pid, "start_time": start_time}))


def test_a_program_is_found_by_pid_and_start_time(layout: Layout) -> None:
    started = processes.start_time(os.getpid())
    assert started is not None
    _note(layout, "it", os.getpid(), started)

    found = processes.find(layout, "it")

    assert found is not None
    assert found.rss_bytes > 1_000_000
    assert found.age_s > 0


def test_another_process_with_the_same_pid_is_not_ours_and_is_left_alone(layout: Layout) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        started = processes.start_time(other.pid)
        assert started is not None
        _note(layout, "it", other.pid, started - 1)

        assert processes.find(layout, "it") is None
        processes.stop(layout, "it")

        assert other.poll() is None
        assert not (layout.pids / "it.json").exists()
        other.kill()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"pid": "x", "start_time": 1}', '{"pid": 1}'])
def test_a_damaged_note_means_that_nothing_runs(layout: Layout, content: str) -> None:
    (layout.pids / "it.json").write_text(content)

    assert processes.find(layout, "it") is None


def test_a_program_that_ignores_the_polite_signal_is_killed(layout: Layout) -> None:
    script = "trap '' TERM; echo ready; while :; do sleep 1; done"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE) as stubborn:
        assert stubborn.stdout is not None
        assert stubborn.stdout.readline() == b"ready\n"
        started = processes.start_time(stubborn.pid)
        assert started is not None
        _note(layout, "it", stubborn.pid, started)

        processes.stop(layout, "it", grace_s=0.2)

        assert stubborn.wait(10) == -signal.SIGKILL


def test_a_zombie_does_not_run() -> None:
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

        assert processes.start_time(child.pid) is None


def test_a_failure_shows_the_end_of_the_log(layout: Layout) -> None:
    (layout.logs / "etcd.log").write_text("".join(f"line {n}\n" for n in range(100)))

    error = processes.failure(layout, "etcd", "ended")

    assert str(error).startswith("etcd ended. The end of ")
    assert "line 99" in str(error)
    assert "line 80" not in str(error)
