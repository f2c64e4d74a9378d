from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.unit.cli.conftest import CONTAINER, SEEN, Vedette
from vedette_events.encode import encode_event
from vedette_events.framing import BatchHeader, encode_batch

HOSTILE = "\x1b[31m[bold]\n\u202e\x9b"
SECOND = 10**9


@pytest.fixture
def journal(data_dir: Path) -> Path:
    """Events of one second before and of `SEEN` itself, as the detector's journal holds them."""
    records = [
        encode_event("cgroup", time=1 * SECOND, cgroup=7, path=f"/containers/{CONTAINER}"),
        encode_event(
            "exec", time=2 * SECOND, cgroup=7, pid=100, comm="curl", path="/usr/bin/curl", argv=["curl", "a b"]
        ),
        encode_event(
            "connect",
            time=2 * SECOND + 1,
            cgroup=7,
            pid=100,
            comm="curl",
            family=2,
            raddr="198.51.100.7",
            rport=443,
            laddr="10.0.0.2",
            lport=4000,
            result=-111,
        ),
        encode_event(
            "exec", time=2 * SECOND + 2, cgroup=1, pid=200, comm=HOSTILE.encode()[:15], path=HOSTILE, argv=[HOSTILE] * 2
        ),
        encode_event("exit", time=3 * SECOND, cgroup=1, pid=200, exit_code=256),
    ]
    header = BatchHeader(
        node="web-1",
        boot_id=bytes(16),
        session=1,
        sequence=1,
        count=len(records),
        wall_offset_ns=int(SEEN.timestamp()) * SECOND - 2 * SECOND,
        first_time=SECOND,
        last_time=3 * SECOND,
    )
    directory = data_dir / "detector" / "journal"
    directory.mkdir()
    (directory / "0000000000000001.vdj").write_bytes(encode_batch(header, b"".join(records)))
    return directory


def test_lists_events_in_order(journal: Path, vedette: Vedette) -> None:
    result = vedette("events", "--since", "2026-01-31", "--process", "curl")
    assert (result.exit_code, result.stderr) == (0, "")
    assert [line.split(maxsplit=5) for line in result.stdout.splitlines()] == [
        ["TIME", "(UTC)", "TYPE", "CONTAINER", "PROCESS", "RESULT  WHAT"],
        ["2026-01-31", "12:00:00.000", "exec", "4f1d2c3b9a8e", "curl[100]", "0  /usr/bin/curl 'a b'"],
        [
            "2026-01-31",
            "12:00:00.000",
            "connect",
            "4f1d2c3b9a8e",
            "curl[100]",
            "-111  10.0.0.2:4000 -> 198.51.100.7:443",
        ],
    ]


@pytest.mark.parametrize(
    ("arguments", "types"),
    [
        ((), ["cgroup", "exec", "connect", "exec", "exit"]),
        (("--type", "exec"), ["exec", "exec"]),
        (("--type", "exec", "--type", "exit"), ["exec", "exec", "exit"]),
        (("--pid", "200"), ["exec", "exit"]),
        (("--container", "4f1d"), ["cgroup", "exec", "connect"]),
        (("--container", "host"), ["exec", "exit"]),
        (("--since", "2026-01-31T12:00:01"), ["exit"]),
        (("--until", "2026-01-31T11:59:59.5"), ["cgroup"]),
        (("--node", "web-2"), []),
        (("--limit", "2"), ["exec", "exit"]),
    ],
)
def test_filters(journal: Path, vedette: Vedette, arguments: tuple[str, ...], types: list[str]) -> None:
    since = () if "--since" in arguments else ("--since", "2026-01-31")
    result = vedette("events", *since, *arguments, "-o", "json")
    assert [event["type"] for event in json.loads(result.stdout)] == types


def test_says_when_more_are_there_than_shown(journal: Path, vedette: Vedette) -> None:
    result = vedette("events", "--since", "2026-01-31", "--limit", "2")
    assert result.stderr == "note: the newest 2 of 5 events are shown; --limit shows more\n"


@pytest.mark.parametrize("form", ["table", "json", "yaml"])
@pytest.mark.parametrize("how", [(), ("--sql", "select * from exec"), ("--sql", f'select 1 as "{HOSTILE}"')])
def test_nothing_of_an_attacker_acts_on_the_terminal(
    journal: Path, vedette: Vedette, form: str, how: tuple[str, ...]
) -> None:
    result = vedette("events", "--since", "2026-01-31", "-o", form, *how)
    assert result.exit_code == 0
    assert re.fullmatch(r"[\n\x20-\x7e…]*", result.stdout)
    assert "[bold]" in result.stdout.lower()


def test_answers_sql(journal: Path, vedette: Vedette) -> None:
    query = "select comm, raddr, rport, wall from connect"
    result = vedette("events", "--since", "2026-01-31", "--sql", query)
    assert result.stdout.splitlines() == [
        "COMM  RADDR         RPORT  WALL",
        "curl  198.51.100.7  443    2026-01-31 12:00:00.000",
    ]
    (line,) = vedette("events", "--since", "2026-01-31", "--sql", query, "-o", "json").stdout.splitlines()
    assert json.loads(line)["rport"] == 443
    (answer,) = yaml.safe_load(vedette("events", "--since", "2026-01-31", "--sql", query, "-o", "yaml").stdout)
    assert answer == json.loads(line)


def test_bounds_the_answer_and_says_so(journal: Path, vedette: Vedette) -> None:
    result = vedette("events", "--since", "2026-01-31", "--limit", "3", "--sql", "select type from events")
    assert result.stdout.count("\n") == 4
    assert result.stderr == "note: only the first 3 rows are shown; --limit shows more\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--type", "execve"), 1, "no event type execve; there are: accept"),
        (("--sql", "drop table exec"), 1, "give exactly one SELECT"),
        (("--sql", "select nonsense from exec"), 1, "nonsense"),
        (("--sql", "select 1", "--pid", "3"), 2, "with --sql, say in its WHERE"),
        (("--pid", "1", "--process", "x"), 2, "exclude each other"),
        (("--limit", "0"), 2, "not in the range"),
    ],
)
def test_wrong_questions(
    journal: Path,
    vedette: Vedette,
    arguments: tuple[str, ...],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from vedette_cli.main import main

    with pytest.raises(SystemExit) as ended:
        main(["events", "--since", "2026-01-31", *arguments])
    captured = capsys.readouterr()
    assert ended.value.code == code
    assert message in captured.err
    assert captured.out == ""


def test_without_a_journal_says_what_to_do(vedette: Vedette, data_dir: Path) -> None:
    result = vedette("events")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"vedette: there are no events at {data_dir}/detector/journal\n")


def test_says_when_a_batch_cannot_be_read(journal: Path, vedette: Vedette) -> None:
    segment = journal / "0000000000000001.vdj"
    content = bytearray(segment.read_bytes())
    content[-1] ^= 0xFF
    segment.write_bytes(content)
    result = vedette("events", "--since", "2026-01-31")
    assert result.stdout == "No events match.\n"
    assert result.stderr == "note: 1 batches could not be read (PayloadChecksum): events are missing\n"
