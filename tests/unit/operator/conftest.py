"""Rendering with certificates that are always the same, so that golden files hold."""

from collections.abc import Callable
from typing import Any

import pytest

from vedette_operator.rendering import Manifest, TlsMaterial, render
from vedette_operator.values import parse

TLS = TlsMaterial(
    ca="-----BEGIN CERTIFICATE-----\nauthority\n-----END CERTIFICATE-----\n",
    certificate="-----BEGIN CERTIFICATE-----\nserving\n-----END CERTIFICATE-----\n",
    key="-----BEGIN PRIVATE KEY-----\nkey\n-----END PRIVATE KEY-----\n",
)

Render = Callable[..., dict[tuple[str, str], dict[str, Any]]]


def rendered(data: Any = None, tls: TlsMaterial | None = TLS) -> list[Manifest]:
    return render(parse(data), tls)


@pytest.fixture
def objects() -> Render:
    """Renders values; the objects by kind and name."""

    def make(data: Any = None, tls: TlsMaterial | None = TLS) -> dict[tuple[str, str], dict[str, Any]]:
        return {(m.kind, m.name): m.content for m in rendered(data, tls)}

    return make
