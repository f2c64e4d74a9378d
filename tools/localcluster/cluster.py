"""One cluster: up, down, what it is. The interface for tests; the command line is a thin layer over it.

    with Cluster("mine") as cluster:
        cluster.load_image(Path("build/images/agent.tar"))
        cluster.kubectl("get", "pods", "-A")

Two clusters with different names do not know of each other. All of a cluster is below `Layout.root`, in its cgroups, in
its two namespaces, and in one network interface and two routes of the machine; `Cluster.down` removes these and with
them everything the cluster ever made.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tools.localcluster import (
    addons,
    build,
    cgroups,
    configs,
    dns,
    namespaces,
    pki,
    prerequisites,
    processes,
    programs,
    simulated,
)
from tools.localcluster.api import MERGE_PATCH, Api, object_path, wait
from tools.localcluster.errors import ClusterError, ComponentError, NoSuchClusterError
from tools.localcluster.layout import BASE, Layout, Network, choose_network
from tools.localcluster.processes import Program

Say = Callable[[str], None]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class ComponentStatus:
    """One program of a cluster."""

    name: str
    pid: int | None
    """None when it does not run."""
    rss_bytes: int = 0
    age_s: float = 0.0


@dataclass(frozen=True)
class Status:
    """A cluster as it is now."""

    components: tuple[ComponentStatus, ...]
    api_ready: bool
    nodes_ready: int
    nodes: int

    @property
    def healthy(self) -> bool:
        """Whether everything runs and every node is ready."""
        running = all(component.pid is not None for component in self.components)
        return running and self.api_ready and self.nodes > 0 and self.nodes_ready == self.nodes


class Cluster:
    """A cluster by its name; it need not exist yet.

    Attributes:
        name: the name.
        layout: all its paths and names.
    """

    def __init__(self, name: str = "vedette", *, say: Say = _say) -> None:
        """Name a cluster.

        Args:
            name: a DNS label of at most 20 characters.
            say: takes the lines that tell how bringing up goes.

        Raises:
            ValueError: the name cannot be one.
        """
        self.name = name
        self.layout = Layout(name)
        self._say = say
        self._began = time.monotonic()

    # What others need to know.

    @property
    def exists(self) -> bool:
        """Whether there is anything of the cluster; it may be half up."""
        return self.layout.root.exists()

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig; complete in itself, may be copied."""
        return self.layout.kubeconfig

    @property
    def node_name(self) -> str:
        """The name of the real node."""
        return self.layout.node_name

    @property
    def network(self) -> Network:
        """The cluster's addresses.

        Raises:
            NoSuchClusterError: it was never brought up.
        """
        return Network(int(self._state()["network"]))

    @property
    def host_address(self) -> str:
        """The address under which pods and the API server reach servers on this machine (webhooks, collectors)."""
        return self.network.host

    @property
    def node_address(self) -> str:
        """The node's address as this machine sees it; node ports and host ports are reached here."""
        return self.network.node

    @property
    def audit_log(self) -> Path:
        """The API server's audit log, one JSON object per line."""
        return self.layout.audit_log

    @property
    def static_pods(self) -> Path:
        """Manifests written here (whole, by rename) become static pods of the node."""
        return self.layout.static_pods

    @property
    def containerd_socket(self) -> Path:
        """The socket of the node's containerd, as seen from this machine."""
        return self.layout.containerd_socket

    def node_path(self, path: str | Path) -> Path:
        """Where a path of the node (a hostPath volume, say) lies on this machine.

        The node has its own /run, /var/lib and /var/log; everything else is the machine's.
        """
        text = str(path)
        if text == "/var/run" or text.startswith("/var/run/"):
            text = text.removeprefix("/var")
        for own in ("/run", "/var/lib", "/var/log"):
            if text == own or text.startswith(own + "/"):
                return self.layout.node / text.lstrip("/")
        return Path(text)

    def _state(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads(self.layout.state_file.read_text())
        except FileNotFoundError:
            raise NoSuchClusterError(f"there is no cluster {self.name!r}: python -m tools.localcluster up") from None
        return state

    # Up.

    def up(self, *, simulated_nodes: int = 0) -> Cluster:
        """Bring the cluster up, or what is missing of it: what runs stays, what died is started again.

        Args:
            simulated_nodes: nodes that exist in the API only, played by kwok.

        Returns:
            Itself, when the node is ready and DNS answers.

        Raises:
            PrerequisiteError: the machine lacks something.
            BuildError: a component did not compile.
            ComponentError: a component did not come up; its log is in the message.
        """
        self._began = time.monotonic()
        machine = prerequisites.check()
        components = build.components(self._say, simulated_nodes=simulated_nodes > 0)
        self._step("components")
        with self._locked():
            network = self._prepare(components, simulated_nodes, machine)
            procs = cgroups.make(self.layout)
            self._start(network, machine, components, procs, simulated_nodes)
        self._say(f"{self.name}: up in {time.monotonic() - self._began:.1f} s; export KUBECONFIG={self.kubeconfig}")
        return self

    def _step(self, what: str) -> None:
        self._say(f"{self.name}: {time.monotonic() - self._began:5.1f} s  {what}")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else changes this cluster meanwhile. The lock is on its directory, so that none is left over."""
        while True:
            self.layout.root.mkdir(mode=0o755, parents=True, exist_ok=True)
            descriptor = os.open(self.layout.root, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                # The one before us may have taken the cluster down and its directory away.
                with contextlib.suppress(FileNotFoundError):
                    if os.stat(self.layout.root).st_ino == os.fstat(descriptor).st_ino:
                        yield
                        return
            finally:
                os.close(descriptor)

    def _prepare(self, components: build.Components, simulated_nodes: int, machine: prerequisites.Machine) -> Network:
        layout = self.layout
        network = self._choose_network()
        for directory in (
            layout.configs / "cni",
            layout.logs,
            layout.pids,
            layout.static_pods,
            layout.audit_log.parent,
        ):
            directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        for number in range(addons.VOLUMES):
            (layout.volumes / f"{number:02}").mkdir(parents=True, exist_ok=True)
        self._write_state(network, components, simulated_nodes)
        pki.write(layout, network)
        files = configs.render(
            layout,
            network,
            runc=machine.runc,
            cni_binaries=str(machine.cni_binaries),
            max_open_files=machine.max_open_files,
        )
        for path, text in files.items():
            # kube-proxy ends when its file is written, even with what was in it.
            if not path.exists() or path.read_text() != text:
                path.write_text(text)
        if not {str(layout.network_namespace), str(layout.mount_namespace)} <= namespaces.mount_points():
            # Half a cluster, or one from before a restart of the machine: what runs is in a namespace that is lost.
            cgroups.kill(layout)
            namespaces.remove(layout)
        namespaces.make_network(layout, network)
        namespaces.make_node_mounts(layout)
        self._step("namespaces, certificates")
        return network

    def _choose_network(self) -> Network:
        with contextlib.suppress(NoSuchClusterError, ValueError, KeyError):
            return self.network
        descriptor = os.open(BASE, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            taken = set()
            for file in BASE.glob("*/cluster.json"):
                with contextlib.suppress(OSError, ValueError, KeyError):
                    taken.add(int(json.loads(file.read_text())["network"]))
            network = choose_network(self.name, taken, namespaces.networks_in_use(self.layout.link_name))
            if network is None:
                raise ClusterError("no free network: every part of 10.192.0.0/10 is in use on this machine")
            self._replace_state({"network": network.index})
            return network
        finally:
            os.close(descriptor)

    def _replace_state(self, state: dict[str, Any]) -> None:
        temporary = self.layout.state_file.with_suffix(".new")
        temporary.write_text(json.dumps(state, indent=1) + "\n")
        temporary.rename(self.layout.state_file)

    def _write_state(self, network: Network, components: build.Components, simulated_nodes: int) -> None:
        """For programs that are not Python: everything about the cluster in one file."""
        layout = self.layout
        self._replace_state(
            {
                "name": self.name,
                "network": network.index,
                "simulated_nodes": simulated_nodes,
                "kubeconfig": str(layout.kubeconfig),
                "kubectl": str(components.kubectl),
                "node_name": layout.node_name,
                "node_address": network.node,
                "host_address": network.host,
                "pods": str(network.pods),
                "services": str(network.services),
                "dns_service": network.dns_service,
                "audit_log": str(layout.audit_log),
                "containerd_socket": str(layout.containerd_socket),
                "static_pods": str(layout.static_pods),
                "network_namespace": str(layout.network_namespace),
                "mount_namespace": str(layout.mount_namespace),
                "cgroup": layout.cgroup,
                "front_proxy_ca": str(layout.pki / "front-proxy-ca.crt"),
                "logs": str(layout.logs),
            }
        )

    def _start(
        self,
        network: Network,
        machine: prerequisites.Machine,
        components: build.Components,
        procs: list[Path],
        simulated_nodes: int,
    ) -> None:
        layout = self.layout

        def ensure(program: Program) -> None:
            processes.ensure(layout, program, procs)

        ensure(programs.etcd(layout, components))
        ensure(programs.api_server(layout, network, components))
        ensure(programs.containerd(layout, machine.containerd))
        self._wait(self._containerd_ready, 20, "containerd")
        self._import_missing(components.images)
        self._step("containerd, images")
        api = Api(layout, network)
        try:
            self._wait(api.ready, 60, "kube-apiserver", "etcd")
            self._step("API server")
            ensure(programs.kubelet(layout, network, components))
            ensure(programs.controller_manager(layout, components))
            ensure(programs.scheduler(layout, components))
            ensure(programs.kube_proxy(layout, components))
            for manifest in (*addons.dns(network), addons.storage_class()):
                api.apply(manifest)
            self._wait(lambda: self._node_ready(api), 60, "kubelet", "containerd", "kube-controller-manager")
            self._wait(lambda: self._pods_known(api), 60, "kubelet", "containerd")
            self._step("node")
            for number in range(addons.VOLUMES):
                api.apply(addons.volume(layout, number))
            self._wait(lambda: dns.answers(network), 60, "kubelet", *programs.NAMES[:-1])
            self._step("DNS")
            if components.kwok is not None:
                self._simulate(network, simulated_nodes)
                (layout.configs / "stages.yaml").write_text(simulated.stages_file())
                ensure(programs.kwok(layout, network, components.kwok))
                # Listing a thousand nodes costs the API server more than making one.
                self._wait(lambda: self._nodes(api)[0] > simulated_nodes, 180, "kwok", "kube-apiserver", pause_s=1)
                self._step(f"{simulated_nodes} simulated nodes")
            elif (layout.configs / "stages.yaml").exists():
                self._simulate(network, 0)
                processes.stop(layout, "kwok")
                self._step("no simulated nodes")
        finally:
            api.close()

    def _wait(self, condition: Callable[[], bool], timeout_s: float, *names: str, pause_s: float = 0.1) -> None:
        """Wait for something the first of the named programs does; all of them must stay alive meanwhile."""

        def alive() -> None:
            processes.reap()
            for name in names:
                if processes.find(self.layout, name) is None:
                    raise processes.failure(self.layout, name, "ended")

        if not wait(condition, timeout_s, alive=alive, pause_s=pause_s):
            raise processes.failure(self.layout, names[0], f"was not ready after {timeout_s:.0f} s")

    def _ctr(self, *arguments: str, stdin: int | None = subprocess.DEVNULL) -> subprocess.CompletedProcess[str]:
        command = ["nsenter", f"--mount={self.layout.mount_namespace}", "--", "ctr"]
        command += ["--address", configs.CONTAINERD_SOCKET, "--namespace", "k8s.io", *arguments]
        return subprocess.run(command, stdin=stdin, capture_output=True, text=True, check=False)

    def _containerd_ready(self) -> bool:
        return self.layout.containerd_socket.exists() and self._ctr("version").returncode == 0

    def images(self) -> list[str]:
        """The names of the images of the node."""
        return [name for name in self._ctr("images", "list", "-q").stdout.split() if not name.startswith("sha256:")]

    def _import_missing(self, archives: Sequence[Path]) -> None:
        present = set(self.images())
        for name, archive in zip((configs.PAUSE_IMAGE, configs.DNS_IMAGE), archives, strict=True):
            if name not in present:
                self._import(archive)

    def _import(self, archive: Path) -> None:
        # Over standard input, because the archive may lie where the node has a directory of its own.
        with archive.open("rb") as content:
            result = self._ctr("images", "import", "-", stdin=content.fileno())
        if result.returncode:
            raise ClusterError(f"{archive}: containerd did not take it: {result.stderr.strip()[-500:]}")

    def load_image(self, archive: Path) -> list[str]:
        """Give the node the images of an OCI or Docker archive; returns their names.

        An image that has the same name as one before replaces it; pods that run keep theirs. Pods need
        ``imagePullPolicy: Never`` or ``IfNotPresent``.

        Raises:
            ClusterError: containerd could not read it.
        """
        before = self._image_digests()
        self._state()
        self._import(archive)
        after = self._image_digests()
        # An archive that was loaded before changes nothing and is answered with its name all the same.
        return sorted(name for name, digest in after.items() if before.get(name) != digest) or _archive_names(archive)

    def _image_digests(self) -> dict[str, str]:
        lines = self._ctr("images", "list").stdout.splitlines()[1:]
        return {line.split()[0]: line.split()[2] for line in lines if line and not line.startswith("sha256:")}

    def _nodes(self, api: Api) -> tuple[int, int]:
        """Nodes that are ready, and all."""
        items = api.request("GET", "/api/v1/nodes")["items"]
        return sum(_ready(node, "Ready") for node in items), len(items)

    def _node_ready(self, api: Api) -> bool:
        node = api.get(f"/api/v1/nodes/{self.node_name}")
        # A pod cannot be placed before the controller took the taint away, and it would be placed late.
        if node is None or not _ready(node, "Ready") or node["spec"].get("taints"):
            return False
        # What a kubelet that is gone said last may still stand there: wait for a word from the one that runs.
        lease = api.get(f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{self.node_name}")
        kubelet = processes.find(self.layout, "kubelet")
        if lease is None or kubelet is None:
            return False
        renewed = datetime.datetime.fromisoformat(lease["spec"]["renewTime"]).timestamp()
        return renewed >= time.time() - kubelet.age_s

    def _pods_known(self, api: Api) -> bool:
        """Whether the kubelet knows the pods it has: one that was started again answers before it does."""
        node = self.node_name
        wanted = api.request("GET", f"/api/v1/pods?resourceVersion=0&fieldSelector=spec.nodeName={node}")["items"]
        known = api.request("GET", f"/api/v1/nodes/{node}/proxy/pods")["items"] or []
        return {pod["metadata"]["uid"] for pod in wanted if not _mirrored(pod)} <= {
            pod["metadata"]["uid"] for pod in known
        }

    def _simulate(self, network: Network, count: int) -> None:
        """Make the simulated nodes that are missing, remove those that are too many."""
        local = threading.local()
        opened: list[Api] = []

        def api() -> Api:
            if not hasattr(local, "api"):
                local.api = Api(self.layout, network)
                opened.append(local.api)
            made: Api = local.api
            return made

        def make(number: int) -> None:
            manifest = simulated.node(self.layout, number)
            api().apply(manifest)
            body = simulated.status(self.layout, network, number)
            api().request("PATCH", object_path(manifest) + "/status", body, MERGE_PATCH)

        def remove(name: str) -> None:
            api().request("DELETE", f"/api/v1/nodes/{name}")

        wanted = {simulated.node_name(self.layout, number): number for number in range(count)}
        path = f"/api/v1/nodes?labelSelector={simulated.LABEL}"
        try:
            present = {item["metadata"]["name"] for item in api().request("GET", path)["items"]}
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(remove, sorted(present - wanted.keys())))
                list(pool.map(make, [number for name, number in wanted.items() if name not in present]))
        finally:
            for each in opened:
                each.close()

    # Down.

    def down(self) -> None:
        """Take everything away. Works on half a cluster and on one that was killed; harmless when there is none.

        Raises:
            ClusterError: something could not be removed; the message says what.
        """
        if os.geteuid() != 0:
            prerequisites.check()
        if not self.exists and not cgroups.members(self.layout):
            cgroups.remove(self.layout)
            return
        self._began = time.monotonic()
        with self._locked():
            left = cgroups.kill(self.layout)
            if left:
                raise ClusterError(f"processes that could not be killed: {', '.join(map(str, sorted(left)))}")
            namespaces.remove(self.layout)
            directories = cgroups.remove(self.layout)
            if directories:
                raise ClusterError(f"cgroups that could not be removed: {', '.join(map(str, directories))}")
            # Never across a mount: whatever somebody mounted in there is not ours.
            result = subprocess.run(
                ["rm", "-rf", "--one-file-system", str(self.layout.root)], capture_output=True, text=True, check=False
            )
            if result.returncode:
                raise ClusterError(f"{self.layout.root} could not be removed: {result.stderr.strip()[-500:]}")
        with contextlib.suppress(OSError):
            BASE.rmdir()
        self._say(f"{self.name}: down in {time.monotonic() - self._began:.1f} s")

    def stop_component(self, name: str) -> None:
        """Stop one program (``programs.NAMES``), for tests that take it away; `up` starts it again."""
        processes.stop(self.layout, name)

    # Asking and acting.

    def status(self) -> Status:
        """What runs and whether it works.

        Raises:
            NoSuchClusterError: it was never brought up.
        """
        state = self._state()
        rows = []
        for name in programs.NAMES:
            if name == "kwok" and not state.get("simulated_nodes"):
                continue
            running = processes.find(self.layout, name)
            rows.append(
                ComponentStatus(name, running.pid, running.rss_bytes, running.age_s)
                if running
                else ComponentStatus(name, None)
            )
        api = Api(self.layout, self.network, timeout_s=5)
        try:
            ready = api.ready()
            nodes = self._nodes(api) if ready else (0, 0)
        except (ClusterError, OSError):
            ready, nodes = False, (0, 0)
        finally:
            api.close()
        return Status(tuple(rows), ready, *nodes)

    def kubectl(
        self, *arguments: str, stdin: str | None = None, check: bool = True, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run the cluster's own kubectl as its administrator.

        Raises:
            ClusterError: it ended with an error and ``check`` is set.
            subprocess.TimeoutExpired: it took longer than ``timeout_s``.
        """
        result = subprocess.run(
            [
                str(self._state()["kubectl"]),
                f"--kubeconfig={self.kubeconfig}",
                # What it remembers of the API goes with the cluster: the next one may have the same address.
                f"--cache-dir={self.layout.root / 'kubectl'}",
                *arguments,
            ],
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and result.returncode:
            raise ClusterError(f"kubectl {' '.join(arguments)}: {result.stderr.strip()[-1000:]}")
        return result

    def in_node(self, *command: str, mounts: bool = True) -> list[str]:
        """The command line that runs a command in the node's network (and with its mounts): give it to subprocess."""
        entered = ["nsenter", f"--net={self.layout.network_namespace}"]
        if mounts:
            entered.append(f"--mount={self.layout.mount_namespace}")
        return [*entered, "--", *command]

    def recycle_volumes(self) -> int:
        """Empty the volumes whose claims are gone and offer them again; returns how many."""
        api = Api(self.layout, self.network)
        try:
            released = [
                item["metadata"]["name"]
                for item in api.request("GET", "/api/v1/persistentvolumes")["items"]
                if item["metadata"]["name"].startswith("local-") and item["status"].get("phase") == "Released"
            ]
            for name in released:
                number = int(name.removeprefix("local-"))
                directory = self.layout.volumes / f"{number:02}"
                for entry in directory.iterdir():
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
                api.request(
                    "PATCH",
                    f"/api/v1/persistentvolumes/{name}",
                    {"spec": {"claimRef": None}},
                    MERGE_PATCH,
                )
            return len(released)
        finally:
            api.close()

    def log(self, component: str) -> Path:
        """The log of a program (``programs.NAMES``)."""
        return self.layout.logs / f"{component}.log"

    # As a context manager: up on entering, down on leaving.

    def __enter__(self) -> Cluster:
        try:
            return self.up()
        except BaseException:
            with contextlib.suppress(ClusterError):
                self.down()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()


def _ready(item: dict[str, Any], condition: str) -> bool:
    conditions = item.get("status", {}).get("conditions", [])
    return any(c["type"] == condition and c["status"] == "True" for c in conditions)


def _mirrored(pod: dict[str, Any]) -> bool:
    """Whether a pod stands for a static one, which has another uid at the kubelet."""
    return "kubernetes.io/config.mirror" in pod["metadata"].get("annotations", {})


def _archive_names(archive: Path) -> list[str]:
    """The names in an archive's index, as far as it has one."""
    result = subprocess.run(["tar", "-xOf", str(archive), "index.json"], capture_output=True, text=True, check=False)
    names = set()
    with contextlib.suppress(ValueError, KeyError, TypeError):
        for manifest in json.loads(result.stdout)["manifests"]:
            annotations = manifest.get("annotations", {})
            name = annotations.get("io.containerd.image.name") or annotations.get("org.opencontainers.image.ref.name")
            if name:
                names.add(str(name))
    return sorted(names)


__all__ = ["Cluster", "ComponentError", "ComponentStatus", "Status"]
