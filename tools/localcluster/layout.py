"""Where the things of one cluster lie and what they are called: all of it follows from the cluster's name.

Nothing here touches the machine. The one thing a name cannot decide alone is which network a cluster gets, because two
names can fall on the same one: `network_candidates` gives the order in which they are tried.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BASE = Path("/var/lib/vedette-cluster")
"""Holds one directory per cluster. Removed with the last one."""
NETWORKS = 64
"""As many clusters can be told apart on one machine: 10.192.0.0/16 to 10.255.0.0/16."""
_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,18}[a-z0-9])?")


def check_name(name: str) -> str:
    """The name itself, when it can be one.

    Twenty characters keep every unix socket path of the cluster below the 107 bytes the kernel allows.

    Raises:
        ValueError: it is not a DNS label of at most twenty characters.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a cluster: a to z, 0 to 9 and '-', at most 20, a letter first")
    return name


@dataclass(frozen=True)
class Network:
    """The addresses of one cluster, all of them inside one /16.

    The link between the machine and the node, the pods and the services are ranges of their own, and different for each
    cluster, so that the machine can have routes to the pods and services of several.
    """

    index: int

    @property
    def whole(self) -> ipaddress.IPv4Network:
        """Everything; nothing of the cluster has an address outside."""
        return ipaddress.IPv4Network((0x0AC00000 + (self.index << 16), 16))

    def _part(self, third: int, prefix: int) -> ipaddress.IPv4Network:
        return ipaddress.IPv4Network((int(self.whole.network_address) + (third << 8), prefix))

    @property
    def link(self) -> ipaddress.IPv4Network:
        """Between the machine and the node."""
        return self._part(0, 30)

    @property
    def host(self) -> str:
        """The machine, as the cluster sees it."""
        return str(self.link[1])

    @property
    def node(self) -> str:
        """The node, as the machine sees it; the API server is on port 6443."""
        return str(self.link[2])

    @property
    def services(self) -> ipaddress.IPv4Network:
        """Cluster addresses of services."""
        return self._part(16, 20)

    @property
    def kubernetes_service(self) -> str:
        """The API server's service."""
        return str(self.services[1])

    @property
    def dns_service(self) -> str:
        """The service of the cluster's DNS."""
        return str(self.services[10])

    @property
    def pods(self) -> ipaddress.IPv4Network:
        """Addresses of pods."""
        return self._part(32, 24)

    @property
    def simulated_nodes(self) -> ipaddress.IPv4Network:
        """Addresses that simulated nodes pretend to have; nothing answers there."""
        return self._part(64, 18)

    @property
    def simulated_pods(self) -> ipaddress.IPv4Network:
        """Addresses that pods on simulated nodes pretend to have."""
        return self._part(128, 17)


def network_candidates(name: str) -> Iterator[Network]:
    """Every network once, beginning with the one the name's hash points at."""
    first = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % NETWORKS
    for step in range(NETWORKS):
        yield Network((first + step) % NETWORKS)


def choose_network(name: str, taken: set[int], in_use: list[ipaddress.IPv4Network]) -> Network | None:
    """The first candidate that no other cluster has and that no route or address of the machine touches.

    Args:
        name: the cluster's name.
        taken: indices of the networks of the other clusters.
        in_use: networks of the machine's routes and addresses, without the default route.
    """
    for network in network_candidates(name):
        if network.index not in taken and not any(network.whole.overlaps(other) for other in in_use):
            return network
    return None


@dataclass(frozen=True)
class Layout:
    """Paths and names of one cluster.

    ``node`` is the part of the file system that the node has for itself: its ``/run``, ``/var/lib`` and ``/var/log``
    are ``node/run``, ``node/var/lib`` and ``node/var/log`` as seen from the machine.
    """

    name: str

    def __post_init__(self) -> None:
        check_name(self.name)

    @property
    def root(self) -> Path:
        """Everything of the cluster that is a file."""
        return BASE / self.name

    @property
    def pki(self) -> Path:
        """Keys and certificates."""
        return self.root / "pki"

    @property
    def configs(self) -> Path:
        """Configuration files, and kubeconfig files but the administrator's."""
        return self.root / "config"

    @property
    def logs(self) -> Path:
        """One log per program."""
        return self.root / "logs"

    @property
    def pids(self) -> Path:
        """One file per program: which process it is."""
        return self.root / "pids"

    @property
    def etcd(self) -> Path:
        """Where etcd keeps its data."""
        return self.root / "etcd"

    @property
    def audit_log(self) -> Path:
        """The API server's audit log, one JSON object per line."""
        return self.root / "audit" / "audit.log"

    @property
    def static_pods(self) -> Path:
        """Manifests of the node's static pods."""
        return self.root / "static-pods"

    @property
    def volumes(self) -> Path:
        """The directories behind the persistent volumes."""
        return self.root / "volumes"

    @property
    def node(self) -> Path:
        """The node's own part of the file system."""
        return self.root / "node"

    @property
    def containerd_socket(self) -> Path:
        """The socket under its name on the machine; the node itself has it at /run/containerd/containerd.sock."""
        return self.node / "run" / "containerd" / "containerd.sock"

    @property
    def namespaces(self) -> Path:
        """The files that keep the namespaces."""
        return self.root / "ns"

    @property
    def network_namespace(self) -> Path:
        """Keeps the cluster's network namespace."""
        return self.namespaces / "net"

    @property
    def mount_namespace(self) -> Path:
        """Keeps the node's mount namespace."""
        return self.namespaces / "mnt"

    @property
    def state_file(self) -> Path:
        """What the cluster is, as JSON, for programs."""
        return self.root / "cluster.json"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.root / "kubeconfig"

    @property
    def node_name(self) -> str:
        """The name of the real node."""
        return f"{self.name}-node"

    @property
    def link_name(self) -> str:
        """The machine's end of the link; interface names have at most 15 bytes."""
        return "vedette-" + hashlib.sha256(self.name.encode()).hexdigest()[:7]

    @property
    def cgroup(self) -> str:
        """Below which everything of the cluster runs, in each hierarchy. Pods are in ``<cgroup>/kubepods``."""
        return f"/vedette-{self.name}"
