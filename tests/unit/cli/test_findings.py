from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.unit.cli.conftest import CONTAINER, SEEN, Put, Vedette, detection, later
from vedette_detector.ledger import Note, NoteKind
from vedette_detector.store import Store

HOSTILE = "\x1b[31m[bold]/tmp/a\nb\u202e\x9b"


def test_lists_findings_the_latest_first(put: Put, vedette: Vedette) -> None:
    miner = detection(
        finding_type="Impact:Runtime/CryptoMinerExecuted",
        severity=5.0,
        container=None,
        host_process=True,
        wall=later(minutes=1),
        process={"name": "xmrig", "executablePath": "/opt/xmrig", "pid": 99},
    )
    shell_id, miner_id = put(detection(), miner)
    result = vedette("findings", "list")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "SEVERITY    TYPE                                WHERE                   PROCESS                  COUNT  "
        "LAST SEEN (UTC)      ID",
        "Medium 5.0  Impact:Runtime/CryptoMinerExecuted  host web-1              /opt/xmrig (99)              1  "
        f"2026-01-31 12:01:00  {miner_id[:8]}",
        "High 8.0    Execution:Runtime/ReverseShell      container 4f1d2c3b9a8e  /usr/bin/bash -i (4711)      1  "
        f"2026-01-31 12:00:00  {shell_id[:8]}",
    ]


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ((), ["shell", "tool", "miner"]),
        (("--severity", "high"), ["shell"]),
        (("--severity", "Medium"), ["shell", "miner"]),
        (("--severity", "8"), ["shell"]),
        (("--type", "reverseshell"), ["shell"]),
        (("--type", "Impact:*", "--type", "*SuspiciousTool"), ["tool", "miner"]),
        (("--since", "2026-01-31T12:01:00"), ["tool", "miner"]),
        (("--until", "2026-01-31T12:00:30"), ["shell"]),
        (("--container", "4f1d"), ["shell", "tool"]),
        (("--host",), ["miner"]),
        (("--node", "web-2"), []),
        (("--archived",), []),
        (("--limit", "1"), ["tool"]),
    ],
)
def test_filters(put: Put, vedette: Vedette, arguments: tuple[str, ...], shown: list[str]) -> None:
    types = {"shell": "ReverseShell", "tool": "SuspiciousTool", "miner": "CryptoMinerExecuted"}
    put(
        detection(),
        detection(finding_type="Execution:Runtime/SuspiciousTool", severity=2.0, wall=later(minutes=2)),
        detection(
            finding_type="Impact:Runtime/CryptoMinerExecuted", severity=5.0, wall=later(minutes=1), container=None
        ),
    )
    result = vedette("findings", "list", *arguments)
    assert result.exit_code == 0
    assert {name for name, text in types.items() if text in result.stdout} == set(shown)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--severity", "grave"), "is neither low, medium, high, critical nor a number"),
        (("--severity", "11"), "is neither low, medium, high, critical nor a number"),
        (("--since", "yesterday"), "is not a time"),
        (("--host", "--container", "4f"), "exclude each other"),
        (("--limit", "0"), "not in the range"),
        (("-o", "xml"), "is not one of"),
    ],
)
def test_wrong_usage_ends_with_2(put: Put, vedette: Vedette, arguments: tuple[str, ...], message: str) -> None:
    result = vedette("findings", "list", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_says_when_more_are_there_than_shown(put: Put, vedette: Vedette) -> None:
    put(detection(), detection(key=("other",)))
    result = vedette("findings", "list", "--limit", "1")
    assert "note: only the newest 1 are shown" in result.stderr
    assert len(result.stdout.splitlines()) == 2


def test_an_empty_list_says_so(put: Put, vedette: Vedette) -> None:
    put()
    assert vedette("findings", "list").stdout == "No findings.\n"
    assert vedette("findings", "list", "--host").stdout == "No findings match.\n"
    assert vedette("findings", "list", "-o", "json").stdout == "[]\n"


def test_json_and_yaml_are_complete_and_the_same(put: Put, vedette: Vedette) -> None:
    (identifier,) = put(detection())
    (from_json,) = json.loads(vedette("findings", "list", "-o", "json").stdout)
    (from_yaml,) = yaml.safe_load(vedette("findings", "list", "-o", "yaml").stdout)
    assert from_json == from_yaml
    assert from_json["id"] == identifier
    assert from_json["service"]["runtimeDetails"]["process"]["pid"] == 4711
    assert from_json["vedette"]["arguments"]["process"] == ["bash", "-i"]


def test_without_a_database_says_what_to_do(vedette: Vedette, data_dir: Path) -> None:
    result = vedette("findings", "list")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"vedette: there is no database of findings at {data_dir}/detector/findings.db\n")
    assert "sudo vedette run" in result.stderr
    assert not (data_dir / "detector/findings.db").exists()


def test_shows_everything_of_a_finding(put: Put, vedette: Vedette) -> None:
    (identifier,) = put(detection())
    result = vedette("findings", "show", identifier[:6])
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "High 8.0  Execution:Runtime/ReverseShell",
        "A shell works over a network connection.",
        "  The shell's input and output are a connection to 198.51.100.7 port 4444.",
        "",
        f"Id          {identifier}",
        "Seen        2026-01-31 12:00:00.123 UTC",
        "Where       container 4f1d2c3b9a8e, node web-1",
        f"            id: {CONTAINER}",
        "            containerRuntime: containerd",
        "Process     /usr/bin/bash",
        "            pid 4711 (12 in its container), user root, started 2026-01-31 12:00:00.123 UTC",
        "            arguments: bash -i",
        "            directory: /root",
        "Started by  /usr/bin/python3 (pid 4700, user 0)",
        "              └ /bin/dash (pid 4690, user 0)",
        "Connection  outbound TCP 10.0.0.2 to 198.51.100.7 port 4444",
        "Counted by  198.51.100.7, /usr/bin/bash",
        "Rule        reverse_shell",
        "",
        "Know that",
        "  - The shell was started by python3.",
        "",
        "What to look at",
        "  See who asked for it.",
        "  Stop the container.",
        "",
        "--events shows what happened around it",
    ]


def test_shows_repeats_and_events_on_request(put: Put, vedette: Vedette) -> None:
    identifier, again = put(detection(), detection(wall=later(seconds=5)))
    assert identifier == again
    result = vedette("findings", "show", identifier, "--occurrences", "--events")
    assert "Seen        2 times, 2026-01-31 12:00:00.123 to 2026-01-31 12:00:05.123 UTC" in result.stdout
    assert "Occurrences (the last 2 of 2)" in result.stdout
    assert "  2026-01-31 12:00:05.123  /usr/bin/bash -i (4711)" in result.stdout
    assert "2026-01-31 12:00:00.123  connect    python3[4700]  raddr=198.51.100.7" in result.stdout
    data = json.loads(vedette("findings", "show", identifier, "--occurrences", "-o", "json").stdout)
    assert [o["service"]["eventLastSeen"] for o in data["occurrences"]] == [
        "2026-01-31T12:00:00.123Z",
        "2026-01-31T12:00:05.123Z",
    ]


@pytest.mark.parametrize("wanted", ["ffffffff", "nonsense", "\x1b[31m", "%", ""])
def test_an_unknown_finding_is_an_error(put: Put, vedette: Vedette, wanted: str) -> None:
    put(detection())
    result = vedette("findings", "show", wanted)
    assert result.exit_code == 1
    assert "vedette: there is no finding" in result.stderr
    assert "\x1b" not in result.stderr


@pytest.mark.parametrize(
    "command",
    [
        *(f"{command}{form}" for command in ("list", "show {id}") for form in ("", " -o json", " -o yaml")),
        "show {id} --occurrences --events",
        "export",
        "export --occurrences",
    ],
)
def test_nothing_of_an_attacker_acts_on_the_terminal(put: Put, vedette: Vedette, command: str) -> None:
    process = {"name": HOSTILE, "executablePath": HOSTILE, "arguments": [HOSTILE] * 3, "pid": 1, "pwd": HOSTILE}
    hostile = detection(
        process=process,
        title=HOSTILE,
        description=HOSTILE * 100,
        key=(HOSTILE,),
        lineage=[process],
        context={"socketPath": HOSTILE, "modifyingProcess": process, "flags": [HOSTILE]},
        notes=[HOSTILE],
        triage=HOSTILE,
        related_events=[{"type": HOSTILE, "comm": HOSTILE, "path": HOSTILE, "wall": HOSTILE}],
    )
    (identifier,) = put(hostile)
    result = vedette("findings", *command.format(id=identifier).split())
    assert result.exit_code == 0
    assert re.fullmatch(r"[\n\x20-\x7e…└]*", result.stdout)
    if " -o " not in command and "export" not in command:
        assert "[bold]/tmp/a\\" in result.stdout


def test_exports_guardduty_json_lines(put: Put, vedette: Vedette) -> None:
    first, second = put(detection(), detection(key=("other",), wall=later(minutes=1)))
    put(detection(wall=later(seconds=1)))
    lines = [json.loads(line) for line in vedette("findings", "export").stdout.splitlines()]
    assert {d["id"]: d["service"]["count"] for d in lines} == {first: 2, second: 1}
    assert {d["schemaVersion"] for d in lines} == {"2.0"}
    lines = [json.loads(line) for line in vedette("findings", "export", "--occurrences").stdout.splitlines()]
    assert sorted(d["id"] for d in lines) == sorted([first, first, second])
    assert vedette("findings", "export", "--limit", "1").stdout.count("\n") == 1


def test_exports_more_than_one_page(put: Put, vedette: Vedette, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vedette_cli.findings.PAGE", 3)
    put(*(detection(key=(str(n),)) for n in range(10)))
    lines = vedette("findings", "export").stdout.splitlines()
    assert len({json.loads(line)["id"] for line in lines}) == len(lines) == 10
    assert vedette("findings", "export", "--limit", "7").stdout.count("\n") == 7


def test_archives_and_takes_back(put: Put, vedette: Vedette) -> None:
    (identifier,) = put(detection())
    assert vedette("findings", "archive", identifier[:8]).stdout == "1 archived\n"
    assert vedette("findings", "list").stdout == "No findings.\n"
    assert identifier[:8] in vedette("findings", "list", "--archived").stdout
    assert identifier[:8] in vedette("findings", "list", "--all").stdout
    assert "archived" in vedette("findings", "show", identifier).stdout.splitlines()[0]
    assert vedette("findings", "unarchive", identifier).stdout == "1 taken back\n"
    assert vedette("findings", "archive", identifier, "ffff0000").exit_code == 1
    assert identifier[:8] in vedette("findings", "list").stdout


def test_says_when_events_were_lost(put: Put, vedette: Vedette, data_dir: Path) -> None:
    put(detection())
    store = Store(f"sqlite:///{data_dir}/detector/findings.db")
    at = int(SEEN.timestamp()) * 10**9
    drops = [Note(NoteKind.KERNEL_DROPS, "web-1", bytes(16), 1, at + n, "", events=700) for n in range(2)]
    store.add_notes([*drops, Note(NoteKind.SESSION_STARTED, "web-1", bytes(16), 1, at, "")])
    store.close()
    line = (
        "note: web-1: 1,400 events were dropped because the kernel's ring was full (last at 2026-01-31 12:00:00): "
        "findings may be missing; see vedette status\n"
    )
    assert vedette("findings", "list").stderr == line
    assert vedette("findings", "export").stderr == line
    assert vedette("findings", "list", "--since", "2026-02-01").stderr == ""


def test_watch_prints_what_arrives_until_it_is_stopped(put: Put, data_dir: Path) -> None:
    put(detection(key=("before",)))
    environment = {**os.environ, "VEDETTE_DATA_DIR": str(data_dir), "NO_COLOR": "1"}
    command = [sys.executable, "-m", "vedette_cli", "findings", "watch", "--since", "2026-01-31"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as watcher:
        assert watcher.stdout is not None
        assert watcher.stdout.readline().startswith(
            "12:00:00.123  High      8.0  Execution:Runtime/ReverseShell  container"
        )
        (identifier,) = put(detection())
        assert identifier[:8] in watcher.stdout.readline()
        put(detection())
        assert f"  x2  {identifier[:8]}" in watcher.stdout.readline()
        watcher.send_signal(signal.SIGINT)
        assert watcher.wait(timeout=30) == 0


def test_a_reader_that_goes_away_ends_the_command_quietly(put: Put, data_dir: Path) -> None:
    put(*(detection(key=(str(n),)) for n in range(50)))
    environment = {**os.environ, "VEDETTE_DATA_DIR": str(data_dir)}
    command = f"{sys.executable} -m vedette_cli findings export | head -n 1"
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
