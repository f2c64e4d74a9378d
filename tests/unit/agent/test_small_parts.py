"""Settings, filters, log lines and host information."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette_agent import host, settings
from vedette_agent.errors import SettingsError
from vedette_agent.filters import MAX_OPEN_NAMES, Filters, FilterSlot, parse
from vedette_agent.log import Log, format_line

# ---- settings --------------------------------------------------------------------------------------------------------


def test_the_defaults_are_usable_and_name_the_host() -> None:
    assert settings.parse([]).node == os.uname().nodename


def test_options_are_made_from_the_model() -> None:
    parsed = settings.parse(
        ["--node", "n-1.example", "--spool-limit", "64MiB", "--pin-dir", "", "--keep-attached", "--no-ec2-metadata"]
    )

    assert (parsed.node, parsed.spool_limit, parsed.pin_dir) == ("n-1.example", 64 << 20, None)
    assert (parsed.keep_attached, parsed.ec2_metadata) == (True, False)


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("4096", 4096), ("64K", 65536), ("1 MiB", 1 << 20), ("2gb", 2 << 30)]
)
def test_sizes(text: str, size: int) -> None:
    assert settings.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1.5M", "1T", "M"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        settings.parse_size(text)


def test_everything_that_is_wrong_is_named_at_once() -> None:
    arguments = [
        "--endpoint",
        "http://x",
        "--ring-bytes",
        "5000",
        "--spool-limit",
        "1K",
        "--poll-ms",
        "0",
        "--uid",
        "0",
    ]
    with pytest.raises(SettingsError) as caught:
        settings.parse([*arguments, "--node=-bad-"])

    for text in ("endpoint 'http://x'", "--ring-bytes 5000", "--spool-limit 1024", "--poll-ms", "--uid 0", "'-bad-'"):
        assert text in str(caught.value)


# ---- filters ---------------------------------------------------------------------------------------------------------


def test_a_filters_document_is_read_whole() -> None:
    document = {
        "version": "ab",
        "open_names": ["shadow", "id_rsa", "shadow"],
        "disabled_types": ["socket"],
        "dedupe_ttl_ms": 5,
        "all_sockets": True,
        "all_mprotect": False,
    }

    assert parse(document) == (Filters("ab", ("shadow", "id_rsa"), ("socket",), 5, True, False), [])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"open_names": "shadow"}, "open_names: not a list of strings"),
        ({"open_names": ["a/b", "", "x" * 256]}, "open_names: 3 are no file names"),
        (
            {"open_names": [str(n) for n in range(MAX_OPEN_NAMES + 1)]},
            "open_names: only the first 8192 of 8193 are used",
        ),
        ({"disabled_types": ["teleport"]}, "disabled_types: unknown: teleport"),
        ({"dedupe_ttl_ms": -1}, "dedupe_ttl_ms: not a number of milliseconds up to a day"),
        ({"dedupe_ttl_ms": True}, "dedupe_ttl_ms: not a number of milliseconds up to a day"),
    ],
)
def test_what_cannot_be_used_is_named_and_left_out(change: dict[str, Any], problem: str) -> None:
    filters, problems = parse({"version": "ab", "disabled_types": ["socket"], **change})

    assert problems == [problem]
    assert filters.version == "ab"
    assert len(filters.open_names) <= MAX_OPEN_NAMES


@pytest.mark.parametrize("document", [None, [], {}, {"version": ""}, {"version": 7}, {"version": "a\nb"}])
def test_without_a_version_there_are_no_filters(document: Any) -> None:
    assert parse(document)[0] == Filters()


@given(
    st.recursive(
        st.none() | st.integers() | st.text() | st.booleans(),
        lambda t: (
            st.lists(t)
            | st.dictionaries(
                st.sampled_from(["version", "open_names", "disabled_types", "dedupe_ttl_ms", "all_sockets"]), t
            )
        ),
    )
)
def test_no_document_breaks_the_reader(document: Any) -> None:
    filters, _ = parse(document)
    assert parse(filters.as_dict())[0] in (filters, Filters())


def test_filters_are_handed_over_once_and_remembered(tmp_path: Path) -> None:
    slot = FilterSlot(tmp_path / "filters.json")
    assert slot.take() is None
    assert slot.remembered() is None
    wanted = Filters("ab", ("shadow",))
    slot.put(wanted)
    assert slot.take() == wanted
    assert slot.take() is None
    slot.in_force(wanted)
    slot.put(wanted)
    assert slot.take() is None

    assert slot.version == "ab"
    assert FilterSlot(tmp_path / "filters.json").remembered() == wanted


def test_a_damaged_memory_of_filters_is_no_memory(tmp_path: Path) -> None:
    (tmp_path / "filters.json").write_text('{"version": ')
    assert FilterSlot(tmp_path / "filters.json").remembered() is None


# ---- log -------------------------------------------------------------------------------------------------------------


@given(st.text(), st.binary(), st.text(min_size=1))
def test_nothing_can_forge_a_line_or_reach_the_terminal(message: str, value: bytes, name: str) -> None:
    for form in ("text", "json"):
        line = format_line(form, "info", message, {"a": value, "b": name, "c": 7}, 0.0)
        assert line.isascii()
        assert line.isprintable()
    assert json.loads(format_line("json", "info", message, {"n": 7}, 0.0))["n"] == 7


def test_a_line_of_each_form() -> None:
    fields: dict[str, Any] = {"path": b"/tmp/\x1b[2J\xff", "count": 3, "why": "not there"}

    assert format_line("text", "warning", "gone", fields, 1.5) == (
        '1970-01-01T00:00:01.500Z WARNING gone path=/tmp/\\x1b[2J\\\\xff count=3 why="not there"'
    )
    assert json.loads(format_line("json", "info", "gone", fields, 1.5))["path"] == "/tmp/\\x1b[2J\\\\xff"


def test_a_repeated_message_is_written_once_and_counted() -> None:
    stream = StringIO()
    log = Log("text", "info", stream)
    for _ in range(3):
        log.repeated("warning", "away", every_s=3600)
    log.repeated("warning", "away", every_s=0)
    log("debug", "unseen")

    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[1].endswith("away repeats=2")


# ---- host ------------------------------------------------------------------------------------------------------------


def test_the_host_describes_itself() -> None:
    about = host.describe()

    assert (about["hostname"], about["kernel"]) == (os.uname().nodename, os.uname().release)
    assert len(host.boot_id()) == 16
    assert host.namespace("pid") == os.stat("/proc/self/ns/pid").st_ino
    assert host.private_rss_bytes() > 1 << 20
    assert host.cpu_seconds() > 0


class Metadata(BaseHTTPRequestHandler):
    """Answers like the instance metadata service, version 2 only."""

    requests: ClassVar[list[str]] = []
    identity: ClassVar[bytes] = json.dumps({"instanceId": "i-0abc", "region": "eu-west-1", "kernelId": None}).encode()

    def answer(self, status: int, body: bytes) -> None:
        self.requests.append(f"{self.command} {self.path}")
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        known = self.headers["X-aws-ec2-metadata-token-ttl-seconds"] == "60"
        self.answer(200 if known else 400, b"secret-token")

    def do_GET(self) -> None:
        known = self.headers["X-aws-ec2-metadata-token"] == "secret-token"
        self.answer(200 if known else 401, self.identity)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def metadata() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def test_the_instance_is_asked_for_with_a_session_token(metadata: int) -> None:
    identity = host.Ec2Identity("127.0.0.1", metadata)
    identity.run()

    assert identity.document == {"instanceId": "i-0abc", "region": "eu-west-1"}
    assert Metadata.requests[-2:] == ["PUT /latest/api/token", "GET /latest/dynamic/instance-identity/document"]
