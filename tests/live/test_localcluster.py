"""A whole cluster of its own name: up, a pod that answers, hard knocks, down without a trace."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tools.localcluster import cgroups, configs, namespaces, oci, processes, programs
from tools.localcluster.build import architecture
from tools.localcluster.cluster import Cluster

# From a cache that has everything this takes half a minute; without it, compiling takes ten.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

IMAGE = "localhost/live-test:1"
POD = f"""
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{type: NodePort, selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080, nodePort: 30080}}]}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: web}}
spec:
  serviceName: web
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 0
      securityContext: {{runAsUser: 60701, runAsGroup: 60701, fsGroup: 60701}}
      containers:
      - name: web
        image: {IMAGE}
        imagePullPolicy: Never
        command: [busybox, sh, -c]
        args: ["echo started; echo hello > /data/index.html; exec busybox httpd -f -p 8080 -h /data"]
        volumeMounts:
        - {{name: data, mountPath: /data}}
        - {{name: host, mountPath: /host}}
        - {{name: token, mountPath: /token}}
      volumes:
      - {{name: host, hostPath: {{path: /var/lib/live-test, type: DirectoryOrCreate}}}}
      - name: token
        projected: {{sources: [{{serviceAccountToken: {{path: token, audience: vedette, expirationSeconds: 600}}}}]}}
  volumeClaimTemplates:
  - metadata: {{name: data}}
    spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Gi}}}}}}
"""


def _until(condition: Callable[[], bool], timeout_s: float = 60) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


@pytest.fixture(scope="module")
def cluster(needs_root: None) -> Iterator[Cluster]:
    kernel = {name: Path("/proc/sys", name).read_text() for name in configs.KERNEL_SETTINGS}
    made = Cluster("live-test")
    made.down()
    try:
        yield made.up()
    finally:
        made.down()
    assert {name: Path("/proc/sys", name).read_text() for name in configs.KERNEL_SETTINGS} == kernel


@pytest.fixture(scope="module")
def web(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    archive = tmp_path_factory.mktemp("image") / "image.tar"
    busybox = Path("/bin/busybox").read_bytes()
    files = {"bin/busybox": busybox, "bin/sh": busybox}
    archive.write_bytes(oci.image(IMAGE, files, ["busybox"], architecture=architecture()))
    assert cluster.load_image(archive) == [IMAGE]
    assert cluster.load_image(archive) == [IMAGE]
    cluster.kubectl("apply", "-f", "-", stdin=POD)
    cluster.kubectl("rollout", "status", "statefulset/web", "--timeout=90s")
    return cluster


def _get(address: str, port: int) -> str:
    connection = HTTPConnection(address, port, timeout=10)
    try:
        connection.request("GET", "/index.html")
        return connection.getresponse().read().decode().strip()
    finally:
        connection.close()


def test_a_pod_answers_under_its_service_its_node_port_and_its_own_address(web: Cluster) -> None:
    service = json.loads(web.kubectl("get", "service", "web", "-o", "json").stdout)
    pod = json.loads(web.kubectl("get", "pod", "web-0", "-o", "json").stdout)

    assert _get(service["spec"]["clusterIP"], 80) == "hello"
    assert _get(web.node_address, 30080) == "hello"
    assert _get(pod["status"]["podIP"], 8080) == "hello"


def test_pods_find_services_by_name_and_are_told_at_once_what_does_not_exist(web: Cluster) -> None:
    service = json.loads(web.kubectl("get", "service", "web", "-o", "json").stdout)["spec"]["clusterIP"]

    found = web.kubectl("exec", "web-0", "--", "busybox", "nslookup", "web.default.svc.cluster.local")
    missing = web.kubectl("exec", "web-0", "--", "busybox", "nslookup", "no-such-name.example", check=False)

    assert service in found.stdout
    assert "NXDOMAIN" in missing.stdout


def test_exec_logs_and_ephemeral_containers_work(web: Cluster) -> None:
    assert web.kubectl("logs", "web-0").stdout == "started\n"
    assert web.kubectl("exec", "web-0", "--", "busybox", "id", "-u").stdout == "60701\n"

    web.kubectl(
        *("debug", "web-0", "--profile=general", f"--image={IMAGE}", "--image-pull-policy=Never", "--container=extra"),
        *("--", "busybox", "sleep", "1000"),
    )

    path = "jsonpath={.status.ephemeralContainerStatuses[0].state.running.startedAt}"
    assert _until(lambda: web.kubectl("get", "pod", "web-0", "-o", path).stdout != "")


def test_a_hostpath_of_the_node_is_not_the_machines(web: Cluster) -> None:
    assert web.node_path("/var/lib/live-test").is_dir()
    assert not Path("/var/lib/live-test").exists()


def test_a_pod_reaches_a_server_on_this_machine(web: Cluster) -> None:
    with socket.create_server((web.host_address, 0)) as server:
        server.settimeout(20)
        port = server.getsockname()[1]
        received = []

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(20)
                received.append(connection.recv(16))

        serving = threading.Thread(target=serve)
        serving.start()
        web.kubectl(
            "exec", "web-0", "--", "busybox", "sh", "-c", f"echo hi | busybox nc -w 5 {web.host_address} {port}"
        )
        serving.join()
    assert received == [b"hi\n"]


def test_tokens_are_bound_to_pod_and_node_and_are_reviewed(web: Cluster) -> None:
    token = web.kubectl("exec", "web-0", "--", "busybox", "cat", "/token/token").stdout
    part = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))

    assert claims["iss"] == programs.ISSUER
    assert claims["aud"] == ["vedette"]
    assert claims["kubernetes.io"]["pod"]["name"] == "web-0"
    assert claims["kubernetes.io"]["node"]["name"] == web.node_name
    for audience, authenticated in (("vedette", True), ("another", False)):
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        }
        answer = json.loads(web.kubectl("create", "-o", "json", "-f", "-", stdin=json.dumps(review)).stdout)
        assert answer["status"].get("authenticated", False) is authenticated


def test_the_node_may_not_read_what_its_pods_do_not_need(web: Cluster) -> None:
    web.kubectl("create", "secret", "generic", "other", "--from-literal=key=value")
    kubelet = web.layout.configs / "kubelet.kubeconfig"

    refused = web.kubectl(f"--kubeconfig={kubelet}", "get", "secret", "other", check=False)

    assert "Forbidden" in refused.stderr
    assert "no relationship found between node" in refused.stderr


def test_the_audit_log_names_who_and_what_without_secrets(web: Cluster) -> None:
    web.kubectl("create", "secret", "generic", "audited", "--from-literal=key=topsecret")
    events: list[dict[str, object]] = []

    def written() -> bool:
        lines = [line for line in web.audit_log.read_text().splitlines() if '"audited"' in line and '"create"' in line]
        events[:] = [json.loads(line) for line in lines]
        return bool(events)

    assert _until(written)
    assert events[0]["user"]["username"] == "kubernetes-admin"  # type: ignore[index]
    assert "requestObject" not in events[0]
    assert base64.b64encode(b"topsecret").decode() not in web.audit_log.read_text()


def test_pod_security_is_enforced_where_a_namespace_asks_for_it(web: Cluster) -> None:
    web.kubectl("create", "namespace", "strict")
    web.kubectl("label", "namespace", "strict", "pod-security.kubernetes.io/enforce=restricted")

    refused = web.kubectl(
        "--namespace=strict", "run", "root", f"--image={IMAGE}", "--overrides={}", "--privileged", check=False
    )

    assert 'violates PodSecurity "restricted' in refused.stderr


def test_static_pods_are_run_and_mirrored(web: Cluster) -> None:
    manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "static", "namespace": "default"},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {"name": "c", "image": IMAGE, "imagePullPolicy": "Never", "command": ["busybox", "sleep", "1000"]}
            ],
        },
    }
    new = web.static_pods / ".static"
    new.write_text(json.dumps(manifest))
    new.rename(web.static_pods / "static.json")

    def running() -> bool:
        query = ("get", "pod", f"static-{web.node_name}", "-o", "jsonpath={.status.phase}")
        return web.kubectl(*query, check=False).stdout == "Running"

    assert _until(running)


def test_pods_are_in_the_clusters_cgroup(web: Cluster) -> None:
    uid = web.kubectl("get", "pod", "web-0", "-o", "jsonpath={.metadata.uid}").stdout
    prefix = f"{web.layout.cgroup}/kubepods/besteffort/pod{uid}/"

    inside = []
    for pid in cgroups.members(web.layout):
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        if all(prefix in line for line in lines if "kubepods" in line) and any(prefix in line for line in lines):
            inside.append(Path(f"/proc/{pid}/comm").read_text().strip())

    assert "pause" in inside
    assert "busybox" in inside


def test_what_was_killed_comes_back_and_what_runs_stays(web: Cluster) -> None:
    before = {name: processes.find(web.layout, name) for name in programs.NAMES}
    container = web.kubectl("get", "pod", "web-0", "-o", "jsonpath={.status.containerStatuses[0].containerID}").stdout
    for name in ("containerd", "kubelet", "kube-proxy", "etcd"):
        running = before[name]
        assert running is not None
        os.kill(running.pid, signal.SIGKILL)
        assert _until(lambda name=name: processes.find(web.layout, name) is None)  # type: ignore[misc]
    assert not web.status().healthy

    web.up()

    after = {name: processes.find(web.layout, name) for name in programs.NAMES}
    assert web.status().healthy
    assert after["kube-apiserver"] == before["kube-apiserver"]
    assert after["kubelet"] != before["kubelet"]
    query = ("get", "pod", "web-0", "-o", "jsonpath={.status.containerStatuses[0].containerID}")
    assert web.kubectl(*query).stdout == container
    assert web.kubectl("exec", "web-0", "--", "busybox", "echo", "still here").stdout == "still here\n"


def test_simulated_nodes_come_run_pods_and_go(web: Cluster) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "simulated"},
        "spec": {
            "nodeSelector": {"type": "kwok"},
            "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}],
            "containers": [{"name": "c", "image": "localhost/nothing:1"}],
        },
    }

    web.up(simulated_nodes=20)

    assert web.status().nodes_ready == 21
    web.kubectl("apply", "-f", "-", stdin=json.dumps(pod))
    web.kubectl("wait", "--for=condition=Ready", "pod/simulated", "--timeout=60s")
    web.kubectl("delete", "pod", "simulated", "--timeout=60s")
    web.up()
    assert web.status().nodes == 1


def test_volumes_of_claims_that_are_gone_are_offered_again_empty(web: Cluster) -> None:
    query = ("get", "persistentvolumeclaim", "data-web-0", "-o", "jsonpath={.spec.volumeName}")
    volume = web.kubectl(*query).stdout
    directory = web.layout.volumes / volume.removeprefix("local-")
    assert (directory / "index.html").read_text() == "hello\n"

    web.kubectl("delete", "statefulset", "web")
    web.kubectl("wait", "--for=delete", "pod/web-0", "--timeout=60s")
    web.kubectl("delete", "persistentvolumeclaim", "data-web-0")
    assert _until(lambda: web.recycle_volumes() == 1)

    phase = ("get", "persistentvolume", volume, "-o", "jsonpath={.status.phase}")
    assert _until(lambda: web.kubectl(*phase).stdout == "Available")
    assert list(directory.iterdir()) == []


def test_down_leaves_nothing_even_after_everything_was_killed(cluster: Cluster) -> None:
    layout = cluster.layout
    inode = os.stat(layout.network_namespace).st_ino
    members = cgroups.members(layout)
    assert members
    for name in programs.NAMES:
        running = processes.find(layout, name)
        if running is not None:
            os.kill(running.pid, signal.SIGKILL)

    cluster.down()

    assert [pid for pid in members if processes.start_time(pid) is not None] == []
    assert [point for point in namespaces.mount_points() if point.startswith(str(layout.root))] == []
    assert not Path("/sys/class/net", layout.link_name).exists()
    assert not layout.root.exists()
    assert [str(h.mount_point) for h in cgroups.hierarchies() if Path(f"{h.mount_point}{layout.cgroup}").exists()] == []
    networks = {os.stat(f"/proc/{pid}/ns/net").st_ino for pid in os.listdir("/proc") if pid.isdigit() and _alive(pid)}
    assert inode not in networks
    cluster.down()


def _alive(pid: str) -> bool:
    try:
        os.stat(f"/proc/{pid}/ns/net")
    except OSError:
        return False
    return True
