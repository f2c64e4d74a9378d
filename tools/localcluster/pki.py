"""The certificates and keys of one cluster, laid out as kubeadm lays them out, and its kubeconfig files.

Three authorities, because each answers another question: ``ca`` (who is this user, is this the API server or a
kubelet), ``front-proxy-ca`` (may this client speak for other users: the aggregation layer) and ``etcd-ca`` (may this
client read and write everything). Whoever has a certificate of one is nobody to the other two.

https://kubernetes.io/docs/setup/best-practices/certificates/
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tools.localcluster.layout import Layout, Network

LIFETIME = datetime.timedelta(days=365)
_CLOCK_SKEW = datetime.timedelta(minutes=10)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The key as unencrypted PKCS #8 PEM."""
        return private_pem(self.key)


@dataclass(frozen=True)
class Leaf:
    """What a certificate says. With ``hosts`` it is a server's, otherwise a client's; with ``both`` it is either's."""

    authority: str
    common_name: str
    organization: str | None = None
    hosts: Sequence[str] = ()
    both: bool = False


def leaves(layout: Layout, network: Network) -> dict[str, Leaf]:
    """Every certificate of the cluster but the authorities, by file name."""
    local = ("localhost", "127.0.0.1")
    api = "kubernetes"
    return {
        "apiserver": Leaf(
            "ca",
            "kube-apiserver",
            hosts=(
                *local,
                network.node,
                network.kubernetes_service,
                layout.name,
                api,
                f"{api}.default",
                f"{api}.default.svc",
                f"{api}.default.svc.cluster.local",
            ),
        ),
        "apiserver-kubelet-client": Leaf("ca", "kube-apiserver-kubelet-client", "system:masters"),
        "apiserver-etcd-client": Leaf("etcd-ca", "kube-apiserver-etcd-client"),
        "etcd-server": Leaf("etcd-ca", "etcd", hosts=local, both=True),
        "front-proxy-client": Leaf("front-proxy-ca", "front-proxy-client"),
        # The node authorizer knows a node by this name and group and lets it see what its pods need, nothing more.
        "kubelet-client": Leaf("ca", f"system:node:{layout.node_name}", "system:nodes"),
        "kubelet-server": Leaf("ca", f"system:node:{layout.node_name}", hosts=(*local, network.node, layout.node_name)),
        "controller-manager": Leaf("ca", "system:kube-controller-manager"),
        "scheduler": Leaf("ca", "system:kube-scheduler"),
        "kube-proxy": Leaf("ca", "system:kube-proxy"),
        "admin": Leaf("ca", "kubernetes-admin", "system:masters"),
    }


AUTHORITIES = ("ca", "front-proxy-ca", "etcd-ca")
KUBECONFIGS = {
    "admin": "admin",
    "controller-manager": "controller-manager",
    "scheduler": "scheduler",
    "kubelet": "kubelet-client",
    "kube-proxy": "kube-proxy",
}
"""Kubeconfig files and the certificate each uses."""


def private_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _name(common_name: str, organization: str | None = None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization is not None:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(attributes)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + LIFETIME)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def make_authority(common_name: str) -> Pair:
    """An authority that signs itself and may not have authorities below it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(common_name)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _builder(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Pair(certificate, key)


def make_leaf(leaf: Leaf, authority: Pair) -> Pair:
    """A certificate for a server (with hosts) or a client."""
    key = ec.generate_private_key(ec.SECP256R1())
    usages = [ExtendedKeyUsageOID.SERVER_AUTH] if leaf.hosts else [ExtendedKeyUsageOID.CLIENT_AUTH]
    if leaf.both:
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    identifier = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _builder(_name(leaf.common_name, leaf.organization), authority.certificate.subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    )
    if leaf.hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_general(host) for host in leaf.hosts]), False)
    return Pair(builder.sign(authority.key, hashes.SHA256()), key)


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def kubeconfig(name: str, server: str, authority_pem: bytes, client: Pair) -> str:
    """A kubeconfig with everything inside it, so that it can be copied. JSON, which is YAML as well.

    Cluster, user and context are all called ``name``.
    """

    def data(pem: bytes) -> str:
        return base64.b64encode(pem).decode()

    return (
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [
                    {"name": name, "cluster": {"server": server, "certificate-authority-data": data(authority_pem)}}
                ],
                "users": [
                    {
                        "name": name,
                        "user": {
                            "client-certificate-data": data(client.certificate_pem),
                            "client-key-data": data(client.key_pem),
                        },
                    }
                ],
                "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
                "current-context": name,
            },
            indent=1,
        )
        + "\n"
    )


def write(layout: Layout, network: Network) -> None:
    """Make the keys and certificates and the kubeconfig files, once; a complete directory is left as it is."""
    complete = layout.pki / "complete"
    if complete.exists():
        return
    layout.pki.mkdir(mode=0o700, parents=True, exist_ok=True)
    layout.configs.mkdir(mode=0o700, parents=True, exist_ok=True)
    authorities = {name: make_authority(f"{layout.name} {name}") for name in AUTHORITIES}
    made = {name: make_leaf(leaf, authorities[leaf.authority]) for name, leaf in leaves(layout, network).items()}
    for name, pair in {**authorities, **made}.items():
        _write(layout.pki / f"{name}.crt", pair.certificate_pem)
        _write(layout.pki / f"{name}.key", pair.key_pem)
    # Tokens of service accounts are signed with RSA, as everywhere: whoever checks them offline may expect RS256.
    signer = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    _write(layout.pki / "sa.key", private_pem(signer))
    public = signer.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    _write(layout.pki / "sa.pub", public)
    server = f"https://{network.node}:6443"
    for name, certificate in KUBECONFIGS.items():
        target = layout.kubeconfig if name == "admin" else layout.configs / f"{name}.kubeconfig"
        text = kubeconfig(layout.name, server, authorities["ca"].certificate_pem, made[certificate])
        _write(target, text.encode())
    complete.touch()


def _write(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
