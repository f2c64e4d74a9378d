"""Where the tests run: a cluster made for them on this machine, kind's, or one that exists and is allowed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Protocol

import pytest

from tools.containers.pod import Kubectl
from tools.demo.installation import node_kubectl
from tools.localcluster.cluster import Cluster
from tools.localcluster.errors import PrerequisiteError

NAME = os.environ.get("VEDETTE_E2E_NAME", "e2e")
KEEP = bool(os.environ.get("VEDETTE_E2E_KEEP"))
ALLOWED = "VEDETTE_E2E_CONTEXTS"
"""Names of contexts, separated by commas, in which CLUSTER=current may install Vedette and attack pods."""


class TestedCluster(Protocol):
    """What the tests need of a cluster."""

    @property
    def local(self) -> Cluster | None:
        """The cluster of `tools.localcluster`, where it is one."""

    def up(self) -> Kubectl:
        """Make it usable."""

    def load(self, archive: Path, image: str) -> None:
        """Give its nodes an image."""

    def down(self) -> None:
        """Undo `up`."""


class Local:
    """CLUSTER=local: Kubernetes on this machine, made for this run."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            pytest.skip("e2e tests start a Kubernetes node and load BPF programs: they need root (sudo make e2e)")
        self.local = Cluster(NAME)

    def up(self) -> Kubectl:
        try:
            self.local.up()
        except PrerequisiteError as error:
            pytest.skip(f"e2e tests: {error}")
        return Kubectl(self.local.kubeconfig, node_kubectl(self.local.layout.state_file))

    def load(self, archive: Path, image: str) -> None:
        self.local.load_image(archive)

    def down(self) -> None:
        self.local.down()


class Kind:
    """CLUSTER=kind: a kind cluster, for machines with Docker."""

    local = None

    def __init__(self) -> None:
        from pytest_kind.cluster import KindCluster

        docker = shutil.which("docker")
        if docker is None or subprocess.run([docker, "info"], capture_output=True, check=False).returncode != 0:
            pytest.skip("CLUSTER=kind needs Docker, which is not installed or does not answer (docker info)")
        found = {name: shutil.which(name) for name in ("kind", "kubectl")}
        self._kind = KindCluster(
            NAME,
            kind_path=Path(found["kind"]) if found["kind"] else None,
            kubectl_path=Path(found["kubectl"]) if found["kubectl"] else None,
        )

    def up(self) -> Kubectl:
        self._kind.create()
        self._kind.ensure_kubectl()
        return Kubectl(self._kind.kubeconfig_path.absolute(), str(self._kind.kubectl_path.absolute()))

    def load(self, archive: Path, image: str) -> None:
        command = [str(self._kind.kind_path), "load", "image-archive", "--name", NAME, str(archive)]
        subprocess.run(command, check=True)

    def down(self) -> None:
        if self._kind.kind_path.exists():  # else it could not be fetched and there is nothing
            self._kind.delete()


class Current:
    """CLUSTER=current: the current context, when it is named in `ALLOWED`. Its nodes have the images already."""

    local = None

    def __init__(self) -> None:
        kubectl = shutil.which("kubectl")
        if kubectl is None:
            pytest.fail("CLUSTER=current needs kubectl on the PATH", pytrace=False)
        done = subprocess.run([kubectl, "config", "current-context"], capture_output=True, text=True, check=False)
        context = done.stdout.strip()
        allowed = [name for name in os.environ.get(ALLOWED, "").split(",") if name]
        if context not in allowed:
            pytest.fail(
                f"CLUSTER=current: the context {context!r} is not in {ALLOWED} ({', '.join(allowed) or 'empty'}); "
                "these tests attack pods, so name every context in which they may",
                pytrace=False,
            )
        # A copy with this context alone: whoever changes the current one meanwhile does not change ours.
        view = [kubectl, "config", "view", "--minify", "--flatten", "--raw"]
        self._config = subprocess.run(view, capture_output=True, text=True, check=True).stdout
        self._kubectl = kubectl
        self._file: Path | None = None

    def up(self) -> Kubectl:
        import tempfile

        descriptor, name = tempfile.mkstemp(prefix="vedette-e2e-kubeconfig-")
        with os.fdopen(descriptor, "w") as file:
            file.write(self._config)
        self._file = Path(name)
        return Kubectl(self._file, self._kubectl)

    def load(self, archive: Path, image: str) -> None:
        """Nothing: whoever runs the tests there has put the images where the nodes find them."""

    def down(self) -> None:
        if self._file is not None:
            self._file.unlink()


def choose() -> TestedCluster:
    """The cluster that the environment variable CLUSTER names."""
    kinds = {"local": Local, "kind": Kind, "current": Current}
    wanted = os.environ.get("CLUSTER", "local")
    if wanted not in kinds:
        pytest.fail(f"CLUSTER={wanted}: give one of {', '.join(kinds)}", pytrace=False)
    return kinds[wanted]()
