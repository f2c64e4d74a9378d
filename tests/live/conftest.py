"""Real BPF programs on this kernel, loaded once per session, and `collect`: run something, get the records it made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.images import archive, engine
from tools.images.build import OUTPUT, build_images
from vedette_agent import bpf_build, loader

sys.path.insert(0, str(Path(__file__).parent))  # test modules are imported one by one, not as a package
from live_collect import FILTERS, Collector


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/tests/live/" in str(item.path):
            item.add_marker(pytest.mark.live)


@pytest.fixture(scope="session")
def needs_root() -> None:
    """Skip where BPF programs cannot be loaded; in CI the skip is a failure (tests/conftest.py)."""
    if os.geteuid() != 0:
        pytest.skip("live tests load BPF programs and need root")
    if not Path("/sys/kernel/btf/vmlinux").exists():
        pytest.skip("live tests need a kernel with BTF (/sys/kernel/btf/vmlinux)")


@pytest.fixture(scope="session")
def bpf_object(needs_root: None) -> Path:
    return bpf_build.ensure()


@pytest.fixture(scope="session")
def bpffs(needs_root: None) -> Iterator[Path]:
    """A bpffs of our own, unmounted at the end."""
    directory = Path(tempfile.mkdtemp(prefix="vedette-bpffs-"))
    subprocess.run(["mount", "-t", "bpf", "vedette-test", str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)
        directory.rmdir()


@pytest.fixture(scope="session")
def programs(bpf_object: Path) -> Iterator[loader.Programs]:
    loaded = loader.load(bpf_object, None, loader.Config(exclude_self=False, ring_bytes=16 << 20))
    loaded.set_filters(FILTERS)
    yield loaded
    loaded.close()


@pytest.fixture(scope="session")
def collector(programs: loader.Programs) -> Iterator[Collector]:
    made = Collector(programs)
    yield made
    made.close()


@pytest.fixture
def collect(collector: Collector) -> Collector:
    return collector


@pytest.fixture(scope="session")
def helper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C helper (live_helper.c), statically linked: does one named thing with system calls, no libc in between."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("live tests compile a small C program and need cc")
    target = tmp_path_factory.mktemp("helper") / "live_helper"
    source = Path(__file__).with_name("live_helper.c")
    subprocess.run([compiler, "-O1", "-static", "-Wall", "-Werror", "-o", str(target), str(source)], check=True)
    return target


def _unpacked_image(name: str) -> Iterator[tuple[Path, archive.Image]]:
    """Builds an image from these sources (minutes the first time, seconds from the cache) and unpacks it."""
    try:
        engine.choose("", OUTPUT)
    except engine.EngineError as error:
        pytest.skip(f"the tests of the images build them: {error}")
    packed = build_images((name,))[name]
    # Not pytest's directory: those who run in the containers are not root.
    directory = Path(tempfile.mkdtemp(prefix="vedette-image-root-"))
    directory.chmod(0o755)
    try:
        yield directory, archive.unpack(packed, directory)
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def agent_image(needs_root: None) -> Iterator[tuple[Path, archive.Image]]:
    """The root file system of the agent's image, with owners and file capabilities, and what the archive says."""
    yield from _unpacked_image("agent")


@pytest.fixture(scope="session")
def detector_image(needs_root: None) -> Iterator[tuple[Path, archive.Image]]:
    """As `agent_image`, of the detector's."""
    yield from _unpacked_image("detector")
