"""Who may deliver: tokens of the real API server, tried against the detector's port as an intruder would."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from e2e_world import Answer, World, eventually

from tools.demo.installation import NAMESPACE
from vedette_events.framing import BatchHeader, Counters, encode_batch

OTHER_NODE = "other-node"


@dataclass
class Door:
    """The detector's port, reached through the API server."""

    world: World
    port: int

    def deliver(self, authorization: str | None, node: str) -> Answer:
        """Send a batch that claims to be of ``node``."""
        return self.world.ask(
            self.port, "POST", "/v1/batches", authorization=authorization, body=empty_batch(node, secrets.randbits(40))
        )


@pytest.fixture(scope="module")
def door(world: World) -> Iterator[Door]:
    with world.forwarded() as port:
        yield Door(world, port)


@pytest.fixture(scope="module")
def other_agent(world: World) -> Iterator[str]:
    """An agent's pod on another node; both exist in the API only. Its name."""
    name = f"vedette-agent-other-{secrets.token_hex(3)}"
    objects: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": OTHER_NODE, "labels": {"type": "kwok"}}},
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "nodeName": OTHER_NODE,
                "serviceAccountName": "vedette-agent",
                "containers": [{"name": "agent", "image": "localhost/none:none"}],
            },
        },
    ]
    listed = {"apiVersion": "v1", "kind": "List", "items": objects}
    world.kubectl.run("apply", "--server-side", "-f", "-", stdin=json.dumps(listed))
    yield name
    world.kubectl.run("delete", "node", OTHER_NODE, "--wait=false")
    world.kubectl.run("delete", "pod", name, f"--namespace={NAMESPACE}", "--force", "--grace-period=0")


def empty_batch(node: str, session: int) -> bytes:
    """A batch that tells of nothing, of a session that nobody knows."""
    header = BatchHeader(
        node=node,
        boot_id=b"e2e-intruder-pod",
        session=session,
        sequence=1,
        count=0,
        ring_from=0,
        ring_to=0,
        wall_offset_ns=time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        created_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        first_time=0,
        last_time=0,
        counters=Counters(),
        agent_version="0.1.0",
    )
    return encode_batch(header, b"")


def test_agent_may_deliver_for_its_own_node(door: Door, other_agent: str) -> None:
    token = door.world.agent_token(other_agent)

    answer = door.deliver(f"Bearer {token}", OTHER_NODE)

    assert answer.status == 200, answer
    assert len(answer.document["acknowledged"]) == 1


def test_agent_may_not_deliver_for_another_node(door: Door, other_agent: str) -> None:
    world = door.world
    own = world.agent_token(world.agent_pod()["metadata"]["name"])

    for token, claimed in ((world.agent_token(other_agent), world.node), (own, OTHER_NODE)):
        answer = door.deliver(f"Bearer {token}", claimed)
        assert (answer.status, answer.reason) == (403, "WrongNode")
        heartbeat = json.dumps({"node": claimed, "boot_id": "00" * 16}).encode()
        answer = world.ask(door.port, "POST", "/v1/heartbeat", authorization=f"Bearer {token}", body=heartbeat)
        assert (answer.status, answer.reason) == (403, "WrongNode")


def test_token_without_a_pod_is_refused(door: Door) -> None:
    answer = door.deliver(f"Bearer {door.world.token('vedette-agent')}", door.world.node)

    assert (answer.status, answer.reason) == (403, "UnboundToken")


def test_token_of_another_account_is_refused(door: Door) -> None:
    answer = door.deliver(f"Bearer {door.world.token('default')}", door.world.node)

    assert (answer.status, answer.reason) == (403, "WrongServiceAccount")


def test_account_of_the_same_name_elsewhere_is_refused(door: Door) -> None:
    world = door.world
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": "vedette-agent", "namespace": "default"},
    }
    world.kubectl.run("apply", "--server-side", "-f", "-", stdin=json.dumps(account))

    answer = door.deliver(f"Bearer {world.token('vedette-agent', namespace='default')}", world.node)

    assert (answer.status, answer.reason) == (403, "WrongServiceAccount")


def test_token_for_another_audience_is_refused(door: Door) -> None:
    world = door.world
    pod = world.agent_pod()["metadata"]["name"]
    bound = ("--bound-object-kind=Pod", f"--bound-object-name={pod}")

    answer = door.deliver(
        f"Bearer {world.token('vedette-agent', *bound, audience='https://kubernetes.default.svc.cluster.local')}",
        world.node,
    )

    assert (answer.status, answer.reason) == (401, "WrongAudience")


def test_token_of_a_pod_that_is_gone_is_refused(door: Door) -> None:
    world = door.world
    name = f"vedette-agent-gone-{secrets.token_hex(3)}"
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "nodeName": "nowhere",
            "serviceAccountName": "vedette-agent",
            "containers": [{"name": "agent", "image": "localhost/none:none"}],
        },
    }
    world.kubectl.run("apply", "--server-side", "-f", "-", stdin=json.dumps(pod))
    token = world.agent_token(name)
    world.kubectl.run("delete", "pod", name, f"--namespace={NAMESPACE}", "--force", "--grace-period=0")

    # The API server keeps a token's review for ten seconds, but nobody has asked for this one.
    answer = door.deliver(f"Bearer {token}", "nowhere")

    assert (answer.status, answer.reason) == (401, "UnknownToken")


def test_token_of_a_pod_that_runs_nowhere_is_refused(door: Door) -> None:
    with door.world.agent_that_runs_nowhere() as token:
        answer = door.deliver(f"Bearer {token}", door.world.node)

    assert (answer.status, answer.reason) == (403, "PodGone")


@pytest.mark.parametrize("ago_s", [3600, 70])
def test_expired_token_is_refused(door: Door, node_here: World, ago_s: int) -> None:
    """Signed by the cluster's own key: nothing but its time is wrong.

    The API server itself admits a token for a minute after its end (go-jose's DefaultLeeway).
    """
    world = node_here
    real = world.agent_token(world.agent_pod()["metadata"]["name"])

    answer = door.deliver(f"Bearer {signed_again(world, real, exp=int(time.time()) - ago_s)}", world.node)

    assert (answer.status, answer.reason) == (401, "TokenExpired")


def test_token_signed_by_somebody_else_is_refused(door: Door) -> None:
    head, payload, _ = door.world.agent_token(door.world.agent_pod()["metadata"]["name"]).split(".")
    forged = ".".join((head, payload, _encoded(secrets.token_bytes(256))))

    answer = door.deliver(f"Bearer {forged}", door.world.node)

    assert (answer.status, answer.reason) == (401, "UnknownToken")


@pytest.mark.parametrize(
    ("authorization", "reason"),
    [
        (None, "NoToken"),
        ("", "NoToken"),
        ("Bearer", "NoToken"),
        ("Basic dXNlcjpwYXNz", "NoToken"),
        ("Bearer garbage", "MalformedToken"),
        ("Bearer a.b.c", "MalformedToken"),
        (f"Bearer {'A' * 6000}", "MalformedToken"),
        ("Bearer e30.e30.e30", "WrongAudience"),
    ],
)
def test_garbage_is_refused(door: Door, authorization: str | None, reason: str) -> None:
    answer = door.deliver(authorization, door.world.node)

    assert (answer.status, answer.reason) == (401, reason)


@pytest.mark.parametrize("path", ["/v1/status", "/v1/coverage"])
def test_agent_may_not_read(door: Door, path: str) -> None:
    world = door.world
    token = world.agent_token(world.agent_pod()["metadata"]["name"])

    answer = world.ask(door.port, "GET", path, authorization=f"Bearer {token}")

    assert (answer.status, answer.reason) == (403, "NotAdministrator")


def test_operator_may_read_and_not_deliver(door: Door) -> None:
    world = door.world
    authorization = f"Bearer {world.admin_token()}"

    status = world.ask(door.port, "GET", "/v1/status", authorization=authorization)
    delivered = door.deliver(authorization, world.node)

    assert status.status == 200
    assert (delivered.status, delivered.reason) == (403, "WrongNode")


def test_health_and_metrics_are_open(door: Door) -> None:
    health = door.world.ask(door.port, "GET", "/healthz")
    metrics = door.world.ask(door.port, "GET", "/metrics")

    assert (health.status, health.document["healthy"]) == (200, True)
    assert metrics.status == 200
    assert "vedette_" in metrics.document


def test_coverage_tells_of_the_node_without_an_agent(door: Door, other_agent: str) -> None:
    """The other node has a token that delivered, and no agent that ever sent a heartbeat."""
    world = door.world

    def coverage() -> Answer:
        return world.ask(door.port, "GET", "/v1/coverage", authorization=f"Bearer {world.admin_token()}")

    document = eventually(
        lambda: (d := coverage().document) and any(n["node"] == OTHER_NODE for n in d["nodes"]) and d,
        "coverage lists the other node",
        every_s=0.5,
    )
    nodes = {node["node"]: node for node in document["nodes"]}
    assert document["kubernetes"] == {"watched": True, "synced": True}
    assert [r["reason"] for r in nodes[OTHER_NODE]["reasons"]] == ["NoAgent"]
    own = nodes[world.node]
    assert own["reasons"] == []
    assert own["covered"] is True
    assert own["cluster"] == {"known": True, "ready": True}
    assert own["hooks"]["loaded"] > 10
    assert own["hooks"]["missing"] == []


def test_status_in_the_detectors_pod(world: World) -> None:
    shown = world.installation.vedette("status")
    status = world.status()

    assert shown.returncode == 0, shown.stderr
    assert world.node in shown.stdout
    assert status["detector"]["healthy"] is True


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def signed_again(world: World, token: str, **claims: Any) -> str:
    """A service account token with other claims, signed by the local cluster's own key (RFC 7515)."""
    assert world.cluster.local is not None
    head, payload, _ = token.split(".")
    changed = json.loads(_decoded(payload)) | claims
    changed["iat"] = changed["nbf"] = changed["exp"] - 3600
    text = f"{head}.{_encoded(json.dumps(changed).encode())}"
    key = serialization.load_pem_private_key((world.cluster.local.layout.pki / "sa.key").read_bytes(), None)
    if isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
    else:
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        r, s = decode_dss_signature(key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    return f"{text}.{_encoded(signature)}"
