"""Findings: GuardDuty's JSON, identity, folding of repeats, the catalogue."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.detector.botocore_shapes import problems
from tests.unit.detector.detector_parts import BOOT
from vedette_detector.config import DEFAULT_REDACTED_OPTIONS, DEFAULT_REDACTION
from vedette_detector.engine.detection import ContainerRef, Detection
from vedette_detector.findings import catalog, flood
from vedette_detector.findings.build import CONTEXT_KEYS, LINEAGE_KEYS, PROCESS_KEYS, Identity, build, epoch_ns
from vedette_detector.findings.flood import FloodGate, Verdict
from vedette_detector.findings.model import FindingUpdate, collect, fold_document, iso
from vedette_detector.findings.resource import ContainerStates, Host, Resource, describe
from vedette_detector.text import REDACTED, Redactor

OURS = frozenset({".vedette"})
HOST = Host("node-a", BOOT, "host.example", "0" * 32, "6.1.0", "x86_64", "0.1.0")
CONTAINER = ContainerRef("ab" * 32, None, "containerd", "/system.slice/cri-containerd-" + "ab" * 32 + ".scope")
REDACTOR = Redactor(DEFAULT_REDACTION, DEFAULT_REDACTED_OPTIONS)
NOW = 1_790_000_100 * 10**9

PROCESS: dict[str, Any] = {
    "name": "x",
    "executablePath": "/tmp/x",
    "executableSha256": "0" * 64,
    "namespacePid": 42,
    "pwd": "/",
    "pid": 4711,
    "startTime": "2026-09-21T14:13:20.000Z",
    "uuid": "a" * 32,
    "parentUuid": "b" * 32,
    "user": "root",
    "userId": 0,
    "euid": 0,
}
CONTEXTS: dict[str, Any] = {
    "modifyingProcess": {**PROCESS, "arguments": ["curl", "--token", "t0k3n"], "lineage": [PROCESS]},
    "modifiedAt": datetime(2026, 9, 21, 14, 13, 20, tzinfo=UTC),
    "targetProcess": PROCESS,
    "scriptPath": "/tmp/s",
    "libraryPath": "/tmp/l.so",
    "ldPreloadValue": "/tmp/l.so",
    "socketPath": "/run/docker.sock",
    "runcBinaryPath": "/usr/bin/runc",
    "releaseAgentPath": "/sys/fs/cgroup/x/release_agent",
    "mountSource": "/dev/sda1",
    "mountTarget": "/mnt",
    "fileSystemType": "ext4",
    "flags": ["MS_BIND"],
    "moduleName": "m",
    "moduleFilePath": "/m.ko",
    "moduleSha256": "0" * 64,
    "shellHistoryFilePath": "/root/.bash_history",
    "addressFamily": "AF_INET",
    "ianaProtocolNumber": "6",
    "memoryRegions": ["stack"],
    "toolName": "nmap",
    "toolCategory": "Network Scanner",
    "serviceName": "ssh",
    "commandLineExample": "curl --header token=abc",
    "threatFilePath": "/tmp/x",
    "fileOperation": "Write",
    "filePath": "/etc/passwd",
    "relatedFilePaths": ["/etc/shadow"],
}
CONNECTION = {
    "actionType": "NETWORK_CONNECTION",
    "networkConnectionAction": {
        "blocked": False,
        "connectionDirection": "OUTBOUND",
        "protocol": "TCP",
        "localPortDetails": {"port": 40000, "portName": "Unknown"},
        "localIpDetails": {"ipAddressV4": "198.51.100.1"},
        "remoteIpDetails": {"ipAddressV4": "198.51.100.7"},
        "remotePortDetails": {"port": 443, "portName": "HTTPS"},
    },
}
EVIDENCE = {
    "threatIntelligenceDetails": [{"threatListName": "mine", "threatNames": ["C2"], "threatFileSha256": "0" * 64}]
}


def detection(**more: Any) -> Detection:
    values: dict[str, Any] = {
        "finding_type": "Execution:Runtime/NewBinaryExecuted",
        "severity": 5.0,
        "rule_id": "r",
        "title": "A new binary",
        "description": "It ran.",
        "key": ("/tmp/x",),
        "node": "node-a",
        "time_ns": 1,
        "wall": datetime(2026, 9, 21, 14, 13, 20, 123456, tzinfo=UTC),
        "event": {"type": "exec", "path": "/tmp/x"},
        "process": {**PROCESS, "arguments": ["x", "--password", "hunter2"]},
        "lineage": [{k: PROCESS[k] for k in LINEAGE_KEYS}],
    }
    return Detection(**(values | more))


def made(made_of: Detection, host: Host = HOST, known: dict[str, Any] | None = None) -> FindingUpdate:
    resource = describe(made_of.container, host, known)
    return build(made_of, resource, host, Identity(detector_id="d" * 32), REDACTOR)


@pytest.mark.parametrize("name", sorted(catalog.BY_NAME))
@pytest.mark.parametrize("container", [None, CONTAINER], ids=["host", "container"])
def test_every_type_on_every_resource_is_a_guardduty_finding(name: str, container: ContainerRef | None) -> None:
    update = made(
        detection(
            finding_type=name,
            title="",
            description="",
            container=container,
            host_process=container is None,
            context=CONTEXTS,
            action=CONNECTION,
            evidence=EVIDENCE,
        )
    )
    document = fold_document(None, update, NOW)
    assert problems(document, allowed=OURS) == []
    assert document["type"] == name
    assert document["resource"]["resourceType"] == ("Container" if container else "Instance")
    assert set(document["service"]["runtimeDetails"]["context"]) == CONTEXT_KEYS


def test_the_validator_finds_what_is_wrong() -> None:
    document = fold_document(None, made(detection()), NOW)
    document["service"]["runtimeDetails"]["process"]["pid"] = "4711"
    document["service"]["extra"] = 1
    del document["updatedAt"]
    assert problems(document, allowed=OURS) == [
        ".updatedAt: missing",
        ".service.runtimeDetails.process.pid: str, not integer",
        ".service.extra: unknown",
    ]


def test_the_keys_that_pass_are_those_of_the_model() -> None:
    from tests.unit.detector.botocore_shapes import _model

    def names(shape: str) -> set[str]:
        return {m.serialization.get("name", n) for n, m in _model().shape_for(shape).members.items()}

    assert names("ProcessDetails") - {"lineage"} == PROCESS_KEYS
    assert names("LineageObject") == LINEAGE_KEYS
    assert names("RuntimeContext") == CONTEXT_KEYS


def test_there_are_46_runtime_types_with_the_severities_of_guardduty() -> None:
    assert len(catalog.BY_NAME) == 46
    expected = {
        "Execution:Runtime/ReverseShell": 8.0,
        "Execution:Runtime/NewBinaryExecuted": 5.0,
        "DefenseEvasion:Runtime/PtraceAntiDebugging": 2.0,
        "DefenseEvasion:Runtime/ProcessInjection.Proc": 8.0,
        "DefenseEvasion:Runtime/ProcessInjection.Ptrace": 5.0,
        "Backdoor:Runtime/C&CActivity.B!DNS": 8.0,
        "Impact:Runtime/SuspiciousDomainRequest.Reputation": 2.0,
    }
    assert {n: catalog.lookup(n).severity for n in expected} == expected


def test_a_type_of_the_users_own_has_a_title_too() -> None:
    document = made(detection(finding_type="Custom:Runtime/Mine", title="", description="")).document
    assert document["title"] == "x matched a rule in the host."
    assert document["description"] == "x matched a rule in the host: /tmp/x (pid 4711) on host node-a."


def test_arguments_are_outside_guardduty_s_part_and_redacted() -> None:
    document = made(detection(context=CONTEXTS)).document
    assert document["vedette"]["arguments"] == {
        "process": ["x", "--password", REDACTED],
        "modifyingProcess": ["curl", "--token", REDACTED],
    }
    assert document["service"]["runtimeDetails"]["context"]["commandLineExample"] == f"curl --header token={REDACTED}"
    assert "hunter2" not in json.dumps(document)
    assert "t0k3n" not in json.dumps(document)


def test_context_that_guardduty_has_no_key_for_is_ours() -> None:
    document = made(detection(context={"toolName": "nmap", "stdinPeer": "198.51.100.7"})).document
    assert document["service"]["runtimeDetails"]["context"] == {"toolName": "nmap"}
    assert document["vedette"]["context"] == {"stdinPeer": "198.51.100.7"}


def test_the_id_follows_type_resource_and_key_and_nothing_else() -> None:
    first = made(detection())
    assert len(first.id) == 32
    assert made(detection(severity=8.0, title="other", wall=datetime(2027, 1, 1, tzinfo=UTC))).id == first.id
    others = [
        made(detection(finding_type="Execution:Runtime/ReverseShell")),
        made(detection(key=("/tmp/y",))),
        made(detection(key=("/tmp/x", ""))),
        made(detection(container=CONTAINER)),
        made(detection(), replace(HOST, node="node-b")),
    ]
    assert len({u.id for u in (first, *others)}) == 6


@settings(deadline=None)
@given(st.lists(st.text(max_size=5), max_size=3), st.lists(st.text(max_size=5), max_size=3))
def test_different_keys_give_different_ids(one: list[str], other: list[str]) -> None:
    def identity(key: list[str]) -> str:
        return made(detection(key=tuple(key))).id

    assert (identity(one) == identity(other)) == (one == other)


@settings(deadline=None)
@given(st.text() | st.binary())
def test_no_text_of_an_attacker_reaches_a_finding_raw(hostile: str | bytes) -> None:
    text = hostile if isinstance(hostile, str) else hostile.decode("latin-1")
    update = made(
        detection(
            key=(text,),
            title=f"ran {text}",
            process={**PROCESS, "name": text, "executablePath": text, "arguments": [text]},
            context={"socketPath": hostile, "flags": [text], text or "k": text},
            notes=[text],
            event={"path": text, "raw": hostile},
        )
    )
    document = fold_document(None, update, NOW)
    assert problems(document, allowed=OURS) == []
    encoded = json.dumps(document, ensure_ascii=False)
    encoded.encode("utf-8")
    assert not [c for c in encoded if ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or 0x202A <= ord(c) <= 0x202E]


def test_repeats_raise_the_count_and_never_lower_the_severity() -> None:
    first = fold_document(None, made(detection(severity=8.0)), NOW)
    later = datetime(2026, 9, 21, 15, 0, tzinfo=UTC)
    second = fold_document(first, made(detection(severity=2.0, wall=later, title="Again")), NOW + 10**9)
    assert second["severity"] == 8.0
    assert second["title"] == "Again"
    assert second["createdAt"] == first["createdAt"]
    assert second["updatedAt"] > first["updatedAt"]
    service = second["service"]
    assert (service["count"], service["eventFirstSeen"], service["eventLastSeen"]) == (
        2,
        "2026-09-21T14:13:20.123Z",
        "2026-09-21T15:00:00.000Z",
    )


def test_a_repeat_from_before_moves_the_first_seen_only() -> None:
    first = fold_document(None, made(detection()), NOW)
    earlier = made(detection(wall=datetime(2026, 9, 21, 10, 0, tzinfo=UTC)))
    service = fold_document(first, earlier, NOW)["service"]
    assert (service["eventFirstSeen"], service["eventLastSeen"]) == (
        "2026-09-21T10:00:00.000Z",
        "2026-09-21T14:13:20.123Z",
    )


def test_an_archived_finding_stays_archived_when_it_repeats() -> None:
    first = fold_document(None, made(detection()), NOW)
    first["service"]["archived"] = True
    assert fold_document(first, made(detection()), NOW)["service"]["archived"] is True


def test_many_occurrences_in_one_group_become_one_update() -> None:
    updates = [
        made(detection(severity=9.0 - n, repeats=n, wall=datetime(2026, 9, 21, 14, n, tzinfo=UTC))) for n in range(5)
    ]
    (joined,) = collect([*updates, *[]], 3)
    assert joined.count == 5 + (0 + 1 + 2 + 3 + 4)
    assert joined.document["severity"] == 9.0
    assert [seen for seen, _ in joined.occurrences] == [u.last_seen_ns for u in updates[2:]]
    assert (joined.first_seen_ns, joined.last_seen_ns) == (updates[0].first_seen_ns, updates[4].last_seen_ns)


def test_times_are_exact_and_clamped() -> None:
    assert epoch_ns(datetime(2026, 9, 21, 14, 13, 20, 123456, tzinfo=UTC)) == 1790000000123456000
    assert iso(1790000000123456000) == "2026-09-21T14:13:20.123Z"
    assert iso(2**70) == "9999-12-31T23:59:59.999Z"
    assert iso(-1).startswith("1970-01-01T00:00:00")


OCI = {
    "ociVersion": "1.1.0",
    "hostname": "web\x1b[2J",
    "root": {"path": "rootfs"},
    "process": {"noNewPrivileges": False, "capabilities": {"bounding": ["CAP_SYS_ADMIN"]}},
    "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc", "path": "/proc/1/ns/ipc"}]},
    "mounts": [
        {"destination": "/data", "source": "/srv/data", "type": "bind"},
        {"destination": "/proc", "source": "proc", "type": "proc"},
    ],
    "annotations": {
        "io.kubernetes.cri.container-name": "web",
        "io.kubernetes.cri.image-name": "registry.example/team/web:1",
    },
}


def state_root(tmp_path: Path) -> ContainerStates:
    boot = tmp_path / "proc/sys/kernel/random"
    boot.mkdir(parents=True)
    (boot / "boot_id").write_text("00010203-0405-0607-0809-0a0b0c0d0e0f\n")
    return ContainerStates(tmp_path)


def resource_of(states: ContainerStates, container: ContainerRef, boot: bytes = BOOT) -> Resource:
    return describe(container, HOST, states.lookup(container, boot))


def test_a_container_is_described_by_its_bundle(tmp_path: Path) -> None:
    bundle = tmp_path / "run/containerd/io.containerd.runtime.v2.task/k8s.io" / ("ab" * 32)
    bundle.mkdir(parents=True)
    (bundle / "config.json").write_text(json.dumps(OCI))
    resource = resource_of(state_root(tmp_path), CONTAINER)
    assert resource.document["containerDetails"] == {
        "id": "ab" * 32,
        "containerRuntime": "containerd",
        "name": "web",
        "image": "registry.example/team/web:1",
        "imagePrefix": "registry.example/team",
        "volumeMounts": [{"name": "/srv/data", "mountPath": "/data"}],
        "securityContext": {"privileged": True, "allowPrivilegeEscalation": True},
    }
    assert problems(resource.document, "Resource") == []
    assert resource.container is not None
    assert resource.container["hostNamespaces"] == ["network", "user"]
    assert resource.container["hostname"] == "web\\x1b[2J"


def test_a_container_of_another_host_is_described_by_its_id_alone(tmp_path: Path) -> None:
    bundle = tmp_path / "run/containerd/io.containerd.runtime.v2.task/k8s.io" / ("ab" * 32)
    bundle.mkdir(parents=True)
    (bundle / "config.json").write_text(json.dumps(OCI))
    resource = resource_of(state_root(tmp_path), CONTAINER, boot=bytes(16))
    assert resource.document["containerDetails"] == {"id": "ab" * 32, "containerRuntime": "containerd"}
    assert resource.container == {"cgroupPath": CONTAINER.cgroup_path, "stateFound": False}


def test_docker_tells_name_and_image(tmp_path: Path) -> None:
    folder = tmp_path / "var/lib/docker/containers" / ("cd" * 32)
    folder.mkdir(parents=True)
    (folder / "config.v2.json").write_text(
        json.dumps({"Name": "/web-1", "Config": {"Image": "docker.io/library/nginx"}})
    )
    resource = resource_of(state_root(tmp_path), ContainerRef("cd" * 32, None, "docker", "/docker/" + "cd" * 32))
    details = resource.document["containerDetails"]
    assert (details["name"], details["image"], details["imagePrefix"], details["containerRuntime"]) == (
        "web-1",
        "docker.io/library/nginx",
        "docker.io/library",
        "docker",
    )


@pytest.mark.parametrize("by", ["id", "cgroup"])
def test_plain_runc_is_found_by_id_or_by_cgroup(tmp_path: Path, by: str) -> None:
    state = tmp_path / "run/runc/demo"
    bundle = tmp_path / "srv/bundle"
    state.mkdir(parents=True)
    bundle.mkdir(parents=True)
    (bundle / "config.json").write_text(json.dumps({**OCI, "annotations": {}}))
    (state / "state.json").write_text(
        json.dumps(
            {
                "id": "demo",
                "cgroup_paths": {"": "/sys/fs/cgroup/system.slice/runc-demo.scope"},
                "config": {"rootfs": "/srv/bundle/rootfs", "labels": ["bundle=/srv/bundle"]},
            }
        )
    )
    path = "/demo" if by == "id" else "/system.slice/runc-demo.scope/init"
    resource = resource_of(state_root(tmp_path), ContainerRef("demo" if by == "id" else "init", None, "unknown", path))
    details = resource.document["containerDetails"]
    assert (details["containerRuntime"], details["name"]) == ("runc", "demo")
    assert resource.container is not None
    assert resource.container["bundle"] == "/srv/bundle"


@pytest.mark.parametrize("identity", ["..", "../../../etc", "a/b", "", "-x", "x" * 2000])
def test_an_id_that_is_a_path_is_never_opened(tmp_path: Path, identity: str) -> None:
    (tmp_path / "run/containerd/io.containerd.runtime.v2.task").mkdir(parents=True)
    (tmp_path / "run/containerd/config.json").write_text(json.dumps(OCI))
    states = state_root(tmp_path)
    assert states.lookup(ContainerRef(identity, None, "unknown", "/x"), BOOT) is None


_SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=20)
_KEYS = st.sampled_from(
    ["annotations", "process", "linux", "mounts", "root", "path", "namespaces", "capabilities", "bounding", "type"]
)


@settings(deadline=None)
@given(
    st.recursive(
        _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=5), max_leaves=30
    )
)
def test_any_json_in_a_bundle_gives_a_valid_resource(config: Any) -> None:
    from vedette_detector.findings.resource import from_docker, from_oci

    if not isinstance(config, dict):
        return
    resource = describe(CONTAINER, HOST, {**from_oci(config, "containerd", "/b"), **from_docker(config)})
    assert problems(resource.document, "Resource") == []


def test_an_ec2_host_is_an_instance() -> None:
    heartbeat = {
        "agent_version": "0.1.0",
        "host": {
            "hostname": "ip-10-0-0-1",
            "machine_id": "m",
            "ec2": {"instanceId": "i-0123456789abcdef0", "instanceType": "m6i.large", "privateIp": "10.0.0.1"},
        },
    }
    resource = describe(None, Host.of("node-a", BOOT, heartbeat), None)
    assert resource.document["instanceDetails"] == {
        "instanceId": "i-0123456789abcdef0",
        "instanceType": "m6i.large",
        "networkInterfaces": [{"privateDnsName": "ip-10-0-0-1", "privateIpAddress": "10.0.0.1"}],
    }
    assert resource.host["machineId"] == "m"


def test_different_findings_of_one_resource_are_bounded_for_an_hour() -> None:
    now = 0.0
    gate = FloodGate(2, clock=lambda: now)
    full, admitted = Verdict.RESOURCE_FULL, Verdict.ADMITTED
    verdicts = [gate.judge("n", "t", "r", i) for i in ("a", "b", "c", "a", "c")]
    assert verdicts == [admitted, admitted, full, admitted, full]
    assert gate.judge("n", "t", "other", "c") is admitted
    assert gate.judge("n", "u", "r", "c") is admitted
    assert gate.judge("m", "t", "r", "c") is admitted
    now = 3600.0
    assert gate.judge("n", "t", "r", "c") is admitted
    assert gate.note(full).startswith("More than 2 different findings of this type came from this resource within 60")


def test_a_confirmed_resource_keeps_a_few_findings_on_a_node_that_is_full() -> None:
    gate = FloodGate(30, clock=lambda: 0.0)
    for number in range(200):
        gate.judge("n", "t", f"container-{number // 20}", str(number))

    verdicts = [gate.judge("n", "t", "pod", str(number), confirmed=True) for number in range(25)]

    assert gate.judge("n", "t", "made-up", "a") is Verdict.NODE_FULL
    assert verdicts == [Verdict.ADMITTED] * 20 + [Verdict.NODE_FULL] * 5


def test_a_node_that_makes_up_resources_is_bounded_and_others_are_not() -> None:
    now = 0.0
    gate = FloodGate(2, clock=lambda: now)
    verdicts = [gate.judge("bad", "t", f"container-{n}", "a") for n in range(12)]
    assert verdicts == [Verdict.ADMITTED] * 8 + [Verdict.NODE_FULL] * 4
    assert gate.judge("bad", "t", "container-3", "a") is Verdict.ADMITTED
    assert gate.judge("good", "t", "container-99", "a") is Verdict.ADMITTED
    assert len(gate._nodes["bad"].seen) == 8
    now = 3600.0
    assert gate.judge("bad", "t", "container-99", "a") is Verdict.ADMITTED
    assert gate.note(Verdict.NODE_FULL).startswith(
        "More than 8 different findings of this and other types came from this node within 60 minutes"
    )


def test_what_is_remembered_of_findings_is_taken_from_the_node_with_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flood, "_IDS_KEPT", 6)
    gate = FloodGate(100)
    for node, count in (("quiet", 2), ("loud", 9)):
        for number in range(count):
            gate.judge(node, "t", f"r{number}", "a")
    assert [list(gate._nodes[n].seen) for n in ("quiet", "loud")] == [
        [("t", "r0"), ("t", "r1")],
        [("t", "r5"), ("t", "r6"), ("t", "r7"), ("t", "r8")],
    ]
    gate.forget("loud")
    assert gate._total == 2


def test_the_documentation_lists_every_type_as_the_catalogue_has_it() -> None:
    page = (Path(__file__).parents[3] / "docs" / "findings-format.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `") and ":Runtime/" in line]
    assert rows == [
        f"| `{t.name}` | {t.severity:g}{' (varies)' if t.variable else ''} | {t.key} |"
        for t in catalog.BY_NAME.values()
    ]
