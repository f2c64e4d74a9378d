"""A pod in a cluster whose node is this machine: the same interface as `Container`, through the API server."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tools.containers.place import add_addresses

_PREFIXES = ("containerd://", "cri-o://", "docker://")


class PodError(RuntimeError):
    """A pod could not be made or did not start; the message holds kubectl's words."""


class Kubectl:
    """The command kubectl, bound to one cluster.

    Args:
        kubeconfig: whose current context is used.
        program: path of kubectl.
    """

    def __init__(self, kubeconfig: Path, program: str = "kubectl") -> None:
        self.kubeconfig = kubeconfig
        self.program = program

    def command(self, *arguments: str) -> list[str]:
        """The argument vector."""
        return [self.program, f"--kubeconfig={self.kubeconfig}", *arguments]

    def run(
        self, *arguments: str, stdin: str | None = None, check: bool = True, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl to its end.

        Raises:
            PodError: it failed and ``check`` is set.
        """
        done = subprocess.run(
            self.command(*arguments),
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout_s,
        )
        if check and done.returncode != 0:
            raise PodError(f"kubectl {' '.join(arguments[:4])}: {done.stderr.strip() or done.stdout.strip()}")
        return done

    def json(self, *arguments: str) -> dict[str, Any]:
        """Run ``kubectl ... -o json`` and return the object."""
        value: dict[str, Any] = json.loads(self.run(*arguments, "-o", "json").stdout)
        return value


def pids_of_container(container_id: str) -> list[int]:
    """Processes of a container by this machine's numbers, lowest first: those whose cgroup path names it."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if container_id in (entry / "cgroup").read_text():
                found.append(int(entry.name))
        except OSError:
            continue
    return sorted(found)


def volumes_of(mounts: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Pod volumes and volume mounts for OCI mounts, bind or tmpfs; pure."""
    volumes: list[dict[str, Any]] = []
    places: list[dict[str, Any]] = []
    for number, mount in enumerate(mounts):
        name = f"volume-{number}"
        if mount.get("type") == "tmpfs":
            volumes.append({"name": name, "emptyDir": {"medium": "Memory"}})
        else:
            volumes.append({"name": name, "hostPath": {"path": str(mount["source"])}})
        read_only = "ro" in mount.get("options", ())
        places.append({"name": name, "mountPath": str(mount["destination"]), "readOnly": read_only})
    return volumes, places


class Pod:
    """A running pod with one container; use as a context manager.

    Args:
        kubectl: the cluster, whose only real node is this machine.
        image: of the container; must be on the node.
        namespace: exists already, with a Pod Security level that admits the pod.
        labels: further labels of the pod.
        capabilities: granted besides the runtime's default.
        privileged: all capabilities, no masked paths.
        mounts: OCI mounts: bind mounts become hostPath volumes, tmpfs ones volumes in memory.
        addresses: whether lo gets the documentation addresses of `place`.
    """

    def __init__(
        self,
        kubectl: Kubectl,
        image: str,
        *,
        namespace: str = "default",
        name: str = "",
        labels: Mapping[str, str] | None = None,
        capabilities: Sequence[str] = (),
        privileged: bool = False,
        mounts: Sequence[Mapping[str, Any]] = (),
        service_account: str = "default",
        command: Sequence[str] = ("/bin/sleep", "infinity"),
        addresses: bool = True,
    ) -> None:
        self.kubectl = kubectl
        self.image = image
        self.namespace = namespace
        self.name = name or f"place-{secrets.token_hex(4)}"
        self.labels = dict(labels or {})
        self.capabilities = tuple(capabilities)
        self.privileged = privileged
        self.mounts = tuple(mounts)
        self.service_account = service_account
        self.command = tuple(command)
        self.addresses = addresses
        self.init_pid = 0
        self._container_id: str | None = None
        self.uid = ""
        self.node = ""

    @property
    def container_id(self) -> str | None:
        """The 64-hex id, as in the pod's status."""
        return self._container_id

    @property
    def namespaces_pid(self) -> int:
        """The container's first process."""
        return self.init_pid

    @property
    def root(self) -> Path:
        """The container's root directory through its first process."""
        return Path(f"/proc/{self.init_pid}/root")

    def manifest(self) -> dict[str, Any]:
        """The pod as it is applied; pure."""
        volumes, places = volumes_of(self.mounts)
        security: dict[str, Any] = {"privileged": True} if self.privileged else {}
        if self.capabilities:
            security["capabilities"] = {"add": [name.removeprefix("CAP_") for name in self.capabilities]}
        container = {
            "name": "main",
            "image": self.image,
            "imagePullPolicy": "IfNotPresent",
            "command": list(self.command),
            "securityContext": security,
            "volumeMounts": places,
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "namespace": self.namespace, "labels": self.labels},
            "spec": {
                "containers": [container],
                "volumes": volumes,
                "serviceAccountName": self.service_account,
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 0,
            },
        }

    def __enter__(self) -> Pod:
        self.kubectl.run("apply", "--server-side", "-f", "-", stdin=json.dumps(self.manifest()))
        try:
            self.attach()
        except BaseException:
            self.close()
            raise
        return self

    def attach(self) -> None:
        """Wait until the pod is ready and find its processes."""
        self.kubectl.run(
            *("wait", "--for=condition=Ready", f"pod/{self.name}", f"--namespace={self.namespace}", "--timeout=60s")
        )
        self.adopt(self.kubectl.json("get", "pod", self.name, f"--namespace={self.namespace}"))

    def adopt(self, pod: Mapping[str, Any]) -> None:
        """Take the running pod, an object of the API, for this one and find its processes.

        Raises:
            PodError: none of its processes is on this machine.
        """
        self.uid, self.node = pod["metadata"]["uid"], pod["spec"]["nodeName"]
        identity = str(pod["status"]["containerStatuses"][0]["containerID"])
        for prefix in _PREFIXES:
            identity = identity.removeprefix(prefix)
        self._container_id = identity
        pids = pids_of_container(identity)
        if not pids:
            raise PodError(f"pod {self.namespace}/{self.name}: no process of container {identity} on this machine")
        self.init_pid = pids[0]
        if self.addresses:
            add_addresses(self.init_pid)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _inside(self, command: Sequence[str]) -> list[str]:
        return self.kubectl.command("exec", f"--namespace={self.namespace}", self.name, "--", *command)

    def popen(
        self, command: Sequence[str], *, stdin: int | IO[Any] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """Start ``command`` with ``kubectl exec``; stdout and stderr are pipes unless given."""
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        return subprocess.Popen(
            self._inside(command),
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            text=True,
            errors="replace",
            **options,
        )

    def run(
        self, command: Sequence[str], *, timeout_s: float = 20, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run ``command`` in the pod to its end and return what it printed."""
        settings = [f"{name}={value}" for name, value in (env or {}).items()]
        return subprocess.run(
            self._inside(["env", "--", *settings, *command] if settings else command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout_s,
        )

    def close(self) -> None:
        """Delete the pod; does not wait until the kubelet has ended it."""
        self.kubectl.run(
            *("delete", "pod", self.name, f"--namespace={self.namespace}", "--wait=false", "--ignore-not-found"),
            check=False,
        )
