from __future__ import annotations

import base64
import ipaddress
import json
import os
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tools.localcluster import layout as layout_module
from tools.localcluster import pki
from tools.localcluster.layout import Layout, Network

NETWORK = Network(7)


def _attribute(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> str | None:
    found = certificate.subject.get_attributes_for_oid(oid)
    return str(found[0].value) if found else None


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setattr(layout_module, "BASE", tmp_path)
    return Layout("test")


def _load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_each_certificate_is_signed_by_its_authority_and_by_no_other(layout: Layout) -> None:
    pki.write(layout, NETWORK)
    authorities = {name: _load(layout.pki / f"{name}.crt") for name in pki.AUTHORITIES}

    for name, leaf in pki.leaves(layout, NETWORK).items():
        certificate = _load(layout.pki / f"{name}.crt")
        certificate.verify_directly_issued_by(authorities[leaf.authority])
        for other in set(authorities) - {leaf.authority}:
            with pytest.raises((ValueError, InvalidSignature)):
                certificate.verify_directly_issued_by(authorities[other])


def test_authorities_may_sign_and_others_may_not() -> None:
    authority = pki.make_authority("authority")
    leaf = pki.make_leaf(pki.Leaf("ca", "leaf"), authority)

    constraints = authority.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.ca
    assert constraints.value.path_length == 0
    assert not leaf.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not leaf.certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_the_api_server_is_known_under_every_name_pods_and_people_use(layout: Layout) -> None:
    leaf = pki.leaves(layout, NETWORK)["apiserver"]
    certificate = pki.make_leaf(leaf, pki.make_authority("ca")).certificate

    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.IPAddress)) == {
        ipaddress.ip_address(address) for address in ("127.0.0.1", NETWORK.node, NETWORK.kubernetes_service)
    }
    assert {"kubernetes.default.svc", "kubernetes.default.svc.cluster.local"} <= set(
        names.get_values_for_type(x509.DNSName)
    )
    assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH
    ]


@pytest.mark.parametrize(
    ("name", "user", "group"),
    [
        ("admin", "kubernetes-admin", "system:masters"),
        ("kubelet-client", "system:node:test-node", "system:nodes"),
        ("controller-manager", "system:kube-controller-manager", None),
        ("scheduler", "system:kube-scheduler", None),
        ("kube-proxy", "system:kube-proxy", None),
        ("front-proxy-client", "front-proxy-client", None),
    ],
)
def test_clients_are_the_users_that_the_api_server_expects(
    layout: Layout, name: str, user: str, group: str | None
) -> None:
    certificate = pki.make_leaf(pki.leaves(layout, NETWORK)[name], pki.make_authority("ca")).certificate

    assert _attribute(certificate, NameOID.COMMON_NAME) == user
    assert _attribute(certificate, NameOID.ORGANIZATION_NAME) == group
    assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.CLIENT_AUTH
    ]


def test_keys_are_for_their_owner_only_and_are_not_made_twice(layout: Layout) -> None:
    pki.write(layout, NETWORK)
    before = {path.name: path.read_bytes() for path in layout.pki.iterdir()}

    pki.write(layout, NETWORK)

    assert {path.name: path.read_bytes() for path in layout.pki.iterdir()} == before
    for path in (*layout.pki.glob("*.key"), layout.kubeconfig, *layout.configs.glob("*.kubeconfig")):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600, path


def test_a_directory_that_was_left_half_made_is_made_again_as_a_whole(layout: Layout) -> None:
    pki.write(layout, NETWORK)
    (layout.pki / "complete").unlink()
    (layout.pki / "admin.crt").unlink()

    pki.write(layout, NETWORK)

    _load(layout.pki / "admin.crt").verify_directly_issued_by(_load(layout.pki / "ca.crt"))


def test_the_kubeconfig_is_complete_in_itself(layout: Layout) -> None:
    pki.write(layout, NETWORK)
    config = json.loads(layout.kubeconfig.read_text())
    user = config["users"][0]["user"]

    certificate = x509.load_pem_x509_certificate(base64.b64decode(user["client-certificate-data"]))
    assert _attribute(certificate, NameOID.COMMON_NAME) == "kubernetes-admin"
    key = pki.serialization.load_pem_private_key(base64.b64decode(user["client-key-data"]), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.public_key() == certificate.public_key()
    assert config["clusters"][0]["cluster"]["server"] == f"https://{NETWORK.node}:6443"
    assert config["current-context"] == config["contexts"][0]["name"] == "test"
