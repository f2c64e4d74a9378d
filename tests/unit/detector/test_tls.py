"""The serving certificate: read, taken anew, kept when the new pair is broken."""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.detector.api_server import Authority, write_pair
from vedette_detector.errors import ConfigError
from vedette_detector.tls import ServingCertificate, validity

AUTHORITY = Authority()
PAIR = AUTHORITY.issue("127.0.0.1", "detector.test")


def der_of(pem: bytes) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem.decode())


class Secret:
    """A mounted Secret: files behind a symbolic link that is swapped, as the kubelet does it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._number = 0
        folder.mkdir()
        for name in ("tls.crt", "tls.key"):
            (folder / name).symlink_to(f"..data/{name}")

    def put(self, pair: tuple[bytes, bytes]) -> tuple[Path, Path]:
        self._number += 1
        write_pair(self.folder / f"..{self._number}", pair)
        (self.folder / "..new").symlink_to(f"..{self._number}")
        os.replace(self.folder / "..new", self.folder / "..data")
        return self.folder / "tls.crt", self.folder / "tls.key"


@asynccontextmanager
async def echo(certificate: ServingCertificate) -> AsyncIterator[int]:
    """A TLS server with this certificate that returns each line; its port."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=certificate.context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def connect(
    port: int, name: str | None = None, **options: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = ssl.create_default_context(cadata=AUTHORITY.pem.decode())
    for option, value in options.items():
        setattr(context, option, value)
    return await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name or "127.0.0.1")


async def shown(port: int, name: str | None = None, **options: int) -> bytes:
    """The certificate that a new connection is shown, as DER."""
    _, writer = await connect(port, name, **options)
    session = writer.get_extra_info("ssl_object")
    der: bytes = session.getpeercert(binary_form=True)
    writer.close()
    return der


def test_the_time_of_validity_is_that_of_the_certificate() -> None:
    for days in (1, 400, 40 * 365):
        pem, _ = AUTHORITY.issue("x", valid_for=datetime.timedelta(days=days))
        known = x509.load_pem_x509_certificate(pem)
        assert validity(der_of(pem)) == (known.not_valid_before_utc, known.not_valid_after_utc)


@given(st.binary(max_size=100) | st.integers(0, 1000).map(lambda n: der_of(PAIR[0])[:n]))
def test_what_is_no_certificate_is_a_value_error(data: bytes) -> None:
    try:
        validity(data)
    except ValueError:
        return
    assert len(data) > 100


@given(st.integers(0, 299), st.integers(0, 255))
def test_a_damaged_certificate_has_times_or_is_a_value_error(at: int, value: int) -> None:
    der = bytearray(der_of(PAIR[0]))
    der[at] = value
    try:
        begin, end = validity(bytes(der))
    except ValueError:
        return
    assert (begin.tzinfo, end.tzinfo) == (datetime.UTC, datetime.UTC)


@pytest.mark.parametrize("name", ["127.0.0.1", "detector.test"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_new_connections_see_the_new_pair_and_open_ones_go_on(
    tmp_path: Path, name: str, version: ssl.TLSVersion
) -> None:
    """Whatever the kinds of key are, and whether or not the client names the host (an address is not named)."""
    secret = Secret(tmp_path / "tls")
    pairs = [AUTHORITY.issue("127.0.0.1", "detector.test", kind=k) for k in ("ecdsa", "rsa", "ecdsa", "rsa", "rsa")]
    certificate = ServingCertificate(*secret.put(pairs[0]))
    async with echo(certificate) as port:
        reader, writer = await connect(port, name)
        for number, pair in enumerate(pairs):
            secret.put(pair)
            assert certificate.reload() is (number > 0)
            assert not certificate.reload()
            assert await shown(port, name, maximum_version=version) == der_of(pair[0])
            writer.write(b"still here\n")
            assert await reader.readline() == b"still here\n"
        writer.close()
    assert certificate.describe()["reloads"] == 4


async def test_less_than_tls_1_2_is_refused(tmp_path: Path) -> None:
    certificate = ServingCertificate(*write_pair(tmp_path, PAIR))
    for context in (certificate.context, certificate._newest):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2


ENCRYPTED = serialization.load_pem_private_key(PAIR[1], None).private_bytes(
    serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8,
    serialization.BestAvailableEncryption(b"passphrase"),
)


@pytest.mark.parametrize(
    "broken",
    [
        (b"", b""),
        (b"garbage", PAIR[1]),
        (PAIR[0], b"garbage"),
        (PAIR[0], AUTHORITY.issue("127.0.0.1")[1]),
        (PAIR[0], AUTHORITY.issue("127.0.0.1", kind="rsa")[1]),
        (PAIR[0][:200], PAIR[1]),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", PAIR[1]),
        (PAIR[0], ENCRYPTED),
    ],
    ids=["empty", "no-certificate", "no-key", "another-key", "key-of-another-kind", "cut", "not-der", "encrypted"],
)
async def test_a_broken_pair_leaves_the_old_one_in_force_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: tuple[bytes, bytes]
) -> None:
    caplog.set_level(logging.INFO)
    secret = Secret(tmp_path / "tls")
    with pytest.raises(ConfigError, match="TLS certificate"):
        ServingCertificate(*secret.put(broken))
    certificate = ServingCertificate(*secret.put(PAIR))
    async with echo(certificate) as port:
        secret.put(broken)
        for _ in range(3):
            assert not certificate.reload()
        assert certificate.error
        assert await shown(port) == der_of(PAIR[0])
        errors = [r for r in caplog.records if r.levelno == logging.ERROR]
        assert len(errors) == 1
        assert "the old one stays" in errors[0].getMessage()
        new = AUTHORITY.issue("127.0.0.1")
        secret.put(new)
        assert certificate.reload()
        assert certificate.error is None
        assert await shown(port) == der_of(new[0])


def test_files_that_are_gone_for_a_moment_are_no_reason_to_change(tmp_path: Path) -> None:
    cert, key = write_pair(tmp_path, PAIR)
    certificate = ServingCertificate(cert, key)
    cert.unlink()
    assert not certificate.reload()
    assert certificate.error is not None
    write_pair(tmp_path, PAIR)
    assert not certificate.reload()
    assert certificate.error is None


def test_a_pair_that_ends_soon_is_said_once_a_day(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = [datetime.datetime.now(datetime.UTC).timestamp()]
    pair = AUTHORITY.issue("127.0.0.1", valid_for=datetime.timedelta(days=5))
    certificate = ServingCertificate(*write_pair(tmp_path, pair), wall=lambda: now[0])
    for hours, said in ((0, 0), (47, 0), (49, 1), (60, 1), (74, 2)):
        now[0] += hours * 3600 - (now[0] - certificate.not_after.timestamp() + 5 * 86400)
        certificate.reload()
        assert len([r for r in caplog.records if "ends at" in r.getMessage()]) == said, hours
    assert certificate.describe()["seconds_left"] == pytest.approx(46 * 3600, abs=2)
