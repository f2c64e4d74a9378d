"""What values become, byte for byte. A change here restarts agents or detector of everybody who upgrades.

To take changes over on purpose: VEDETTE_WRITE_GOLDEN=1 pytest tests/unit/operator/test_golden.py, then read the diff.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.operator.conftest import TLS, rendered
from vedette_operator.rendering import TlsMaterial, to_yaml

GOLDEN = Path(__file__).parent / "golden"

CASES: dict[str, tuple[Any, TlsMaterial | None]] = {
    "default": ({}, TLS),
    "existing-certificates": ({"tls": {"secret": "issued", "caConfigMap": "trust"}}, None),
    "external-detector": (
        {"detector": {"external": {"url": "https://detector.example.com:8443"}}, "cluster": {"name": "edge"}},
        TlsMaterial(ca=TLS.ca),
    ),
    "external-detector-public-certificate": (
        {"detector": {"external": {"url": "https://detector.example.com:8443", "systemCertificates": True}}},
        None,
    ),
    "everything": (
        {
            "namespace": "security",
            "createNamespace": False,
            "managedBy": "vedette-operator",
            "labels": {"team": "security"},
            "annotations": {"example.com/owner": "security team: #sec, 'on call'"},
            "cluster": {
                "name": "prod",
                "arn": "arn:aws:eks:eu-west-1:012345678901:cluster/prod",
                "accountId": "012345678901",
                "region": "eu-west-1",
                "domain": "cluster.example",
            },
            "images": {
                "registry": "registry.example.com:5000/vedette",
                "tag": "0.1.0",
                "pullPolicy": "Always",
                "pullSecrets": ["registry"],
                "agent": {"digest": "sha256:" + "a" * 64},
                "detector": {"repository": "detector", "tag": "0.1.1"},
            },
            "agent": {
                "logLevel": "debug",
                "spoolLimit": "1Gi",
                "hashMibPerSecond": 0,
                "ec2Metadata": False,
                "hostPath": "/mnt/vedette",
                "cgroupPath": "/sys/fs/cgroup/unified",
                "appArmorProfile": "Unconfined",
                "seLinuxType": "spc_t",
                "resources": {"requests": {"cpu": "100m"}, "limits": {"memory": "512Mi", "cpu": 2}},
                "tolerations": [
                    {"key": "dedicated", "operator": "Equal", "value": "gpu", "effect": "NoSchedule"},
                    {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0},
                ],
                "nodeSelector": {"pool": "general"},
                "affinity": {},
                "priorityClassName": "security-critical",
                "maxUnavailable": 3,
                "labels": {"cost-center": "42"},
                "annotations": {"example.com/scrape": "no"},
            },
            "detector": {
                "logLevel": "warning",
                "bindAddress": "::",
                "workers": 0,
                "storage": {"className": "", "size": "200Gi"},
                "retention": {"findings": "52w", "events": "36h", "eventsSize": "100Gi"},
                "redaction": {"patterns": [r"secret-(\w+)", r"key: (.*)"], "options": []},
                "builtinRules": False,
                "rules": [{"configMap": "own-rules"}, {"secret": "own-rules"}],
                "threatLists": [{"configMap": "feeds"}],
                "storeUrl": {"secret": "database", "key": "url"},
                "adminServiceAccounts": ["monitoring:reader", "security:operator"],
                "serviceAccountAnnotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::012345678901:role/v"},
                "tolerations": [{"key": "infra", "operator": "Exists"}],
                "nodeSelector": {"pool": "infra"},
                "affinity": {
                    "podAntiAffinity": {
                        "preferredDuringSchedulingIgnoredDuringExecution": [
                            {
                                "weight": 1,
                                "podAffinityTerm": {
                                    "topologyKey": "topology.kubernetes.io/zone",
                                    "labelSelector": {"matchLabels": {"app": "other"}},
                                },
                            }
                        ]
                    }
                },
                "priorityClassName": "system-cluster-critical",
            },
            "networkPolicies": {"sources": ["10.0.0.0/8", "fd00::/8"], "egressPorts": [443, 5432]},
        },
        TLS,
    ),
    "no-network-policies": (
        {"networkPolicies": {"enabled": False}, "agent": {"priorityClassName": ""}},
        TLS,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_become_exactly_this(name: str) -> None:
    data, tls = CASES[name]
    text = to_yaml(m.content for m in rendered(data, tls))
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("VEDETTE_WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_there_is_a_case_for_each_golden_file() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_is_what_was_rendered(name: str) -> None:
    manifests = [m.content for m in rendered(*CASES[name])]
    text = to_yaml(manifests)
    assert list(yaml.safe_load_all(text)) == manifests
    assert text.isascii()


def test_other_processes_write_the_same_bytes() -> None:
    # Hashes of text differ from process to process: whatever depends on the order of a set shows here.
    program = (
        "from tests.unit.operator.test_golden import CASES; from tests.unit.operator.conftest import rendered\n"
        "from vedette_operator.rendering import to_yaml\n"
        "print(to_yaml(m.content for m in rendered(*CASES['everything'])), end='')"
    )
    for seed in ("1", "2"):
        result = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[3])},
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stdout == (GOLDEN / "everything.yaml").read_text()


def test_the_order_of_a_users_keys_changes_nothing() -> None:
    one = {"agent": {"nodeSelector": {"a": "1", "b": "2"}}, "labels": {"x": "1", "y": "2"}}
    other = {"labels": {"y": "2", "x": "1"}, "agent": {"nodeSelector": {"b": "2", "a": "1"}}}
    assert to_yaml(m.content for m in rendered(one)) == to_yaml(m.content for m in rendered(other))
