"""One cluster with Vedette in it for the whole session; docs/development/e2e.md tells how to choose and keep it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # test modules are imported one by one, not as a package
from e2e_clusters import KEEP, NAME, TestedCluster, choose
from e2e_kinds import NAMESPACE as KINDS
from e2e_kinds import OBJECTS
from e2e_world import ATTACKED, MARKER_IP, World

from tools.attacks import ensure_programs
from tools.attacks.catalogue import THREAT_LIST
from tools.containers.pod import Kubectl
from tools.demo.installation import IMAGES, ROOT, Installation, archive, build_images

SESSION_TIMEOUT_S = 900
"""For the test that comes first, which brings everything up."""
FIRST = ("test_workloads.py",)
LAST = ("test_cron_job.py", "test_api_server_away.py", "test_uninstall.py", "test_operator.py")
"""What takes something away that others need runs at the end, and what has to wait for something begins with it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if "/tests/e2e/" in str(item.path)]
    for item in mine:
        item.add_marker(pytest.mark.e2e)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(SESSION_TIMEOUT_S))
    first = [item for name in FIRST for item in mine if item.path.name == name]
    last = [item for name in LAST for item in mine if item.path.name == name]
    others = [item for item in mine if item not in first and item not in last]
    items[:] = [item for item in items if item not in mine] + first + others + last


@pytest.fixture(scope="session")
def cluster() -> Iterator[tuple[TestedCluster, Kubectl]]:
    """The cluster, up; taken down whatever happens, unless VEDETTE_E2E_KEEP is set."""
    chosen = choose()
    if chosen.local is not None and not Path("/sys/kernel/btf/vmlinux").exists():
        pytest.skip("kernel: e2e tests need a kernel with BTF (/sys/kernel/btf/vmlinux)")

    def interrupt(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, interrupt) if threading.current_thread() is threading.main_thread() else None
    if not os.environ.get("VEDETTE_E2E_NO_BUILD"):
        build_images()
    try:
        kubectl = chosen.up()
        for image in IMAGES:
            chosen.load(archive(image), f"localhost/vedette-{image}:dev")
        yield chosen, kubectl
    finally:
        if not KEEP:
            chosen.down()
        if former is not None:
            signal.signal(signal.SIGTERM, former)


@pytest.fixture(scope="session")
def installation(cluster: tuple[TestedCluster, Kubectl]) -> Iterator[Installation]:
    """Vedette installed by ``vedette certificates`` and ``vedette manifests``; an agent has reported."""
    _, kubectl = cluster
    # A cluster that is kept keeps its certificates, so that the next run finds an installation that works.
    directory = ROOT / "build" / f"e2e-{NAME}" if KEEP else Path(tempfile.mkdtemp(prefix="vedette-e2e-"))
    directory.mkdir(parents=True, exist_ok=True)
    made = Installation(
        kubectl, directory, cluster="e2e", threat_lists={"test.txt": THREAT_LIST, "marker.txt": f"{MARKER_IP}\n"}
    )
    made.certificates()
    made.apply()
    try:
        made.wait_for_rollout()
        made.wait_until_watched()
        yield made
    except BaseException:
        print(made.logs(), file=sys.stderr)
        raise
    finally:
        if not KEEP:
            shutil.rmtree(directory)


@pytest.fixture(scope="session")
def world(cluster: tuple[TestedCluster, Kubectl], installation: Installation) -> Iterator[World]:
    chosen, kubectl = cluster
    ensure_programs()
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ATTACKED}}
    kubectl.run("apply", "--server-side", "-f", "-", stdin=json.dumps(namespace))
    made = World(chosen, kubectl, installation, installation.tls.parent)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def kinds(world: World) -> Iterator[World]:
    """With one pod of every kind, see `e2e_kinds`."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": KINDS}}
    world.kubectl.run("apply", "--server-side", "-f", "-", stdin=json.dumps(namespace))
    listed = {"apiVersion": "v1", "kind": "List", "items": OBJECTS}
    world.kubectl.run("apply", "--server-side", "-f", "-", stdin=json.dumps(listed))
    yield world
    world.kubectl.run("delete", "namespace", KINDS, "--wait=false", check=False)


@pytest.fixture
def node_here(world: World) -> World:
    """For what needs the node's processes and files on this machine."""
    if world.cluster.local is None:
        pytest.skip("place: this test needs a node that is this machine (CLUSTER=local)")
    return world
