"""Which certificates an installation has and gets: made when missing, renewed in time, never pulled away. Pure."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vedette_operator import certificates
from vedette_operator.certificates import KeyPair
from vedette_operator.errors import CertificateError
from vedette_operator.rendering import Object, TlsMaterial

SECRET = "vedette-authority"  # noqa: S105 - the name of an object
"""Secret with the authority's certificate and key; agents and detector never see it."""
SPREAD = datetime.timedelta(minutes=10)
"""How long a new authority is given to reach every agent before a certificate signed by it is shown. The kubelet
refreshes a mounted ConfigMap within about a minute and a half, agents read it before each delivery."""


@dataclass(frozen=True)
class Certificates:
    """The authority (newest first, former ones behind it) and the detector's certificate."""

    authority: KeyPair
    serving: KeyPair

    @property
    def material(self) -> TlsMaterial:
        """For the renderer."""
        return TlsMaterial(self.authority.certificate, self.serving.certificate, self.serving.key)


def keep(
    authority: KeyPair | None, serving: KeyPair | None, trusted: str, names: Sequence[str], now: datetime.datetime
) -> Certificates:
    """What there is, where it is good; anew, what is not.

    Args:
        authority: as found, if it was.
        serving: as found, if it was.
        trusted: what agents trust now, PEM; empty: nothing.
        names: DNS names of the detector.
        now: aware time.
    """
    if authority is None or _bad_authority(authority, now):
        made = certificates.make_authority(now)
        former = [authority.certificate] if authority is not None and _readable(authority.certificate) else []
        former += [trusted] if _readable(trusted) else []
        authority = KeyPair(certificates.bundle(made.certificate, *former, now=now), made.key)
    if serving is not None:
        try:
            wrong = certificates.problem(serving, authority.certificate, names, now)
            facts = certificates.facts(serving.certificate)
        except CertificateError as error:
            wrong, serving = str(error), None
        else:
            made_at = certificates.facts(authority.certificate).not_before + certificates.CLOCK_SKEW
            can_wait = now < facts.not_after and not set(names) - set(facts.names) and "expires" in wrong
            if not wrong or (can_wait and now < made_at + SPREAD):
                return Certificates(authority, serving)
    return Certificates(authority, certificates.make_serving(authority, names, now))


def _bad_authority(authority: KeyPair, now: datetime.datetime) -> bool:
    try:
        return bool(certificates.authority_problem(authority, now, certificates.SERVING_DAYS))
    except CertificateError:
        return True


def _readable(pem: str) -> bool:
    try:
        return bool(certificates.facts(pem))
    except CertificateError:
        return False


def pair_of(secret: Mapping[str, Any] | None, name: str) -> KeyPair | None:
    """``<name>.crt`` and ``<name>.key`` of a Secret; None where one is missing or is no text."""
    data = (secret or {}).get("data") or {}
    try:
        found = [base64.b64decode(data[f"{name}.{end}"]).decode("ascii") for end in ("crt", "key")]
    except (KeyError, ValueError):
        return None
    return KeyPair(*found)


def authority_secret(authority: KeyPair, namespace: str, labels: Mapping[str, str]) -> Object:
    """The Secret that keeps the authority."""
    content = {"ca.crt": authority.certificate, "ca.key": authority.key}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SECRET, "namespace": namespace, "labels": dict(labels)},
        "type": "Opaque",
        "data": {name: base64.b64encode(text.encode()).decode() for name, text in content.items()},
    }
