"""Throw-away containers for the tests and the demo: a cached Debian root file system, overlayfs and runc.

No container engine and no network is needed once the root file system is cached. `rootfs` makes and caches it,
`container` starts containers from it and removes every trace of them, `host` gives the same interface for
processes that run outside any container, `pod` for a pod of a cluster whose node is this machine.
"""

from tools.containers.container import Container, ContainerError
from tools.containers.host import HostSandbox
from tools.containers.place import ATTACKER_V4, ATTACKER_V6, LOCAL_V4, RESOLVER_V4, Place
from tools.containers.pod import Kubectl, Pod, PodError
from tools.containers.rootfs import BASE_PACKAGES, cache_directory, ensure_rootfs

__all__ = [
    "ATTACKER_V4",
    "ATTACKER_V6",
    "BASE_PACKAGES",
    "LOCAL_V4",
    "RESOLVER_V4",
    "Container",
    "ContainerError",
    "HostSandbox",
    "Kubectl",
    "Place",
    "Pod",
    "PodError",
    "cache_directory",
    "ensure_rootfs",
]
