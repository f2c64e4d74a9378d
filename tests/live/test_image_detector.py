"""The detector's image in a container as a pod has it: not root, no capability, a read-only root file system."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_container import Bundle, specification

from tools.images import archive

pytestmark = [pytest.mark.usefixtures("needs_root"), pytest.mark.timeout(900)]  # it may have to be built


@pytest.fixture
def volumes() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="vedette-detector-"))
    made.chmod(0o755)
    for name in ("data", "run", "tmp"):
        (made / name).mkdir()
        shutil.chown(made / name, 60701, 60701)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def running(detector_image: tuple[Path, archive.Image], volumes: Path) -> Iterator[Bundle]:
    root, image = detector_image
    bundle = Bundle(root)
    mounts = (
        (volumes / "data", "/var/lib/vedette/detector", True),
        (volumes / "run", "/run/vedette", True),
        (volumes / "tmp", "/tmp", True),
    )
    specified = specification(
        root, (), image, user=60701, capabilities=(), mounts=mounts, host=False, cgroup=bundle.cgroup
    )
    log = volumes / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(bundle.command(specified), stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 60
        while not (volumes / "run" / "detector.sock").exists():
            assert process.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < deadline, log.read_text(errors="replace")
            time.sleep(0.1)
        yield bundle
        process.terminate()
        assert process.wait(30) == 0, log.read_text(errors="replace")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        bundle.close()


def test_the_command_finds_the_detector_beside_it_without_options(running: Bundle) -> None:
    def vedette(*arguments: str) -> str:
        done = subprocess.run(
            running.runc("exec", running.id, "vedette", *arguments), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert json.loads(vedette("status", "--output", "json"))["nodes"] == []
    assert vedette("findings", "list", "--output", "json").strip() in ("", "[]")
    assert "vedette" in vedette("--version")


def test_the_detectors_image_holds_nothing_to_attack_with(detector_image: tuple[Path, archive.Image]) -> None:
    root, image = detector_image
    files = [path for path in root.rglob("*") if not path.is_symlink() and path.is_file()]

    assert image.config["config"]["User"] == "60701:60701"
    assert [p for p in files if p.stat().st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IWOTH)] == []
    unwanted = {
        "gcc",
        "cc",
        "clang",
        "ld",
        "make",
        "sh",
        "bash",
        "busybox",
        "perl",
        "apt-get",
        "dpkg",
        "pip",
        "uv",
        "su",
    }
    assert {path.name for path in files} & unwanted == set()
    assert {path.lstat().st_uid for path in files} == {0}
