"""Vedette in a cluster, as the tests see it: its findings, its status, pods to attack from."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from e2e_clusters import TestedCluster

from tools.attacks import Behaviour, Performed, ensure_programs, perform
from tools.attacks.catalogue import C2_IP
from tools.attacks.programs import DIRECTORY
from tools.containers import HostSandbox
from tools.containers.pod import Kubectl, Pod, pids_of_container
from tools.demo.installation import ATTACK_IMAGE, DETECTOR, NAMESPACE, Installation
from vedette_cli.findings import dig, extras
from vedette_detector.store import Filters, Note, Store

ATTACKED = "shop"
"""The namespace of the pods that are attacked."""
MARKER_IP = "203.0.113.99"
PATIENCE_S = 40.0
Json = dict[str, Any]
T = TypeVar("T")


def eventually(condition: Callable[[], T | None], what: str, timeout_s: float = PATIENCE_S, every_s: float = 0.05) -> T:
    """Wait until ``condition`` gives something true, and give it."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(every_s)
    return value


def pod_part(finding: Json) -> Json:
    """``vedette.kubernetes.pod`` of a finding; empty when it is about none."""
    return dig(extras(finding), "kubernetes", "pod") or {}


def kubernetes(finding: Json) -> Json:
    return dig(extras(finding), "kubernetes") or {}


def container_part(finding: Json) -> Json:
    return dig(extras(finding), "kubernetes", "container") or {}


def workload_part(finding: Json) -> Json:
    return dig(finding, "resource", "kubernetesDetails", "kubernetesWorkloadDetails") or {}


def process(finding: Json) -> Json:
    found: Json = finding["service"]["runtimeDetails"]["process"]
    return found


def is_marker(finding: Json) -> bool:
    return finding["type"] == C2_IP and MARKER_IP in finding["description"]


class Findings:
    """Every finding in its newest state, read from the detector's database.

    The database lies on this machine when the node does; elsewhere ``vedette findings export`` is asked in the pod.
    """

    def __init__(self, installation: Installation, database: Path | None) -> None:
        self._installation = installation
        self._store = Store(f"sqlite:///{database}", read_only=True) if database is not None else None
        self._cursor = 0
        self._known: dict[str, Json] = {}

    def all(self) -> list[Json]:
        """What there is now."""
        if self._store is None:
            done = self._installation.vedette("findings", "export", "--all")
            return [json.loads(line) for line in done.stdout.splitlines()]
        while True:
            found, self._cursor = self._store.since(self._cursor, Filters(archived=None))
            if not found:
                return list(self._known.values())
            self._known |= {f.id: f.document for f in found}

    def of_pod(self, uid: str) -> list[Json]:
        return [f for f in self.all() if pod_part(f).get("uid") == uid]

    def of_container(self, container_id: str) -> list[Json]:
        """Those whose container has this id, whatever pod they name."""

        def about(finding: Json) -> bool:
            ids = (dig(finding, "resource", "containerDetails", "id"), container_part(finding).get("id"))
            first = (workload_part(finding).get("containers") or [{}])[0]
            return container_id in (*ids, first.get("id"))

        return [f for f in self.all() if about(f)]

    def notes(self, node: str) -> list[Note]:
        """The ledger's notes, newest first."""
        assert self._store is not None
        return self._store.notes(node)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()


@dataclass
class Outcome:
    """What came of a behaviour in a pod of its own."""

    done: Performed
    pod: Pod
    findings: list[Json]


@dataclass(frozen=True)
class Answer:
    """Of the detector's https port."""

    status: int
    document: Any

    @property
    def reason(self) -> str:
        return str(self.document.get("reason")) if isinstance(self.document, dict) else ""


class World:
    """A cluster with Vedette in it. Use `node_here` before whatever needs this machine to be the node."""

    def __init__(self, cluster: TestedCluster, kubectl: Kubectl, installation: Installation, directory: Path) -> None:
        self.cluster = cluster
        self.kubectl = kubectl
        self.installation = installation
        self.directory = directory
        self.sandbox = HostSandbox()
        self._entered = False
        self.node = self.agent_pod()["spec"]["nodeName"]
        self.findings = Findings(installation, self._database())

    # The installation.

    def get(self, *what: str, namespace: str = NAMESPACE) -> Json:
        """``kubectl get … -o json``."""
        return self.kubectl.json("get", *what, f"--namespace={namespace}")

    def agent_pod(self) -> Json:
        """The newest agent pod that is not being deleted."""
        pods = self.kubectl.json("get", "pods", f"--namespace={NAMESPACE}", "-l", "app.kubernetes.io/component=agent")[
            "items"
        ]
        pods = [p for p in pods if "deletionTimestamp" not in p["metadata"] and p["spec"].get("nodeName")]
        assert pods, "there is no agent pod"
        return dict(max(pods, key=lambda p: p["metadata"]["creationTimestamp"]))

    def detector_pod(self) -> Json:
        return self.get("pod", DETECTOR)

    def _database(self) -> Path | None:
        local = self.cluster.local
        if local is None:
            return None
        claim = self.get("pvc", f"data-{DETECTOR}")
        volume = self.kubectl.json("get", "pv", claim["spec"]["volumeName"])
        return Path(volume["spec"]["local"]["path"]) / "findings.db"

    @property
    def data(self) -> Path:
        """The detector's data directory on this machine."""
        database = self._database()
        assert database is not None
        return database.parent

    def status(self) -> Json:
        """The detector's status, once it answers."""
        return eventually(self.installation.status, "the detector answers", every_s=0.2)

    def node_status(self) -> Json:
        """The status of the node of the tests."""

        def find() -> Json | None:
            return next((n for n in self.status()["nodes"] if n["node"] == self.node), None)

        return eventually(find, f"the detector knows node {self.node}", every_s=0.2)

    def pids(self, pod: Json, container: str) -> list[int]:
        """Processes of a container on this machine, lowest first."""
        (status,) = [s for s in pod["status"]["containerStatuses"] if s["name"] == container]
        return pids_of_container(str(status["containerID"]).partition("://")[2])

    # What must be found, and when everything before has been judged.

    def mark(self) -> None:
        """Do something on the node that is found for certain, and wait until it is.

        Batches of a node are applied in order: whatever was done before has been judged then.
        """
        if not self._entered:
            self.sandbox.__enter__()
            self._entered = True
        before = self._marks()
        done = self.sandbox.run([f"{ensure_programs() / DIRECTORY}/net", "tcp", MARKER_IP, "443"])
        assert done.returncode == 0
        eventually(lambda: self._marks() > before, "the marker's finding", every_s=0.02)

    def _marks(self) -> int:
        mine = [f for f in self.findings.all() if is_marker(f) and f["resource"]["resourceType"] == "Instance"]
        return sum(f["service"]["count"] for f in mine)

    def wait_for(self, uid: str, kind: str, *, container: str = "", timeout_s: float = PATIENCE_S) -> Json:
        """The finding of a type about a pod, once it is there."""

        def find() -> Json | None:
            return next(
                (
                    f
                    for f in self.findings.of_pod(uid)
                    if f["type"] == kind and (not container or container_part(f).get("name") == container)
                ),
                None,
            )

        return eventually(find, f"{kind} about pod {uid} {container}", timeout_s)

    # Pods to attack from.

    @contextlib.contextmanager
    def pods(self, pods: Sequence[Pod]) -> Iterator[Sequence[Pod]]:
        """Pods started together; gone afterwards."""
        names = [pod.name for pod in pods]
        listed = {"apiVersion": "v1", "kind": "List", "items": [pod.manifest() for pod in pods]}
        self.kubectl.run("apply", "--server-side", "-f", "-", stdin=json.dumps(listed))
        try:
            self.kubectl.run(
                *("wait", "--for=condition=Ready", f"--namespace={ATTACKED}", "--timeout=90s"),
                *(f"pod/{name}" for name in names),
            )
            found = self.kubectl.json("get", "pods", f"--namespace={ATTACKED}", *names)
            objects = found["items"] if found["kind"] == "List" else [found]
            by_name = {item["metadata"]["name"]: item for item in objects}
            for pod in pods:
                pod.adopt(by_name[pod.name])
            yield pods
        finally:
            self.kubectl.run(
                *("delete", "pod", f"--namespace={ATTACKED}", "--wait=false", "--ignore-not-found", *names),
                check=False,
            )

    def pod(self, **options: Any) -> Pod:
        """A pod of the attack image, not started."""
        return Pod(self.kubectl, ATTACK_IMAGE, namespace=ATTACKED, **options)

    def carry_out(self, behaviours: Sequence[Behaviour], at_once: int = 6) -> dict[str, Outcome]:
        """Each behaviour in a pod of its own, all of them judged at the end; by name."""
        with tempfile.TemporaryDirectory(prefix="vedette-runc-") as copy:
            (Path(copy) / "runc").write_bytes(b"not really runc\n")
            pods = [
                self.pod(
                    labels={"app": "checkout", "behaviour": behaviour.name},
                    privileged=behaviour.privileged,
                    capabilities=behaviour.capabilities,
                    mounts=[MEMORY, *_mounts(behaviour, copy)],
                    # A directory of its own that nobody writes to before the attack does.
                    command=("/bin/sh", "-c", "mkdir -p /tmp/work && exec sleep infinity"),
                )
                for behaviour in behaviours
            ]
            with self.pods(pods), ThreadPoolExecutor(at_once) as pool:
                done = list(pool.map(perform, behaviours, pods))
                self.mark()
                return {
                    behaviour.name: Outcome(performed, pod, self.findings.of_pod(pod.uid))
                    for behaviour, performed, pod in zip(behaviours, done, pods, strict=True)
                }

    # The detector's https port.

    @contextlib.contextmanager
    def forwarded(self) -> Iterator[int]:
        """A port of this machine that leads to the detector's."""
        process = subprocess.Popen(
            self.kubectl.command("port-forward", f"--namespace={NAMESPACE}", f"pod/{DETECTOR}", ":8443"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            line = process.stdout.readline()
            assert "->" in line, f"kubectl port-forward: {line}{process.stderr.read() if not line else ''}"
            yield int(line.split("->")[0].strip().rpartition(":")[2])
        finally:
            process.terminate()
            process.communicate()

    def ask(
        self, port: int, method: str, path: str, *, authorization: str | None = None, body: bytes | None = None
    ) -> Answer:
        """One request to the detector, whose certificate is verified."""
        context = ssl.create_default_context(cafile=str(self.installation.tls / "ca.crt"))
        raw = socket.create_connection(("127.0.0.1", port), timeout=20)
        with context.wrap_socket(raw, server_hostname=f"vedette-detector.{NAMESPACE}.svc") as secured:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.sock = secured
            headers = {"Authorization": authorization} if authorization is not None else {}
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            content = answer.read()
        with contextlib.suppress(ValueError):
            return Answer(answer.status, json.loads(content))
        return Answer(answer.status, content.decode(errors="replace"))

    def token(self, account: str, *options: str, namespace: str = NAMESPACE, audience: str = "vedette") -> str:
        """A token from the API server."""
        return self.kubectl.run(
            *("create", "token", account, f"--namespace={namespace}", f"--audience={audience}", *options)
        ).stdout.strip()

    def agent_token(self, pod: str) -> str:
        """A token as the kubelet projects it into an agent's pod."""
        return self.token("vedette-agent", "--bound-object-kind=Pod", f"--bound-object-name={pod}")

    @contextlib.contextmanager
    def agent_that_runs_nowhere(self) -> Iterator[str]:
        """A token of an agent's pod that is not scheduled: it names no node, so the detector asks for the pod."""
        name = f"vedette-agent-waiting-{secrets.token_hex(3)}"
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "schedulingGates": [{"name": "example.com/never"}],
                "serviceAccountName": "vedette-agent",
                "containers": [{"name": "agent", "image": "localhost/none:none"}],
            },
        }
        self.kubectl.run("apply", "--server-side", "-f", "-", stdin=json.dumps(pod))
        try:
            yield self.agent_token(name)
        finally:
            self.kubectl.run("delete", "pod", name, f"--namespace={NAMESPACE}", "--force", "--grace-period=0")

    def admin_token(self) -> str:
        """A token of the account that may read the status; the operator, which makes the account, is not there."""
        account = {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "vedette-operator", "namespace": NAMESPACE},
        }
        self.kubectl.run("apply", "--server-side", "-f", "-", stdin=json.dumps(account))
        return self.token("vedette-operator")

    def close(self) -> None:
        self.findings.close()
        if self._entered:
            self.sandbox.close()


MEMORY: Mapping[str, Any] = {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}
"""Runtimes mount /dev/shm noexec; workloads that ask for a volume in memory there get one without."""


def _mounts(behaviour: Behaviour, runc_copy: str) -> list[Mapping[str, Any]]:
    return [{**m, "source": str(m["source"]).replace("{runc_copy}", runc_copy)} for m in behaviour.mounts]


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Signal a process of ours."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
