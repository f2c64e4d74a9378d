"""Memory of the pods that the detector keeps, and the cost of looking one up.

    python -m benchmarks.kubernetes_context [--pods 30000] [--workloads 600]

Pods are made as the API server writes them: two containers each, environment variables, a projected token volume and
managed fields; a tenth of them have a label of their own, as the pods of a StatefulSet do, the others are replicas.
Times are CPU times of this process; memory is what it gains.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import random
import resource
import time
import uuid
from pathlib import Path
from typing import Any

from vedette_detector.cluster.context import KubernetesContext, PodContext
from vedette_detector.engine.detection import ContainerRef


class Nobody:
    """An API server that is never asked."""

    def pages(self, *arguments: Any, **more: Any) -> Any:
        """Nothing."""
        raise NotImplementedError

    def watch(self, *arguments: Any, **more: Any) -> Any:
        """Nothing."""
        raise NotImplementedError


def template(workload: int) -> dict[str, Any]:
    containers = [
        {
            "name": name,
            "image": f"registry.example/team-{workload % 40}/{name}:1.{workload}",
            "env": [{"name": f"VARIABLE_{n}", "value": "x" * 40} for n in range(6)],
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
            "volumeMounts": [
                {"name": "config", "mountPath": "/etc/config"},
                {"name": "kube-api-access-00000", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"},
            ],
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
        for name in ("app", "proxy")
    ]
    return {
        "labels": {"app.kubernetes.io/name": f"app-{workload}", "pod-template-hash": f"{workload:08x}", "team": "a"},
        "annotations": {"prometheus.io/scrape": "true", "checksum/config": f"{workload:064x}"},
        "spec": {
            "serviceAccountName": f"app-{workload}",
            "containers": containers,
            "volumes": [{"name": "config", "configMap": {"name": "c"}}, {"name": "kube-api-access-00000"}],
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        },
    }


def pods(count: int, workloads: int) -> Any:
    """Yield (pod, container id, node) as the API gives them."""
    templates = [json.dumps(template(w)) for w in range(workloads)]
    chooser = random.Random(7)
    for number in range(count):
        workload = chooser.randrange(workloads)
        alone = number % 10 == 0
        made = json.loads(templates[workload].replace("access-00000", f"access-{number % 100000:05}"))
        uid, ids = str(uuid.UUID(int=chooser.getrandbits(128))), [f"{chooser.getrandbits(256):064x}" for _ in range(2)]
        owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"app-{workload}-{workload:08x}"}
        labels = {**made["labels"], **({"statefulset.kubernetes.io/pod-name": f"app-{number}"} if alone else {})}
        yield (
            {
                "metadata": {
                    "name": f"app-{workload}-{workload:08x}-{number:05}",
                    "namespace": f"team-{workload % 40}",
                    "uid": uid,
                    "creationTimestamp": "2026-09-21T13:59:58Z",
                    "labels": labels,
                    "annotations": made["annotations"],
                    "ownerReferences": [{**owner, "uid": f"rs-{workload}", "controller": True}],
                    "managedFields": [{"fieldsV1": {f"f:{n}": {} for n in range(40)}}],
                },
                "spec": {**made["spec"], "nodeName": f"node-{number % 300}"},
                "status": {
                    "phase": "Running",
                    "podIP": f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}",
                    "containerStatuses": [
                        {
                            "name": name,
                            "containerID": f"containerd://{identifier}",
                            "imageID": f"registry.example/{name}@sha256:{workload:064x}",
                            "restartCount": 0,
                            "state": {"running": {"startedAt": "2026-09-21T14:00:00Z"}},
                        }
                        for name, identifier in zip(("app", "proxy"), ids, strict=True)
                    ],
                },
            },
            ids[1],
            f"node-{number % 300}",
        )


def resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmRSS")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=30_000)
    parser.add_argument("--workloads", type=int, default=600)
    arguments = parser.parse_args()
    context = KubernetesContext(Nobody())
    for number in range(arguments.workloads):
        deployment = {"kind": "Deployment", "name": f"app-{number}", "uid": f"d-{number}", "controller": True}
        context._above["ReplicaSet"].put({"metadata": {"uid": f"rs-{number}", "ownerReferences": [deployment]}})
    wanted: list[tuple[ContainerRef, str]] = []
    gc.collect()
    before, spent = resident(), 0.0
    for pod, container, node in pods(arguments.pods, arguments.workloads):
        began = time.process_time()
        context.pods.put(pod)
        spent += time.process_time() - began
        if len(wanted) < 1000:
            uid = pod["metadata"]["uid"]
            wanted.append((ContainerRef(container, uid, "kubernetes", f"/kubepods/pod{uid}/{container}"), node))
    gc.collect()
    used = resident() - before
    rounds = 20
    began = time.process_time()
    for _ in range(rounds):
        for reference, node in wanted:
            assert isinstance(context.find(reference, node), PodContext)
    per_lookup = (time.process_time() - began) / (rounds * len(wanted))
    sample = copy.deepcopy(next(iter(pods(1, arguments.workloads)))[0])
    print(f"pods                  {len(context.pods):>12,}")
    print(f"JSON of one pod       {len(json.dumps(sample)):>12,} bytes")
    print(f"kept of one pod       {used / arguments.pods:>12,.0f} bytes of resident memory")
    print(f"all pods              {used / 1e6:>12,.1f} MB")
    print(f"taking a change       {spent / arguments.pods * 1e6:>12,.1f} µs")
    print(f"a lookup              {per_lookup * 1e6:>12,.1f} µs")
    print(f"peak of the process   {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:>12,.1f} MB")


if __name__ == "__main__":
    main()
