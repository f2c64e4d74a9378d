"""Vedette in a cluster, installed as docs/kubernetes.md says: for the demo, the e2e tests and the benchmarks."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.containers.pod import Kubectl

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "vedette-system"
DETECTOR = "vedette-detector-0"
IMAGES = ("agent", "detector", "attacks")
"""What of `tools.images` goes onto the node."""
ATTACK_IMAGE = "localhost/vedette-attacks:dev"
_THREAT_LISTS = "vedette-threat-lists"


class InstallationError(RuntimeError):
    """Vedette did not come up, or a command failed; the message holds what was said."""


def archive(image: str) -> Path:
    """Where ``make images`` leaves an image of `IMAGES`."""
    return ROOT / f"build/images/{image}.tar"


def node_kubectl(cluster_state: Path) -> str:
    """The kubectl that was built for a local cluster; ``cluster_state`` is its cluster.json."""
    return str(json.loads(cluster_state.read_text())["kubectl"])


class Installation:
    """One installation.

    Args:
        kubectl: the cluster.
        directory: where certificates and manifests are written.
        cluster: the cluster's name in findings.
        threat_lists: texts by file name.

    Attributes:
        tls: directory of the certificates.
        manifests: file with what was applied last.
        said: what kubectl said on standard error while applying, warnings of the API server among it.
    """

    def __init__(self, kubectl: Kubectl, directory: Path, *, cluster: str, threat_lists: Mapping[str, str]) -> None:
        self.kubectl = kubectl
        self.tls = directory / "tls"
        self.manifests = directory / "vedette.yaml"
        self._directory = directory
        self._cluster = cluster
        self._threat_lists = dict(threat_lists)
        self.said = ""

    def certificates(self, *options: str) -> None:
        """``vedette certificates``: makes what is missing."""
        _vedette("certificates", "--out", str(self.tls), *options)

    def render(self) -> str:
        """``vedette manifests``, also written to `manifests`."""
        values = self._directory / "values.json"
        values.write_text(
            json.dumps(
                {
                    "images": {"registry": "localhost", "tag": "dev"},
                    "cluster": {"name": self._cluster},
                    "detector": {"threatLists": [{"configMap": _THREAT_LISTS}]},
                }
            )
        )
        rendered = _vedette("manifests", "--values", str(values), "--tls-dir", str(self.tls))
        self.manifests.write_text(rendered)
        return rendered

    def apply(self) -> None:
        """Apply all."""
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        lists = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": _THREAT_LISTS, "namespace": NAMESPACE},
            "data": self._threat_lists,
        }
        said = []
        for text in (json.dumps(namespace), json.dumps(lists), self.render()):
            done = self.kubectl.run("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)
            said.append(done.stderr)
        self.said = "".join(said)

    def wait_for_rollout(self, timeout_s: int = 120) -> None:
        """Wait until detector and agents run in their newest form."""
        for what in ("statefulset/vedette-detector", "daemonset/vedette-agent"):
            self.kubectl.run(
                *("rollout", "status", what, f"--namespace={NAMESPACE}", f"--timeout={timeout_s}s"),
                timeout_s=timeout_s + 30,
            )

    def vedette(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run ``vedette`` where the detector runs; does not raise."""
        return self.kubectl.run("exec", f"--namespace={NAMESPACE}", DETECTOR, "--", "vedette", *command, check=False)

    def status(self) -> dict[str, Any] | None:
        """``vedette status -o json``; None while the detector does not answer."""
        done = self.vedette("status", "-o", "json")
        with contextlib.suppress(ValueError):
            status: dict[str, Any] = json.loads(done.stdout)
            return status
        return None

    def wait_until_watched(self, timeout_s: float = 60) -> dict[str, Any]:
        """The detector's status, once an agent has reported loaded hooks.

        Raises:
            InstallationError: none did.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            status = self.status() or {}
            for node in status.get("nodes") or []:
                if any(h.get("state") == "loaded" for h in node.get("hooks") or []):
                    return status
            time.sleep(0.3)
        raise InstallationError(f"no agent reported within {timeout_s:.0f} s\n{self.logs()}")

    def logs(self) -> str:
        """The last lines of agent and detector, and how their pods do."""
        pods = self.kubectl.run("get", "pods", f"--namespace={NAMESPACE}", "-o", "wide", check=False)
        out = [pods.stdout]
        for what in ("pod/" + DETECTOR, "daemonset/vedette-agent"):
            done = self.kubectl.run("logs", f"--namespace={NAMESPACE}", what, "--tail=30", check=False)
            out.append(f"== {what}\n{done.stdout}{done.stderr}")
        return "\n".join(out)


def _vedette(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "vedette_cli", *command], capture_output=True, text=True, check=False, cwd=ROOT
    )
    if done.returncode != 0:
        raise InstallationError(f"vedette {' '.join(command[:2])}: {done.stderr.strip()}")
    return done.stdout


def build_images(names: Sequence[str] = IMAGES) -> None:
    """Build the images that are not built yet, showing what the builder says.

    Raises:
        InstallationError: a build failed.
    """
    done = subprocess.run([sys.executable, "-m", "tools.images", *names], cwd=ROOT, check=False)
    if done.returncode != 0:
        raise InstallationError("the images could not be built; the lines above say why")
