"""``vedette run`` as a user runs it, on this host: starts, watches, says so, stops and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.attacks import by_name, open_place, perform

COMMAND = [sys.executable, "-m", "vedette_cli"]


@pytest.fixture
def directory(needs_root: None, bpf_object: Path) -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="vedette-cli-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def places(directory: Path) -> list[str]:
    return ["--data-dir", str(directory / "data"), "--run-dir", str(directory / "run")]


@pytest.mark.timeout(180)
def test_watches_prints_findings_and_leaves_nothing_behind(directory: Path) -> None:
    environment = {**os.environ, "VEDETTE_RUN_DIR": str(directory / "run")}
    run = subprocess.Popen(
        [*COMMAND, "run", "-o", "json", *places(directory)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    assert run.stderr is not None
    said = ""
    try:
        while "watching" not in said:
            line = run.stderr.readline()
            assert line, said
            said += line
        second = subprocess.run([*COMMAND, "run", *places(directory)], capture_output=True, text=True)
        assert second.returncode == 1
        assert f"process {run.pid} holds" in second.stderr
        behaviour = by_name("fileless-memfd")
        with open_place(behaviour) as place:
            perform(behaviour, place)
            while True:
                finding = json.loads(run.stdout.readline())
                if finding["resource"].get("containerDetails", {}).get("id") == place.container_id:
                    break
        assert finding["type"] == "DefenseEvasion:Runtime/FilelessExecution"
        # Commands find the running Vedette's data by its run directory alone.
        listed = subprocess.run(
            [*COMMAND, "findings", "list", "-o", "json"], env=environment, capture_output=True, text=True, check=True
        )
        assert finding["id"] in {f["id"] for f in json.loads(listed.stdout)}
        status = subprocess.run(
            [*COMMAND, "status", "-o", "json"], env=environment, capture_output=True, text=True, check=True
        )
        (node,) = json.loads(status.stdout)["nodes"]
        assert {hook["state"] for hook in node["hooks"]} <= {"loaded", "missing"}
        events = subprocess.run(
            [*COMMAND, "events", "--container", str(finding["resource"]["containerDetails"]["id"]), "-o", "json"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "exec" in {event["type"] for event in json.loads(events.stdout)}
    finally:
        run.send_signal(signal.SIGINT)
        _, rest = run.communicate(timeout=60)
    assert run.returncode == 0, said + rest
    assert rest.splitlines()[-1] == "vedette: stopped"
    assert not re.search(re.escape(str(directory)), Path("/proc/mounts").read_text())
    assert sorted(p.name for p in (directory / "run").iterdir() if p.name != "bpf") == ["lock"]
    assert not list((directory / "run" / "bpf").iterdir())


@pytest.mark.timeout(120)
def test_wrong_settings_end_the_command_with_the_reason(directory: Path) -> None:
    done = subprocess.run([*COMMAND, "run", *places(directory), "--store", "nonsense"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "is not an SQLAlchemy URL" in done.stderr
