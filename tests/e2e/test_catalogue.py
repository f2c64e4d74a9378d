"""The attack catalogue, each behaviour in a pod of its own: attacks name their pod, look-alikes stay quiet.

Pods are started and attacked a dozen at a time, attacks and look-alikes side by side.
"""

from __future__ import annotations

import pytest
from e2e_world import ATTACKED, Outcome, World, container_part, kubernetes, pod_part, process, workload_part

from tools.attacks import CATALOGUE, Behaviour
from tools.demo.installation import ATTACK_IMAGE

IN_CONTAINERS = [b for b in CATALOGUE if b.where == "container"]
ATTACKS = [b for b in IN_CONTAINERS if b.findings]
ORDINARY = [b for b in IN_CONTAINERS if not b.findings]
WAVE = 12


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, world: World) -> dict[str, Outcome]:
    """What came of every behaviour whose test was selected; by name."""
    if world.cluster.local is None:
        pytest.skip("place: the catalogue's far side is played on this machine (CLUSTER=local)")
    wanted: list[Behaviour] = [
        item.callspec.params["behaviour"]
        for item in request.session.items
        if item.path == request.path and isinstance(item, pytest.Function) and hasattr(item, "callspec")
    ]
    # Attacks and look-alikes take turns, so that each wave has both.
    attacks = [b for b in wanted if b.findings]
    ordinary = [b for b in wanted if not b.findings]
    step = max(1, len(attacks) // max(1, len(ordinary)))
    mixed: list[Behaviour] = []
    while attacks or ordinary:
        mixed += attacks[:step] + ordinary[:1]
        attacks, ordinary = attacks[step:], ordinary[1:]
    done: dict[str, Outcome] = {}
    for first in range(0, len(mixed), WAVE):
        done |= world.carry_out(mixed[first : first + WAVE])
    return done


@pytest.mark.parametrize("behaviour", ATTACKS, ids=lambda b: b.name)
def test_attack_names_its_pod(world: World, outcomes: dict[str, Outcome], behaviour: Behaviour) -> None:
    outcome = outcomes[behaviour.name]
    done, pod, found = outcome.done, outcome.pod, outcome.findings

    assert {f["type"] for f in found} == set(behaviour.findings), (done.output, found)
    first = next(f for f in found if f["type"] == behaviour.findings[0])
    if behaviour.executable is not None:
        assert process(first)["name"] == behaviour.executable
    if behaviour.severity is not None:
        assert first["severity"] == behaviour.severity
    assert first["resource"]["resourceType"] == "EKSCluster"
    workload = workload_part(first)
    assert (workload["namespace"], workload["name"], workload["uid"]) == (ATTACKED, pod.name, pod.uid)
    assert workload["serviceAccountName"] == "default"
    container = workload["containers"][0]
    assert (container["name"], container["id"]) == ("main", pod.container_id)
    assert (container["image"], container["containerRuntime"]) == (ATTACK_IMAGE, "containerd")
    assert container["securityContext"]["privileged"] is behaviour.privileged
    assert container_part(first)["kind"] == "container"
    assert pod_part(first)["labels"]["behaviour"] == behaviour.name
    assert kubernetes(first)["workload"] == {"kind": "Pod", "type": "pods", "name": pod.name, "uid": pod.uid} | {
        "apiVersion": "v1"
    }
    assert kubernetes(first)["node"]["name"] == world.node
    assert kubernetes(first).get("missing", []) == []
    assert process(first)["lineage"], "a process of a container has ancestors on the node at least"


@pytest.mark.parametrize("behaviour", ORDINARY, ids=lambda b: b.name)
def test_look_alike_is_quiet(outcomes: dict[str, Outcome], behaviour: Behaviour) -> None:
    outcome = outcomes[behaviour.name]

    assert [(f["type"], f["description"]) for f in outcome.findings] == []
    assert outcome.done.returncode is not None
