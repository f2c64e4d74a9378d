"""``vedette status`` against a real socket; the document is of the detector's form."""

from __future__ import annotations

import http.server
import json
import re
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import Vedette
from vedette_cli.status import problems, seconds

HOSTILE = "\x1b[31m[bold]\n\u202e\x9b"
NOW = 1_769_860_800.0


def document(**detector: Any) -> dict[str, Any]:
    return {
        "detector": {
            "version": "0.1.0",
            "healthy": True,
            "health": "ok",
            "workers": 2,
            "rules": {"loaded": 34, "detectors": 9, "errors": [], "failing": []},
            "threat_lists": [{"name": "feed", "file": "/l/feed.txt", "entries": 3, "errors": []}],
            **detector,
        },
        "nodes": [node()],
    }


AWAY = {
    "resource": "pods",
    "synced": True,
    "connected": False,
    "away_since": "2026-01-31T12:00:00Z",
    "error": "ApiUnreachable: gone",
}


def node(**values: Any) -> dict[str, Any]:
    account = {
        "session": 5,
        "emitted": 1200,
        "received": 1200,
        "outstanding": 0,
        "spool_lost_events": 0,
        "spool_lost_batches": 0,
        "dropped": 0,
        "deduplicated": 7,
        "balance": "balanced",
        "first_event_ns": int(NOW) * 10**9,
    }
    return {
        "node": "web-1",
        "agent_version": "0.1.0",
        "host": {"kernel": "6.12.0", "arch": "x86_64"},
        "hooks": [
            {"event": "exec", "hook": "tp_btf/sched_process_exec", "state": "loaded", "reason": ""},
            {
                "event": "io_uring",
                "hook": "tp_btf/io_uring_submit_req",
                "state": "missing",
                "reason": "not in this kernel",
            },
        ],
        "spool": {"bytes": 2048, "batches": 1, "limit_bytes": 1 << 28},
        "rss_bytes": 15 << 20,
        "cpu_seconds": 1.25,
        "heartbeat_at": "2026-01-31T12:00:00.000Z",
        "heartbeat_age_s": 4.0,
        "silent": False,
        "rates": {"events_per_second": 1234.5},
        "ledger": [{**account, **values.pop("account", {})}],
        **values,
    }


def stuck(**values: Any) -> dict[str, Any]:
    """A node whose agent reports and does not deliver."""
    return node(
        **{
            "heartbeat_age_s": 5.0,
            "agent_age_s": 65.0,
            "session": 5,
            "counters": {"emitted": 2000, "dropped": 3},
            **values,
        }
    )


def losing(**recent: int) -> dict[str, Any]:
    """A status whose node has lost something within a day."""
    return {"nodes": [node(losses={"recent": recent, "earlier": {}})]}


Serve = Callable[..., None]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Answer on the detector's socket."""
    (tmp_path / "run").mkdir()
    answer: dict[str, Any] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def address_string(self) -> str:
            return "unix"

        def do_GET(self) -> None:
            body = answer["body"]
            self.send_response(answer.get("status", 200))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = socketserver.ThreadingUnixStreamServer(str(tmp_path / "run" / "detector.sock"), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def serve(body: Any, status: int = 200) -> None:
        answer.update(body=body if isinstance(body, bytes) else json.dumps(body).encode(), status=status)

    yield serve
    server.shutdown()
    thread.join()
    server.server_close()


def test_counts_the_cluster_s_objects(serve: Serve, vedette: Vedette) -> None:
    watches = [{"resource": "pods", "objects": 1234, "connected": True}, {"resource": "nodes", "connected": True}]
    serve(document(kubernetes={"watches": watches}))
    assert "  cluster       1,234 pods, 0 nodes\n" in vedette("status").stdout


def test_shows_what_is_watched(serve: Serve, vedette: Vedette) -> None:
    serve(document())
    result = vedette("status")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "Detector  0.1.0, 2 workers",
        "  rules         34 loaded, 9 detectors",
        "  threat lists  feed",
        "",
        "Node web-1  6.12.0 x86_64",
        "  agent   version 0.1.0, 15.0 MiB, 1.2 s of CPU, heard of 4s ago",
        "  rates   events per second 1,234",
        "  spool   2.0 KiB of 256.0 MiB, 1 batches waiting",
        "  hooks   1 of 2 loaded",
        "  EVENT NOT WATCHED  HOOK                        STATE    REASON",
        "  io_uring           tp_btf/io_uring_submit_req  missing  not in this kernel",
        "  LEDGER SINCE (UTC)   EMITTED  RECEIVED  ON THE WAY  LOST  DROPPED  DEDUPLICATED  BALANCE",
        "  2026-01-31 12:00:00    1,200     1,200           0     0        0             7  balanced",
        "",
        "1 problem",
        "  - web-1: io_uring is not watched (tp_btf/io_uring_submit_req missing: not in this kernel)",
    ]


def test_check_turns_problems_into_an_exit_code(serve: Serve, vedette: Vedette) -> None:
    serve(document())
    assert vedette("status", "--check").exit_code == 1
    good = document()
    good["nodes"][0]["hooks"].pop()
    serve(good)
    result = vedette("status", "--check")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "all is watched, nothing was lost within a day"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"nodes": []}, "no agent has reported yet: nothing is watched"),
        ({"nodes": [node(heartbeat_age_s=100.0, silent=True)]}, "web-1: the agent has been silent for 100s"),
        ({"nodes": [node(heartbeat_age_s=None, silent=True)]}, "web-1: no heartbeat of its agent has come yet"),
        (
            {"nodes": [stuck(last_batch_age_s=65.0)]},
            "web-1: 800 events wait on the host, no batch has come for 60s",
        ),
        (
            {"nodes": [stuck(last_batch_age_s=65.0)]},
            "web-1: 3 more events dropped since the last batch, the kernel's ring was full",
        ),
        ({"nodes": [stuck(session=6)]}, "web-1: 2,000 events wait on the host, no batch has come for 60s"),
        (losing(dropped_events=5000), "web-1: 5,000 events dropped, the kernel's ring was full"),
        (
            losing(spool_lost_events=70, spool_lost_batches=2),
            "web-1: 70 events given up by the agent (spool full or batch refused)",
        ),
        (losing(spool_lost_batches=2), "web-1: 2 batches given up by the agent (spool full or batch refused)"),
        (losing(unexplained_batches=3), "web-1: 3 batches never came, and no agent says why"),
        (losing(refused_batches=3, spool_lost_batches=1), "web-1: 2 batches refused for good"),
        (losing(contradictions=1), "web-1: the account contradicts itself 1 times"),
        (
            document(rules={"loaded": 1, "errors": [{"file": "a.yml", "line": 3, "message": "bad", "reason": "B"}]}),
            "rule not loaded: a.yml:3: bad",
        ),
        (
            document(threat_lists=[{"name": "x", "errors": [{"file": "x.txt", "line": 9, "message": "no address"}]}]),
            "threat list: x.txt:9: no address",
        ),
        (document(healthy=False, health="StorageFull: no space"), "the detector is not well: StorageFull: no space"),
        (
            document(rules={"failing": [{"unit": "r1", "event": "exec", "message": "KeyError"}]}),
            "r1 failed on exec events: KeyError",
        ),
        (
            document(kubernetes={"watches": [AWAY, {**AWAY, "resource": "nodes"}]}),
            "the cluster's objects cannot be watched since 2026-01-31T12:00:00Z (ApiUnreachable: gone); "
            "what was known then is used",
        ),
        (
            document(kubernetes={"watches": [{**AWAY, "synced": False}, {"resource": "nodes", "connected": True}]}),
            "the cluster's pods cannot be watched since 2026-01-31T12:00:00Z (ApiUnreachable: gone); "
            "none have been read yet",
        ),
        (
            document(reload_error="Permission denied"),
            "rules or threat lists could not be read again: Permission denied",
        ),
    ],
)
def test_names_each_problem(data: dict[str, Any], expected: str) -> None:
    assert expected in list(problems(data))


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        (
            {"count": 1, "seconds": 42.04, "longest_s": 42.04, "too_long": True},
            ["web-1: no agent watched for 42.0 s within a day"],
        ),
        (
            {"count": 70, "seconds": 350.0, "longest_s": 9.0, "too_long": True},
            ["web-1: no agent watched 70 times within a day, 350.0 s in all, 9.0 s at most"],
        ),
        ({"count": 1, "seconds": 4.0, "longest_s": 4.0, "too_long": False}, []),
    ],
)
def test_a_gap_is_a_problem_when_it_is_too_long(gaps: dict[str, Any], expected: list[str]) -> None:
    assert list(problems({"nodes": [node(hooks=[], gaps=gaps)]})) == expected


def test_a_gap_is_shown_in_any_case(serve: Serve, vedette: Vedette) -> None:
    good = document()
    good["nodes"] = [node(hooks=[], gaps={"count": 1, "seconds": 4.0, "longest_s": 4.0, "too_long": False})]
    serve(good)
    result = vedette("status", "--check")
    assert result.exit_code == 0
    assert "  gaps    no agent watched for 4.0 s within a day" in result.stdout.splitlines()


def test_what_is_not_hashed_is_shown_and_why(serve: Serve, vedette: Vedette) -> None:
    data = document()
    hashes = {"hashed": 1200, "unavailable": 3, "remote": {"fuse.sshfs": 2, "nfs4": 1}, "hung": 4, "stopped": True}
    data["nodes"] = [node(hooks=[], hashes=hashes)]
    serve(data)
    lines = vedette("status").stdout.splitlines()
    assert "  hashes  1,200 files; not: 3 gone or unreadable, 2 on fuse.sshfs, 1 on nfs4, 4 whose reading hung" in lines
    assert list(problems(data)) == [
        "web-1: executables are not hashed any more: reading 4 of them hung, and their file systems do not answer yet"
    ]


def test_pins_that_were_removed_are_a_problem_with_what_to_do(serve: Serve, vedette: Vedette) -> None:
    reason = "its pin was removed; it ends with the agent"
    hook = {"event": "exec", "hook": "sched_process_exec", "state": "loaded", "reason": reason}
    data = document()
    data["nodes"] = [node(hooks=[hook, {**hook, "reason": ""}])]
    serve(data)
    result = vedette("status", "--check")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert "          1 lost their pins and end with the agent" in lines
    assert list(problems(data)) == [
        "web-1: the pins of 1 hooks were removed, of sched_process_exec for one: what happens while the agent is not "
        "running is not seen. Find out who removed them, then restart the agent"
    ]


def test_a_refused_batch_that_the_agent_has_given_up_is_told_once() -> None:
    data = losing(refused_batches=1, spool_lost_batches=1, spool_lost_events=9)
    data["nodes"][0]["hooks"] = []
    assert list(problems(data)) == ["web-1: 9 events given up by the agent (spool full or batch refused)"]


def test_older_losses_are_shown_and_no_problem(serve: Serve, vedette: Vedette) -> None:
    good = document()
    good["nodes"][0]["hooks"].pop()
    good["nodes"][0]["ledger_before"] = {"sessions": 1234, "emitted": 70, "dropped": 9}
    good["nodes"][0]["losses"] = {"recent": {"dropped_events": 0}, "earlier": {"dropped_events": 9}}
    serve(good)
    result = vedette("status", "--check")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert "  earlier than a day: 9 events dropped, the kernel's ring was full" in lines
    (row,) = [line.split() for line in lines if "sessions before" in line]
    assert row == ["1,234", "sessions", "before", "70", "0", "0", "0", "9", "0", "-"]
    assert lines[-1] == "all is watched, nothing was lost within a day"


@pytest.mark.parametrize(
    "values", [{"last_batch_age_s": 6.0}, {"agent_age_s": 15.0}, {"counters": {"emitted": 1200, "dropped": 0}}]
)
def test_an_agent_that_delivers_is_no_problem(values: dict[str, Any]) -> None:
    quiet = stuck(hooks=[], **values)
    assert list(problems({"nodes": [quiet]})) == []


@pytest.mark.parametrize("form", ["table", "json", "yaml"])
def test_nothing_of_an_attacker_acts_on_the_terminal(serve: Serve, vedette: Vedette, form: str) -> None:
    hooks = [{"event": HOSTILE, "hook": HOSTILE, "state": HOSTILE, "reason": HOSTILE}]
    hostile = document(version=HOSTILE, threat_lists=[{"name": HOSTILE}])
    hostile["nodes"] = [node(node=HOSTILE, agent_version=HOSTILE, host={"kernel": HOSTILE}, hooks=hooks)]
    serve(hostile)
    result = vedette("status", "-o", form)
    assert result.exit_code == 0
    assert re.fullmatch(r"[\n\x20-\x7e]*", result.stdout)
    assert "[bold]" in result.stdout


def test_says_when_nothing_runs(vedette: Vedette, tmp_path: Path) -> None:
    result = vedette("status")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[:2] == [
        f"vedette: no detector listens at {tmp_path}/run/detector.sock",
        "  Start it with: sudo vedette run",
    ]


def test_says_when_the_answer_is_none(serve: Serve, vedette: Vedette) -> None:
    serve(b"<html>")
    assert vedette("status").stderr == "vedette: the detector answered no JSON (200)\n"


def test_a_detectors_refusal_is_shown(serve: Serve, vedette: Vedette) -> None:
    serve({"reason": "Forbidden", "message": "not for \x1b you"}, 403)
    assert vedette("status").stderr == "vedette: the detector answered 403: not for \\e you\n"


@pytest.mark.parametrize(
    ("value", "result"),
    [
        (None, None),
        ("", None),
        ("x", None),
        (0, None),
        (NOW, NOW),
        (int(NOW) * 10**9, NOW),
        ("2026-01-31T12:00:00Z", NOW),
    ],
)
def test_reads_times_in_every_form(value: Any, result: float | None) -> None:
    assert seconds(value) == result
