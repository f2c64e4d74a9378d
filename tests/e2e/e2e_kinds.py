"""One pod of every kind: of every workload, with every kind of container. Each attacks as its first act."""

from __future__ import annotations

from typing import Any

from e2e_world import World, eventually

from tools.attacks.catalogue import C2_IP, C2_LISTED_IP
from tools.attacks.programs import DIRECTORY
from tools.demo.installation import ATTACK_IMAGE

Json = dict[str, Any]
NAMESPACE = "kinds"
CONNECT = f"/{DIRECTORY}/net tcp {C2_LISTED_IP} 443"
ATTACK_AND_STAY = ["/bin/sh", "-c", f"{CONNECT}; exec sleep infinity"]


def container(name: str = "main", command: list[str] | None = None, **more: Any) -> Json:
    return {
        "name": name,
        "image": ATTACK_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": command or ATTACK_AND_STAY,
        **more,
    }


def pod_spec(*containers: Json, **more: Any) -> Json:
    return {
        "serviceAccountName": "keeper",
        "terminationGracePeriodSeconds": 0,
        "containers": list(containers) or [container()],
        **more,
    }


def workload(kind: str, version: str, name: str, spec: Json) -> Json:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}


def replicated(kind: str, name: str, **more: Any) -> Json:
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": pod_spec()}
    return workload(kind, "apps/v1", name, {"selector": {"matchLabels": labels}, "template": template, **more})


def job_spec(name: str) -> Json:
    command = ["/bin/sh", "-c", CONNECT]
    spec = pod_spec(container(command=command), restartPolicy="Never")
    return {"backoffLimit": 0, "template": {"metadata": {"labels": {"app": name}}, "spec": spec}}


OBJECTS: list[Json] = [
    {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "keeper", "namespace": NAMESPACE}},
    replicated("Deployment", "web"),
    replicated("StatefulSet", "db", serviceName="db"),
    replicated("DaemonSet", "logs"),
    workload("Job", "batch/v1", "migrate", job_spec("migrate")),
    workload("CronJob", "batch/v1", "report", {"schedule": "* * * * *", "jobTemplate": {"spec": job_spec("report")}}),
    workload("Pod", "v1", "bare", pod_spec()),
    workload(
        "Pod",
        "v1",
        "many",
        pod_spec(
            container("main"),
            container("other", ["/bin/sleep", "infinity"], securityContext={"privileged": True}),
            initContainers=[
                container("prepare", ["/bin/sh", "-c", CONNECT]),
                container("proxy", restartPolicy="Always"),
            ],
            volumes=[
                {"name": "scratch", "emptyDir": {}},
                {"name": "names", "hostPath": {"path": "/etc", "type": "Directory"}},
            ],
        ),
    ),
    workload("Pod", "v1", "on-host", pod_spec(hostNetwork=True, hostPID=True)),
    workload(
        "Pod",
        "v1",
        "instant",
        pod_spec(container(command=["/usr/local/bin/xmrig", "--help"]), restartPolicy="Never"),
    ),
]
LABELLED = ("web", "db", "logs", "migrate", "report")


def pods_of(world: World, app: str) -> list[Json]:
    return list(world.kubectl.json("get", "pods", f"--namespace={NAMESPACE}", "-l", f"app={app}")["items"])


def find(world: World, name: str, kind: str = C2_IP, **which: str) -> Json:
    """The finding about a pod of this name, or about the one pod with this label."""

    def uid() -> str | None:
        if name in LABELLED:
            pods = pods_of(world, name)
            return str(pods[0]["metadata"]["uid"]) if pods else None
        return str(world.get("pod", name, namespace=NAMESPACE)["metadata"]["uid"])

    return world.wait_for(eventually(uid, f"a pod of {name}", 90, every_s=0.3), kind, **which)
