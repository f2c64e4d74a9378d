"""The certificate that the detector shows: loaded from files, taken anew when they change, without a connection lost.

A changed pair gets a TLS context of its own, and each new handshake is handed to the newest one; open connections go
on with the one that they began with. (A context in use cannot take a new pair: OpenSSL keeps one for each kind of key,
and after a change from ECDSA to RSA would go on to show the old one.) A pair that is broken leaves the old one in
force, and is told of in log and status.

Kubernetes replaces a mounted Secret by swapping one symbolic link, so that between two reads certificate and key may
be of different pairs; such a read is repeated.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vedette_detector.errors import ConfigError

log = logging.getLogger(__name__)

EXPIRY_WARNING_S = 3 * 86400.0
"""Time before the certificate's end from which on the log says so, once a day."""
_SAY_AGAIN_S = 86400.0
_MAX_FILE = 1 << 20
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)

_SEQUENCE, _INTEGER, _UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x30, 0x02, 0x17, 0x18, 0xA0


def _element(data: bytes, at: int) -> tuple[int, int, int]:
    """Tag, begin and end of the content of the DER element at ``at`` (X.690 §8.1; tags of one byte)."""
    tag, length = data[at], data[at + 1]
    begin = at + 2
    if length & 0x80:
        size = length & 0x7F
        if not 1 <= size <= 4:
            raise ValueError("a length that no certificate has")
        length = int.from_bytes(data[begin : begin + size])
        begin += size
    if begin + length > len(data):
        raise ValueError("cut off")
    return tag, begin, begin + length


def _time(tag: int, text: str) -> datetime:
    """A Time of RFC 5280 §4.1.2.5: two digits of a year below 50 are of this century."""
    if tag == _UTC_TIME:
        text = ("20" if int(text[:2]) < 50 else "19") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("not a time")
    if not re.fullmatch(r"\d{14}Z", text):
        raise ValueError("not a time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def validity(der: bytes) -> tuple[datetime, datetime]:
    """From when to when an X.509 certificate is valid (RFC 5280 §4.1). Pure.

    The standard library reads this of the peer's certificate only, and the detector needs it of its own.

    Raises:
        ValueError: not a certificate.
    """
    try:
        _, at, _ = _element(der, 0)
        _, at, _ = _element(der, at)  # into TBSCertificate
        tag, _, end = _element(der, at)
        if tag == _VERSION:
            at = end
        for _ in ("serialNumber", "signature", "issuer"):
            _, _, at = _element(der, at)
        tag, at, _ = _element(der, at)
        if tag != _SEQUENCE:
            raise ValueError("no validity")
        times = []
        for _ in ("notBefore", "notAfter"):
            tag, begin, end = _element(der, at)
            times.append(_time(tag, der[begin:end].decode("ascii")))
            at = end
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"not a certificate: {error}") from None
    return times[0], times[1]


def _context(contents: tuple[bytes, ...]) -> ssl.SSLContext:
    """A server's context with a chain and its key.

    OpenSSL reads them from files only, and the files may change any time: it reads what was read before, from memory.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    memory = os.memfd_create("tls", os.MFD_CLOEXEC)
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(b"\n".join(contents))
        # With a passphrase given, OpenSSL does not ask the terminal for that of an encrypted key.
        context.load_cert_chain(f"/proc/self/fd/{memory}", password="")
    finally:
        os.close(memory)
    return context


class ServingCertificate:
    """A certificate chain and its key in files, and the TLS context that shows them.

    Attributes:
        context: for listeners; TLS 1.2 or later. It hands each handshake to the newest pair's context.
        error: why a changed pair was not taken; None: the files' pair is in force.
    """

    def __init__(self, certificate: Path, key: Path, *, wall: Callable[[], float] = time.time) -> None:
        """Load the pair.

        Raises:
            ConfigError: the files cannot be read, or are not a certificate chain and its key.
        """
        self._files = (certificate, key)
        self._wall = wall
        self.error: str | None = None
        self.reloads = 0
        self._seen: tuple[bytes, ...] = ()
        self._warned = float("-inf")
        self.not_before = self.not_after = datetime.fromtimestamp(0, UTC)
        self.fingerprint = ""
        try:
            self._seen = self._read()
            self._newest = self._take(self._seen)
            self.context = _context(self._seen)
        except (OSError, ValueError) as error:
            raise ConfigError(f"TLS certificate {certificate} with key {key}: {error}") from None
        # Called in each handshake, whether or not the client names a host (RFC 6066 §3).
        self.context.sni_callback = self._hand_over

    def _hand_over(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
        connection.context = self._newest

    def _read(self) -> tuple[bytes, ...]:
        contents = []
        for path in self._files:
            with path.open("rb") as file:
                contents.append(file.read(_MAX_FILE))
        return tuple(contents)

    def _take(self, contents: tuple[bytes, ...]) -> ssl.SSLContext:
        """A context with this pair; what is shown of the pair is set.

        Raises:
            ValueError: it is not a certificate chain and its key.
            OSError: OpenSSL's reasons (ssl.SSLError) are of this kind.
        """
        first = _CERTIFICATE.search(contents[0])
        if first is None:
            raise ValueError("no certificate in the file")
        der = ssl.PEM_cert_to_DER_cert(first[0].decode("ascii", "replace"))
        begin, end = validity(der)
        context = _context(contents)
        self.not_before, self.not_after = begin, end
        self.fingerprint = hashlib.sha256(der).hexdigest()
        return context

    def reload(self) -> bool:
        """Look at the files; returns whether another pair is in force now. Blocks for some milliseconds."""
        taken = False
        for attempt in (1, 2):
            try:
                contents = self._read()
                if contents == self._seen:
                    break
                self._newest = self._take(contents)
            except (OSError, ValueError) as error:
                if attempt == 1:
                    continue
                if str(error) != self.error:
                    log.error("the TLS certificate in %s is not taken, the old one stays: %s", self._files[0], error)
                self.error = str(error)
                return False
            self._seen, taken = contents, True
            self.reloads += 1
            log.info("TLS certificate reloaded; it is valid until %s", self.not_after.isoformat())
            break
        self.error = None
        self._warn()
        return taken

    @property
    def seconds_left(self) -> float:
        """Until the certificate in force ends; negative: it has."""
        return self.not_after.timestamp() - self._wall()

    def _warn(self) -> None:
        now = self._wall()
        if self.seconds_left < EXPIRY_WARNING_S and abs(now - self._warned) >= _SAY_AGAIN_S:
            self._warned = now
            log.warning("the TLS certificate %s ends at %s", self._files[0], self.not_after.isoformat())

    def describe(self) -> dict[str, Any]:
        """JSON for the status page."""
        return {
            "file": str(self._files[0]),
            "not_before": self.not_before.isoformat(),
            "not_after": self.not_after.isoformat(),
            "seconds_left": int(self.seconds_left),
            "sha256": self.fingerprint,
            "reloads": self.reloads,
            "error": self.error,
        }
