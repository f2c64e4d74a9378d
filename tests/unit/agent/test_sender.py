"""The sender against a real HTTP server: every answer, every way to fail, nothing lost."""

from __future__ import annotations

import io
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import stub_detector as stub

from vedette_agent.errors import SettingsError
from vedette_agent.log import Log
from vedette_agent.sender import (
    Answer,
    Backoff,
    Client,
    Endpoint,
    Judgement,
    Sender,
    TransportError,
    Verdict,
    judge,
    retry_after,
)
from vedette_agent.spool import BatchRef, Loss, Spool
from vedette_events.encode import encode_event
from vedette_events.framing import BatchHeader, decode_header, encode_batch

BOOT = bytes(range(16))


def spooled(spool: Spool, *numbers: int) -> None:
    for n in numbers:
        header = BatchHeader(
            node="n", boot_id=BOOT, session=7, sequence=n, count=1, ring_from=n * 100, ring_to=n * 100 + 100
        )
        framed = encode_batch(header, encode_event("exit", pid=n))
        assert spool.append(decode_header(framed)[0], framed)


@pytest.fixture
def detector(tmp_path: Path) -> Iterator[Any]:
    made = stub.StubDetector()
    made.endpoint = stub.serve_unix(made, tmp_path / "detector.sock")
    yield made
    made.stop()


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path / "spool")
    yield made
    made.close()


class Running:
    """A sender at work, with what it said and received."""

    def __init__(self, spool: Spool, endpoint: str, **options: Any) -> None:
        self.stream = io.StringIO()
        self.filters: list[dict[str, Any]] = []
        self.version = ""
        token_file, ca_file = options.pop("token_file", None), options.pop("ca_file", None)
        self.client = Client(Endpoint.parse(endpoint), token_file, ca_file)
        self.sender = Sender(
            spool,
            self.client,
            heartbeat=lambda: {"node": "n"},
            filters_version=lambda: self.version,
            on_filters=self.receive,
            log=Log("text", "debug", self.stream),
            **options,
        )
        self.sender.start()

    def receive(self, document: dict[str, Any]) -> None:
        self.filters.append(document)
        self.version = document["version"]

    def stop(self) -> str:
        self.sender.stop(5)
        assert not self.sender.is_alive()
        return self.stream.getvalue()


def test_batches_arrive_in_order_over_one_connection_and_leave_the_spool(detector: Any, spool: Spool) -> None:
    spooled(spool, 1, 2, 3)
    running = Running(spool, detector.endpoint)
    detector.wait_for(lambda: len(detector.batches) == 3)
    spooled(spool, 4)
    detector.wait_for(lambda: len(detector.batches) == 4)
    log = running.stop()

    assert [b.sequence for b in detector.batches] == [1, 2, 3, 4]
    assert spool.stats().batches == 0
    assert detector.heartbeats == [{"node": "n"}]
    assert detector.connections == 1
    assert log == ""


@pytest.mark.parametrize("status", [429, 500, 502, 503, 401, 403])
def test_a_temporary_refusal_keeps_the_batch_and_it_is_sent_again(
    detector: Any, spool: Spool, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vedette_agent.sender.BACKOFF_UNAUTHORISED_S", 0.2)
    detector.script.append(stub.Scripted(status, {"reason": "Busy", "message": "later"}))
    spooled(spool, 1)
    running = Running(spool, detector.endpoint)
    detector.wait_for(lambda: len(detector.batches) == 1)
    log = running.stop()

    assert spool.loss(BOOT, 7) == Loss()
    assert f"status={status}" in log


def test_a_closed_connection_is_opened_again(detector: Any, spool: Spool) -> None:
    detector.script.append(stub.Scripted(0))
    spooled(spool, 1)
    running = Running(spool, detector.endpoint)
    detector.wait_for(lambda: len(detector.batches) == 1)
    running.stop()

    assert [b.sequence for b in detector.batches] == [1]
    assert detector.connections == 2


def test_a_refused_batch_goes_with_its_reason_and_the_others_arrive(detector: Any, spool: Spool) -> None:
    refusal = {"reason": "BadRecord", "message": "record 0\n\x1b[2Jat byte 0", "session": 7, "sequence": 2}
    detector.script += [stub.Scripted(400, refusal)]
    spooled(spool, 1, 2, 3)
    running = Running(spool, detector.endpoint)
    detector.wait_for(lambda: len(detector.batches) >= 1)
    detector.script += [stub.Scripted(400, refusal)]
    detector.wait_for(lambda: any(b.sequence == 3 for b in detector.batches))
    log = running.stop()

    assert spool.stats().batches == 0
    assert spool.loss(BOOT, 7).batches <= 1
    assert "\x1b" not in log


def test_a_refused_batch_in_the_middle_is_found_and_counted(tmp_path: Path, spool: Spool) -> None:
    class Refusing(stub.StubDetector):
        """Refuses every request that holds batch 3, naming it, and takes nothing of such a request."""

        def answer(self, path: str, headers: dict[str, str], body: bytes) -> Any:
            if path == "/v1/batches" and any(h.sequence == 3 for h, _ in stub.iter_batches(body)):
                return stub.Scripted(400, {"reason": "BadRecord", "session": 7, "sequence": 3})
            return super().answer(path, headers, body)

    detector = Refusing()
    endpoint = stub.serve_unix(detector, tmp_path / "refusing.sock")
    spooled(spool, 1, 2, 3, 4, 5)
    running = Running(spool, endpoint)
    detector.wait_for(lambda: len(detector.batches) == 4)
    log = running.stop()
    detector.stop()

    assert [b.sequence for b in detector.batches] == [1, 2, 4, 5]
    assert spool.loss(BOOT, 7) == Loss(1, 1)
    assert spool.reasons() == {"BadRecord": 1}
    assert "reason=BadRecord" in log


def test_too_large_a_request_is_split_down_to_single_batches(tmp_path: Path, spool: Spool) -> None:
    class Small(stub.StubDetector):
        def answer(self, path: str, headers: dict[str, str], body: bytes) -> Any:
            if path == "/v1/batches" and len(list(stub.iter_batches(body))) > 1:
                return stub.Scripted(413, {"reason": "RequestTooLarge"})
            return super().answer(path, headers, body)

    detector = Small()
    endpoint = stub.serve_unix(detector, tmp_path / "small.sock")
    spooled(spool, *range(1, 8))
    running = Running(spool, endpoint)
    detector.wait_for(lambda: len(detector.batches) == 7)
    running.stop()
    detector.stop()

    assert [b.sequence for b in detector.batches] == [1, 2, 3, 4, 5, 6, 7]
    assert spool.loss(BOOT, 7) == Loss()


def test_filters_of_an_answer_are_handed_over_and_named_in_the_next_request(detector: Any, spool: Spool) -> None:
    detector.filters = {"version": "ab12", "open_names": ["shadow"]}
    spooled(spool, 1)
    running = Running(spool, detector.endpoint)
    detector.wait_for(lambda: len(detector.batches) == 1)
    running.stop()

    assert running.filters == [detector.filters]
    assert [headers["x-vedette-filters"] for _, headers, _ in detector.requests] == ["", "ab12"]


def test_a_detector_that_comes_later_gets_everything(tmp_path: Path, spool: Spool) -> None:
    spooled(spool, 1, 2)
    running = Running(spool, f"unix://{tmp_path}/later.sock")
    waiting = threading.Event()
    waiting.wait(0.3)
    detector = stub.StubDetector()
    stub.serve_unix(detector, tmp_path / "later.sock")
    detector.wait_for(lambda: len(detector.batches) == 2)
    log = running.stop()
    detector.stop()

    assert log.count("the detector cannot be reached") == 1


def test_stopping_without_a_detector_ends_in_time_and_leaves_the_batches(tmp_path: Path, spool: Spool) -> None:
    spooled(spool, 1, 2)
    running = Running(spool, f"unix://{tmp_path}/nobody.sock")
    running.sender.stop(0.3)

    assert not running.sender.is_alive()
    assert spool.stats().batches == 2


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b"[" * 100_000, b'{"acknowledged": 7}', b"\xff"])
def test_an_answer_that_acknowledges_nothing_loses_nothing(body: bytes) -> None:
    judgement = judge(Answer(200, {}, body), (BatchRef(BOOT, 7, 1, 100, 1),), 0.0)

    assert judgement == Judgement(Verdict.RETRY, reason="NothingAcknowledged")


def test_an_answer_without_the_oldest_batch_is_waited_after() -> None:
    refs = tuple(BatchRef(BOOT, 7, n, 100, 1) for n in (1, 2))
    answer = Answer(200, {}, b'{"acknowledged": [{"session": 7, "sequence": 2}]}')
    assert judge(answer, refs, 0.0) == Judgement(Verdict.RETRY, frozenset({(7, 2)}), reason="OldestNotAcknowledged")


def test_an_agent_that_is_asked_to_wait_still_reports(detector: Any, spool: Spool) -> None:
    detector.script.append(stub.Scripted(503, {"reason": "UnsupportedVersion"}, {"Retry-After": "300"}))
    spooled(spool, 1)
    running = Running(spool, detector.endpoint, heartbeat_interval_s=0.05)
    detector.wait_for(lambda: [path for path, _, _ in detector.requests][-3:] == ["/v1/heartbeat"] * 3)
    running.stop()

    assert [path for path, _, _ in detector.requests].count("/v1/batches") == 2  # the second one at the end


def test_only_batches_that_were_sent_are_settled() -> None:
    body = b'{"acknowledged": [{"session": 7, "sequence": 1}, {"session": 9, "sequence": 9}, 5, {"session": []}]}'
    judgement = judge(Answer(200, {}, body), (BatchRef(BOOT, 7, 1, 100, 1),), 0.0)

    assert judgement.settled == {(7, 1)}


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (400, b'{"reason": "BadMagic"}', "BadMagic"),
        (400, b'{"reason": "no camel\\ncase"}', "Http400"),
        (413, b"", "Http413"),
    ],
)
def test_a_single_batch_that_cannot_be_taken_is_refused_with_a_clean_reason(
    status: int, body: bytes, reason: str
) -> None:
    judgement = judge(Answer(status, {}, body), (BatchRef(BOOT, 7, 1, 100, 1),), 0.0)

    assert (judgement.verdict, judgement.reason) == (Verdict.REFUSED, reason)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0.0),
        ("", 0.0),
        ("7", 7.0),
        ("-3", 0.0),
        ("100000", 300.0),
        (formatdate(1030, usegmt=True), 30.0),
        (formatdate(900, usegmt=True), 0.0),
        ("soon", 0.0),
    ],
)
def test_retry_after_is_a_number_or_a_date(value: str | None, seconds: float) -> None:
    assert retry_after(value, 1000.0) == seconds


def test_waiting_times_grow_to_a_bound_and_begin_anew() -> None:
    backoff = Backoff(last_s=1.0, random=lambda: 1.0)
    waits = [backoff.next() for _ in range(5)]
    assert waits == [0.2, 0.4, 0.8, 1.0, 1.0]
    assert backoff.next(at_least_s=9.0) == 9.0
    backoff.reset()
    assert backoff.next() == 0.2
    assert Backoff(random=lambda: 0.0).next() == 0.1


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("unix:///run/vedette/detector.sock", Endpoint(path="/run/vedette/detector.sock")),
        ("https://detector.example:8443/base/", Endpoint(host="detector.example", port=8443, prefix="/base")),
        ("https://[2001:db8::1]", Endpoint(host="2001:db8::1", port=443)),
    ],
)
def test_endpoints(text: str, endpoint: Endpoint) -> None:
    assert Endpoint.parse(text) == endpoint


@pytest.mark.parametrize("text", ["", "http://x", "unix://relative/path", "https://", "https://x:99999", "/run/x"])
def test_other_endpoints_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="endpoint"):
        Endpoint.parse(text)


# ---- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def make_certificate(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], tuple[Path, Path]]:
    def make() -> tuple[Path, Path]:
        directory = tmp_path_factory.mktemp("tls")
        certificate, key = directory / "certificate.pem", directory / "key.pem"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
        return certificate, key

    return make


def test_tls_with_a_token_that_changes(
    tmp_path: Path, spool: Spool, make_certificate: Callable[[], tuple[Path, Path]]
) -> None:
    certificate, key = make_certificate()
    token = tmp_path / "token"
    token.write_text("first\n")
    detector = stub.StubDetector()
    endpoint = stub.serve_tls(detector, certificate, key)
    spooled(spool, 1)
    running = Running(spool, endpoint, token_file=token, ca_file=certificate)
    detector.wait_for(lambda: len(detector.batches) == 1)
    (tmp_path / "new").write_text("second\n")
    (tmp_path / "new").replace(token)
    spooled(spool, 2)
    detector.wait_for(lambda: len(detector.batches) == 2)
    log = running.stop()
    detector.stop()

    tokens = [headers["authorization"] for path, headers, _ in detector.requests if path == "/v1/batches"]
    assert tokens == ["Bearer first", "Bearer second"]
    assert log == ""


def test_a_server_that_is_not_trusted_gets_nothing(
    spool: Spool, make_certificate: Callable[[], tuple[Path, Path]]
) -> None:
    certificate, key = make_certificate()
    other, _ = make_certificate()
    detector = stub.StubDetector()
    client = Client(Endpoint.parse(stub.serve_tls(detector, certificate, key)), None, other)

    with pytest.raises(TransportError, match="certificate verify failed"):
        client.post("/v1/batches", b"secret", {})
    detector.stop()
    assert detector.requests == []


def test_a_missing_token_file_is_named(tmp_path: Path) -> None:
    client = Client(Endpoint.parse("https://localhost:1"), tmp_path / "token")

    with pytest.raises(TransportError, match="cannot read the token or CA file"):
        client.post("/v1/batches", b"", {})


def test_a_rotated_token_is_sent_again_at_once_and_one_that_is_none_never(
    tmp_path: Path, make_certificate: Callable[[], tuple[Path, Path]]
) -> None:
    certificate, key = make_certificate()
    token = tmp_path / "token"
    token.write_text("first")
    detector = stub.StubDetector()
    client = Client(Endpoint.parse(stub.serve_tls(detector, certificate, key)), token, certificate)
    # Refused, and nothing new to send: one request. Refused, and replaced meanwhile: two.
    detector.script.append(stub.Scripted(401, {"reason": "TokenExpired"}))
    assert client.post("/v1/batches", b"", {}).status == 401
    token.write_text("second-")
    assert client.post("/v1/batches", b"", {}).status == 200
    answers = iter([("third--", 401)])

    def replaced(path: str, headers: dict[str, str], body: bytes) -> stub.Scripted:
        new = next(answers, None)
        if new is not None:
            token.write_text(new[0])
            return stub.Scripted(new[1], {"reason": "TokenExpired"})
        detector.requests.append((path, headers, 0))
        return stub.Scripted(200)

    detector.answer = replaced  # type: ignore[method-assign]
    assert client.post("/v1/batches", b"", {}).status == 200
    assert [h["authorization"] for _, h, _ in detector.requests] == ["Bearer first", "Bearer second-", "Bearer third--"]
    for content in (b"", b"two words", b"line\nbreak", b"\xff\xfe", b"secret\x00", "sécret".encode()):
        token.write_bytes(content)
        with pytest.raises(TransportError) as raised:
            client.post("/v1/batches", b"", {})
        assert str(raised.value) == f"{token} holds no token"
    token.unlink()
    with pytest.raises(TransportError, match="cannot read the token or CA file"):
        client.post("/v1/batches", b"", {})
    token.write_text("fourth")
    assert client.post("/v1/batches", b"", {}).status == 200
    client.close()
    detector.stop()


def test_a_ca_file_that_holds_nothing_leaves_the_old_authority_in_force_and_is_told(
    tmp_path: Path, spool: Spool, make_certificate: Callable[[], tuple[Path, Path]]
) -> None:
    certificate, key = make_certificate()
    authority = tmp_path / "ca.crt"
    authority.write_bytes(certificate.read_bytes())
    detector = stub.StubDetector()
    endpoint = stub.serve_tls(detector, certificate, key)
    running = Running(spool, endpoint, ca_file=authority)
    spooled(spool, 1)
    detector.wait_for(lambda: len(detector.batches) == 1)
    authority.write_bytes(b"")
    spooled(spool, 2)
    detector.wait_for(lambda: len(detector.batches) == 2)
    authority.write_bytes(certificate.read_bytes() + b"# another comment \xc3\xa9\n")
    spooled(spool, 3)
    detector.wait_for(lambda: len(detector.batches) == 3)
    log = running.stop()
    detector.stop()
    assert running.client.problem == ""
    assert log.count("the old certificates stay trusted") == 1
    assert "no certificate in it" in log

    authority.write_bytes(b"garbage")
    client = Client(Endpoint.parse(endpoint), None, authority)
    for _ in range(2):
        with pytest.raises(TransportError, match="no certificate in it"):
            client.post("/v1/batches", b"", {})


def test_a_certificate_of_another_host_is_not_trusted(
    tmp_path: Path, make_certificate: Callable[[], tuple[Path, Path]]
) -> None:
    certificate, key = make_certificate()
    detector = stub.StubDetector()
    endpoint = Endpoint.parse(stub.serve_tls(detector, certificate, key).replace("localhost", "127.0.0.1"))
    client = Client(endpoint, None, certificate)
    with pytest.raises(TransportError) as raised:
        client.post("/v1/batches", b"secret", {})
    assert "the detector is not trusted: IP address mismatch" in str(raised.value)
    detector.stop()
    assert detector.requests == []


def test_a_connection_is_kept_and_opened_again_when_the_detector_was_restarted(
    spool: Spool, make_certificate: Callable[[], tuple[Path, Path]]
) -> None:
    certificate, key = make_certificate()
    detector = stub.StubDetector()
    endpoint = stub.serve_tls(detector, certificate, key)
    client = Client(Endpoint.parse(endpoint), None, certificate)
    for _ in range(5):
        assert client.post("/v1/batches", b"", {}).status == 200
    assert detector.connections == 1
    for number in range(2, 5):
        with detector.changed:
            for connection in detector.open:
                connection.shutdown(socket.SHUT_RDWR)
        assert client.post("/v1/batches", b"", {}).status == 200
        assert detector.connections == number
    client.close()
    detector.stop()


def test_batches_go_on_as_soon_as_a_heartbeat_is_taken_again(detector: Any, spool: Spool) -> None:
    detector.script.append(stub.Scripted(403, {"reason": "WrongNode", "message": "for another node"}))
    spooled(spool, 1)
    running = Running(spool, detector.endpoint, heartbeat_interval_s=0.3)
    detector.wait_for(lambda: len(detector.batches) == 1)
    log = running.stop()
    # Without the heartbeat it would have waited for at least 15 s, and so would the test.
    assert len(detector.heartbeats) < 20
    assert 'reason=WrongNode why="for another node"' in log
