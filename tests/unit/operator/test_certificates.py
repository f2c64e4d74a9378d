"""Certificates, judged by the TLS of the standard library (OpenSSL) and not by what made them."""

import contextlib
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vedette_operator import certificates as tls
from vedette_operator.errors import CertificateError
from vedette_operator.values import service_names

NOW = datetime.now(UTC)
NAMES = service_names("vedette-system")


@pytest.fixture(scope="module")
def authority() -> tls.KeyPair:
    return tls.make_authority(NOW)


def handshake(folder: Path, serving: tls.KeyPair, authorities: str, name: str) -> str:
    """Connect as the agent does, strictly; the reason when the client refuses."""
    tls.write(folder, "tls.crt", serving.certificate, secret=False)
    tls.write(folder, "tls.key", serving.key, secret=True)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    client = ssl.create_default_context(cadata=authorities)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname=name)
    other = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(10):
        waiting = 0
        for side in (one, other):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                waiting += 1
            except ssl.SSLCertVerificationError as error:
                return error.verify_message
        if not waiting:
            return ""
    raise AssertionError("the handshake does not end")


@pytest.mark.parametrize("name", NAMES)
def test_agents_trust_the_detector_under_each_of_its_names(authority: tls.KeyPair, tmp_path: Path, name: str) -> None:
    serving = tls.make_serving(authority, NAMES, NOW)
    assert handshake(tmp_path, serving, authority.certificate, name) == ""


def test_addresses_can_be_names(authority: tls.KeyPair, tmp_path: Path) -> None:
    serving = tls.make_serving(authority, ["198.51.100.7", "2001:db8::1"], NOW)
    assert tls.facts(serving.certificate).names == ("198.51.100.7", "2001:db8::1")
    assert handshake(tmp_path, serving, authority.certificate, "198.51.100.7") == ""
    assert "mismatch" in handshake(tmp_path, serving, authority.certificate, "198.51.100.8")


@pytest.mark.parametrize(
    ("made", "days", "name", "reason"),
    [
        (NOW, 365, "vedette-detector.other.svc", "Hostname mismatch"),
        (NOW - timedelta(days=3), 2, NAMES[0], "certificate has expired"),
    ],
)
def test_agents_refuse_what_is_not_the_detector(
    tmp_path: Path, made: datetime, days: int, name: str, reason: str
) -> None:
    authority = tls.make_authority(made)
    serving = tls.make_serving(authority, NAMES, made, days)
    assert handshake(tmp_path, serving, authority.certificate, name).startswith(reason)


def test_agents_refuse_another_authority_of_the_same_name(authority: tls.KeyPair, tmp_path: Path) -> None:
    serving = tls.make_serving(tls.make_authority(NOW), NAMES, NOW)
    assert "unable to get local issuer" in handshake(tmp_path, serving, authority.certificate, NAMES[0])


def test_a_servers_certificate_signs_nothing(authority: tls.KeyPair, tmp_path: Path) -> None:
    serving = tls.make_serving(authority, NAMES, NOW)
    forged = tls.make_serving(serving, NAMES, NOW)
    chain = tls.KeyPair(forged.certificate + serving.certificate, forged.key)
    assert handshake(tmp_path, chain, authority.certificate, NAMES[0]) != ""


def test_a_new_authority_comes_in_without_an_interruption(authority: tls.KeyPair, tmp_path: Path) -> None:
    old = tls.make_serving(authority, NAMES, NOW)
    successor = tls.make_authority(NOW)
    both = tls.bundle(successor.certificate, authority.certificate, now=NOW)
    new = tls.make_serving(tls.KeyPair(both, successor.key), NAMES, NOW)
    for serving in (old, new):
        assert handshake(tmp_path, serving, both, NAMES[0]) == ""
    assert tls.bundle(both, authority.certificate, now=NOW) == both
    assert tls.bundle(both, now=NOW + timedelta(days=tls.CA_DAYS + 1)) == ""


def test_what_is_wrong_with_a_certificate_is_said(authority: tls.KeyPair) -> None:
    serving = tls.make_serving(authority, NAMES, NOW, days=90)
    other = tls.make_serving(authority, NAMES, NOW)
    end = tls.facts(serving.certificate).not_after

    def problem(pair: tls.KeyPair = serving, names: tuple[str, ...] = NAMES, now: datetime = NOW) -> str:
        return tls.problem(pair, authority.certificate, names, now)

    assert problem() == ""
    assert problem(tls.KeyPair(serving.certificate, other.key)) == "the key does not belong to the certificate"
    assert problem(names=("a.example", *NAMES)) == "it is not valid for a.example"
    assert problem(now=end) == f"it expired on {end:%Y-%m-%d}"
    assert problem(now=NOW + timedelta(days=59)) == ""
    assert problem(now=NOW + timedelta(days=61)) == f"it expires on {end:%Y-%m-%d}"
    stranger = tls.make_serving(tls.make_authority(NOW), NAMES, NOW)
    assert problem(stranger) == "it is not signed by the authority"


def test_a_certificate_never_outlives_its_authority() -> None:
    authority = tls.make_authority(NOW, days=10)
    serving = tls.make_serving(authority, NAMES, NOW, days=365)
    assert tls.facts(serving.certificate).not_after == tls.facts(authority.certificate).not_after
    assert tls.authority_problem(authority, NOW, 5) == ""
    assert tls.authority_problem(authority, NOW, 365).endswith("before a certificate for 365 days would")
    with pytest.raises(CertificateError, match="the authority expired on"):
        tls.make_serving(authority, NAMES, NOW + timedelta(days=11))


@pytest.mark.parametrize("name", ["", "a b", "a..b", "-a", "a/b", "x" * 64, "a\n"])
def test_a_name_that_is_none_is_refused(authority: tls.KeyPair, name: str) -> None:
    with pytest.raises(CertificateError, match="is neither a DNS name nor an address"):
        tls.make_serving(authority, [name], NOW)


@settings(deadline=None)
@given(st.text(max_size=200) | st.just("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"))
def test_rubbish_is_no_certificate_and_no_key(text: str) -> None:
    with pytest.raises(CertificateError):
        tls.facts(text)
    with pytest.raises(CertificateError):
        tls.problem(tls.KeyPair(text, text), text, [], NOW)


def test_keys_are_their_owners_alone_from_the_first_byte_on(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    seen: set[int] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for path in folder.glob("*tls.key*"):
                with contextlib.suppress(FileNotFoundError):  # the temporary one is in its place by now
                    seen.add(path.stat().st_mode & 0o777)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(50):
            tls.write(folder, "tls.key", "secret\n", secret=True)
    finally:
        done.set()
        watcher.join()
    assert seen == {0o600}
    assert (folder / "tls.key").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in folder.iterdir()] == ["tls.key"]
    assert "secret" not in repr(tls.KeyPair("a", "secret"))


def test_half_a_pair_is_an_error(tmp_path: Path) -> None:
    assert tls.read(tmp_path, "tls") is None
    tls.write(tmp_path, "tls.crt", "x", secret=False)
    with pytest.raises(CertificateError, match=r"tls\.crt and .*tls\.key belong together"):
        tls.read(tmp_path, "tls")
