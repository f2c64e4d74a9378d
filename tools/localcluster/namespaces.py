"""The network and the mount namespace of a cluster, kept alive by files instead of by a process.

The network namespace holds everything: control plane, node, pods, and every rule and interface they make. A veth pair
joins it to the machine. It has no default route: pods reach each other, the services and the machine, nothing else.

The mount namespace is the node's alone (containerd, kubelet, kube-proxy). It is shared inside, as mount propagation of
volumes asks for, and cut off from the machine's. In it the node has a ``/run``, ``/var/lib`` and ``/var/log`` of its
own, so that sockets, pod directories and hostPath volumes have the paths of any real node and still are this cluster's.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tools.localcluster.configs import KERNEL_SETTINGS
from tools.localcluster.errors import ClusterError
from tools.localcluster.layout import BASE, Layout, Network


def run(command: Sequence[str], *, check: bool = True) -> str:
    """Run a short command; its output. Raises ClusterError with what it said."""
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if check and result.returncode:
        raise ClusterError(f"{shlex.join(command)}: exit code {result.returncode}: {result.stderr.strip()[-500:]}")
    return result.stdout


def _unescape(path: str) -> str:
    return path.replace("\\040", " ").replace("\\134", "\\")


def mount_points() -> set[str]:
    """Every mount point of the machine."""
    return {_unescape(line.split(" ")[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines()}


def networks_in_use(own_link: str) -> list[ipaddress.IPv4Network]:
    """The machine's addresses and routes, without the default route and without those over our own link."""
    found = []
    for route in json.loads(run(["ip", "-json", "-4", "route", "show", "table", "all"]) or "[]"):
        if route.get("dev") != own_link and route["dst"] != "default":
            with contextlib.suppress(ValueError):
                found.append(ipaddress.IPv4Network(route["dst"], strict=False))
    return found


def make_network(layout: Layout, network: Network) -> None:
    """Make the network namespace and the link, as far as they are missing."""
    _make_holder(layout)
    if str(layout.network_namespace) not in mount_points():
        layout.network_namespace.touch()
        run(["unshare", f"--net={layout.network_namespace}", "true"])
        _in_network(layout, "ip link set lo up")
    link = layout.link_name
    if not Path(f"/sys/class/net/{link}").exists():
        run(["ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(layout.network_namespace)])
        run(["ip", "address", "add", f"{network.host}/30", "dev", link])
        run(["ip", "link", "set", link, "up"])
        # Bridged packets go through the rules of kube-proxy; the default of the kernel, but a machine may differ.
        _in_network(
            layout,
            f"ip address add {network.node}/30 dev eth0 && ip link set eth0 up && "
            "echo 1 > /proc/sys/net/ipv4/ip_forward && "
            "{ echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables || true; } 2>/dev/null",
        )
    # There is no default route, and the kernel wants a route before kube-proxy's rules change a packet's destination.
    _in_network(layout, f"ip route replace {network.services} via {network.host} dev eth0")
    for part in (network.pods, network.services):
        run(["ip", "route", "replace", str(part), "via", network.node, "dev", link])


def _make_holder(layout: Layout) -> None:
    """A private mount: a namespace can be kept by a file only where mounts are not handed on (unshare(1))."""
    layout.namespaces.mkdir(parents=True, exist_ok=True)
    if str(layout.namespaces) not in mount_points():
        run(["mount", "--bind", str(layout.namespaces), str(layout.namespaces)])
        run(["mount", "--make-private", str(layout.namespaces)])


def _in_network(layout: Layout, script: str) -> None:
    run(["nsenter", f"--net={layout.network_namespace}", "--", "sh", "-ec", script])


def node_script(layout: Layout) -> str:
    """What makes a copy of the machine's mounts the node's: run once inside the new mount namespace."""
    root, node = shlex.quote(str(layout.root)), shlex.quote(str(layout.node))
    lines = [
        # A namespace that a mount of ours still showed would outlive its cluster.
        f"awk '$2 ~ \"^{BASE}/[^/]+/ns(/|$)\" {{print $2}}' /proc/self/mounts | tac | while read -r point; do",
        '  umount -l "$point"; done',
        # Its /var/lib covers the machine's, where the cluster's own directory is: that one is shown inside again.
    ]
    for name in ("run", "var/log", "var/lib"):
        lines.append(f"mkdir -p {node}/{name}")
    lines += [
        f"mkdir -p {node}/run/lock {node}/var/lib/vedette-cluster/{shlex.quote(layout.name)}",
        f"mount --bind {root} {node}/var/lib/vedette-cluster/{shlex.quote(layout.name)}",
        f"mount --bind {node}/run /run",
        f"mount --bind {node}/var/log /var/log",
        f"mount --rbind {node}/var/lib /var/lib",
    ]
    for setting in KERNEL_SETTINGS:
        file = shlex.quote(str(layout.configs / "kernel" / setting.replace("/", ".")))
        lines.append(f"if [ -e /proc/sys/{setting} ]; then mount --bind {file} /proc/sys/{setting}; fi")
    # Last, so that what was mounted above does not show up at several places.
    lines.append("mount --make-rshared /")
    return "\n".join(lines)


def make_node_mounts(layout: Layout) -> None:
    """Make the node's mount namespace when it is missing."""
    if str(layout.mount_namespace) in mount_points():
        return
    # Sockets and pid files of a node that is no more.
    shutil.rmtree(layout.node / "run", ignore_errors=True)
    kernel = layout.configs / "kernel"
    kernel.mkdir(parents=True, exist_ok=True)
    for setting, value in KERNEL_SETTINGS.items():
        (kernel / setting.replace("/", ".")).write_text(value + "\n")
    layout.mount_namespace.touch()
    script = node_script(layout)
    run(["unshare", f"--mount={layout.mount_namespace}", "--propagation=private", "sh", "-ec", script])


def remove(layout: Layout) -> None:
    """Let go of both namespaces and remove the link; whatever of it there is."""
    if Path(f"/sys/class/net/{layout.link_name}").exists():
        run(["ip", "link", "delete", layout.link_name])
    for point in (layout.mount_namespace, layout.network_namespace, layout.namespaces):
        while str(point) in mount_points():
            run(["umount", str(point)])
