"""The detector's certificate and the authority that signs it.

Pure functions from names and times to PEM; `write` and `read` keep a set of files. ECDSA on P-256 with SHA-256: every
TLS stack has it, and a handshake costs a small fraction of RSA's. The authority cannot make further authorities (path
length 0) and is used for nothing but Vedette.

A new authority is brought in without an interruption in that ``ca.crt`` holds the old one and the new one for a while:
agents trust both, whichever of the two certificates the detector shows them.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vedette_operator.errors import CertificateError

CA_DAYS = 3650
SERVING_DAYS = 365
RENEW_FRACTION = 3
"""A certificate is renewed when less than a third of its life is left, as cert-manager does by default."""

CLOCK_SKEW = datetime.timedelta(minutes=10)
"""How far before now a certificate is valid, for nodes whose clock is slow."""

FILES = ("ca.crt", "ca.key", "tls.crt", "tls.key")
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n?", re.DOTALL)


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its private key, PEM and PKCS #8; an authority's may be several, the one that signs first."""

    certificate: str
    key: str = field(repr=False)


@dataclass(frozen=True)
class Facts:
    """What a certificate says."""

    subject: str
    names: tuple[str, ...]
    not_before: datetime.datetime
    not_after: datetime.datetime
    serial: str

    @property
    def renewal(self) -> datetime.datetime:
        """From when on it is to be renewed."""
        return self.not_after - (self.not_after - self.not_before) / RENEW_FRACTION


def make_authority(now: datetime.datetime, days: int = CA_DAYS, name: str = "Vedette CA") -> KeyPair:
    """Make a certificate authority, valid from ``now`` (aware) for ``days``."""
    key = ec.generate_private_key(ec.SECP256R1())
    # Part of the serial is in the name: not every verifier tells authorities of one name and different keys apart.
    serial = x509.random_serial_number()
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Vedette"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{name} {serial & 0xFFFFFFFF:08x}"),
        ]
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(_second(now - CLOCK_SKEW))
        .not_valid_after(_second(now) + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA256())
    )
    return KeyPair(_pem(certificate), _key_pem(key))


def make_serving(authority: KeyPair, names: Sequence[str], now: datetime.datetime, days: int = SERVING_DAYS) -> KeyPair:
    """Make a server's certificate for DNS names and addresses, signed by ``authority``; it never outlives that.

    Raises:
        CertificateError: the authority cannot be read or has expired, or a name is none.
    """
    issuer, issuer_key = _certificates(authority.certificate)[0], _load_key(authority.key)
    key = ec.generate_private_key(ec.SECP256R1())
    end = min(_second(now) + datetime.timedelta(days=days), issuer.not_valid_after_utc)
    if end <= now:
        raise CertificateError(f"the authority expired on {_day(issuer.not_valid_after_utc)}")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vedette-detector")]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(_second(now - CLOCK_SKEW), issuer.not_valid_before_utc))
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            ),
            critical=False,
        )
        .sign(issuer_key, hashes.SHA256())
    )
    return KeyPair(_pem(certificate), _key_pem(key))


def facts(pem: str) -> Facts:
    """What the first certificate of ``pem`` says.

    Raises:
        CertificateError: there is none.
    """
    certificate = _certificates(pem)[0]
    names: list[str] = []
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names += alternative.get_values_for_type(x509.DNSName)
        names += [str(address) for address in alternative.get_values_for_type(x509.IPAddress)]
    except x509.ExtensionNotFound:
        pass
    return Facts(
        certificate.subject.rfc4514_string(),
        tuple(names),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        f"{certificate.serial_number:x}",
    )


def problem(serving: KeyPair, authorities: str, names: Sequence[str], now: datetime.datetime) -> str:
    """Why a server's certificate does not serve ``names`` any more, or needs renewal; empty when all is well.

    Args:
        serving: certificate and key.
        authorities: the certificates that clients trust, PEM.
        names: DNS names and addresses that it must be valid for.
        now: aware time.

    Raises:
        CertificateError: one of them cannot be read.
    """
    certificate, key = _certificates(serving.certificate)[0], _load_key(serving.key)
    if certificate.public_key() != key.public_key():
        return "the key does not belong to the certificate"
    if not any(_signed_by(certificate, authority) for authority in _certificates(authorities)):
        return "it is not signed by the authority"
    found = facts(serving.certificate)
    missing = [name for name in names if name not in found.names]
    if missing:
        return f"it is not valid for {', '.join(missing)}"
    if now >= found.not_after:
        return f"it expired on {_day(found.not_after)}"
    if now >= found.renewal:
        return f"it expires on {_day(found.not_after)}"
    return ""


def bundle(*certificates: str, now: datetime.datetime) -> str:
    """The certificates of several PEM texts in order, each once, without those that have expired."""
    kept: dict[bytes, str] = {}
    for text in certificates:
        for certificate in _certificates(text):
            if certificate.not_valid_after_utc > now:
                kept.setdefault(certificate.fingerprint(hashes.SHA256()), _pem(certificate))
    return "".join(kept.values())


def authority_problem(authority: KeyPair, now: datetime.datetime, days: int) -> str:
    """Why an authority cannot sign a certificate for ``days`` days; empty when it can."""
    end = facts(authority.certificate).not_after
    if _certificates(authority.certificate)[0].public_key() != _load_key(authority.key).public_key():
        return "its key does not belong to its certificate"
    if now >= end:
        return f"it expired on {_day(end)}"
    if now + datetime.timedelta(days=days) > end:
        return f"it expires on {_day(end)}, before a certificate for {days} days would"
    return ""


def read(directory: Path, name: str) -> KeyPair | None:
    """``<name>.crt`` and ``<name>.key`` of a directory; None when neither exists.

    Raises:
        CertificateError: one of the two is missing or cannot be read.
    """
    certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
    if not certificate.exists() and not key.exists():
        return None
    try:
        return KeyPair(certificate.read_text("ascii"), key.read_text("ascii"))
    except (OSError, UnicodeDecodeError) as error:
        raise CertificateError(f"{certificate} and {key} belong together: {error}") from error


def write(directory: Path, name: str, content: str, *, secret: bool) -> None:
    """Put a file in the place of an older one at once; a secret one has mode 0600 from its first byte on."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=directory)  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(content)
            if not secret:
                os.fchmod(file.fileno(), 0o644)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, directory / name)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    label = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
    if not re.fullmatch(rf"(\*\.)?{label}(\.{label})*", name) or len(name) > 253:
        raise CertificateError(f"{name!r} is neither a DNS name nor an address")
    return x509.DNSName(name)


def _certificates(pem: str) -> list[x509.Certificate]:
    try:
        found = [x509.load_pem_x509_certificate(text.encode()) for text in _PEM.findall(pem)]
    except ValueError as error:
        raise CertificateError(f"not a certificate: {error}") from error
    if not found:
        raise CertificateError("there is no certificate in PEM form")
    return found


def _load_key(pem: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem.encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertificateError(f"not a private key without a password: {type(error).__name__}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError("not a private key of an elliptic curve")
    return key


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode("ascii")


def _second(moment: datetime.datetime) -> datetime.datetime:
    return moment.astimezone(datetime.UTC).replace(microsecond=0)


def _day(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%d")
