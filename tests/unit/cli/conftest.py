"""A real store with real findings, made as the detector makes them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from vedette_cli.main import cli
from vedette_detector.engine.detection import ContainerRef, Detection
from vedette_detector.findings.build import Identity, build
from vedette_detector.findings.resource import Host, describe
from vedette_detector.store import Effects, Store
from vedette_detector.text import Redactor

CONTAINER = "4f1d2c3b9a8e" + "0" * 52
SEEN = datetime(2026, 1, 31, 12, 0, 0, 123000, UTC)
HOST = Host("web-1", bytes(16), "web-1", "m" * 32, "6.12.0", "x86_64", "0.1.0", {})

Vedette = Callable[..., Result]


def detection(**values: Any) -> Detection:
    """A reverse shell in a container, with ``values`` in place of its own."""
    process = {
        "name": "bash",
        "executablePath": "/usr/bin/bash",
        "arguments": ["bash", "-i"],
        "pid": 4711,
        "namespacePid": 12,
        "pwd": "/root",
        "user": "root",
        "userId": 0,
        "euid": 0,
        "startTime": SEEN.isoformat(),
        "uuid": "a" * 32,
        "parentUuid": "b" * 32,
    }
    defaults: dict[str, Any] = {
        "finding_type": "Execution:Runtime/ReverseShell",
        "severity": 8.0,
        "rule_id": "reverse_shell",
        "title": "A shell works over a network connection.",
        "description": "The shell's input and output are a connection to 198.51.100.7 port 4444.",
        "key": ("198.51.100.7", "/usr/bin/bash"),
        "node": "web-1",
        "time_ns": 1_000_000_000,
        "wall": SEEN,
        "event": {"type": "exec", "pid": 4711},
        "process": process,
        "lineage": [
            {"name": "python3", "executablePath": "/usr/bin/python3", "pid": 4700, "userId": 0},
            {"name": "sh", "executablePath": "/bin/dash", "pid": 4690, "userId": 0},
        ],
        "action": {
            "actionType": "NETWORK_CONNECTION",
            "networkConnectionAction": {
                "connectionDirection": "OUTBOUND",
                "protocol": "TCP",
                "localIpDetails": {"ipAddressV4": "10.0.0.2"},
                "remoteIpDetails": {"ipAddressV4": "198.51.100.7"},
                "remotePortDetails": {"port": 4444},
            },
        },
        "container": ContainerRef(CONTAINER, None, "containerd", f"/containers/{CONTAINER}"),
        "host_process": False,
        "notes": ["The shell was started by python3."],
        "triage": "See who asked for it.\nStop the container.",
        "related_events": [
            {"type": "connect", "wall": SEEN.isoformat(), "pid": 4700, "comm": "python3", "raddr": "198.51.100.7"}
        ],
    }
    return Detection(**{**defaults, **values})


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "data" / "detector").mkdir(parents=True)
    return tmp_path / "data"


Put = Callable[..., list[str]]


@pytest.fixture
def put(data_dir: Path) -> Put:
    """Store detections as findings; returns their ids."""

    def put(*detections: Detection) -> list[str]:
        store = Store(f"sqlite:///{data_dir}/detector/findings.db")
        ids = []
        clock = itertools.count(int(SEEN.timestamp()) * 10**9)
        for one in detections:
            resource = describe(one.container, HOST, None)
            update = build(one, resource, HOST, Identity(), Redactor((), ()))
            store.apply(Effects(findings=[update]), next(clock))
            ids.append(update.id)
        store.close()
        return ids

    return put


@pytest.fixture
def vedette(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vedette:
    """Run the command on the test's directories, not on those of this machine."""
    monkeypatch.setenv("VEDETTE_DATA_DIR", str(data_dir))
    monkeypatch.setenv("VEDETTE_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("VEDETTE_STORE", raising=False)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli, arguments, catch_exceptions=False)

    return run


def later(**delta: float) -> datetime:
    """A moment after `SEEN`."""
    return SEEN + timedelta(**delta)
