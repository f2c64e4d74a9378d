"""Ask the cluster's DNS one question: whether everything between a pod and its name works."""

from __future__ import annotations

import ipaddress
import socket
import struct

from tools.localcluster.configs import DOMAIN
from tools.localcluster.layout import Network

_HEADER = struct.Struct("!6H")
_TYPE_A, _CLASS_IN = 1, 1


def question(name: str, identifier: int) -> bytes:
    """A query for the IPv4 address of a name (RFC 1035, section 4)."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return _HEADER.pack(identifier, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", _TYPE_A, _CLASS_IN)


def is_answer(reply: bytes, identifier: int, address: str) -> bool:
    """Whether a reply is the one to our question and its last record is that address."""
    if len(reply) < _HEADER.size:
        return False
    replied, flags, _, answers, _, _ = _HEADER.unpack_from(reply)
    refused = flags & 0x000F
    return (
        replied == identifier and not refused and answers > 0 and reply.endswith(ipaddress.IPv4Address(address).packed)
    )


def answers(network: Network, *, timeout_s: float = 1.0) -> bool:
    """Whether the DNS service knows the API server's service.

    The question goes to the service's address, so that a yes means: kube-proxy, pod network, CoreDNS and its connection
    to the API server work.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(timeout_s)
        try:
            client.connect((network.dns_service, 53))
            client.send(question(f"kubernetes.default.svc.{DOMAIN}", 0x5644))
            return is_answer(client.recv(512), 0x5644, network.kubernetes_service)
        except OSError:
            return False
