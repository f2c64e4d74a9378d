"""A base image made here by mmdebstrap, for machines that reach a Debian mirror but no image registry.

It stands in for ``debian:bookworm-slim``: minbase, no documentation besides licences, apt configured to keep nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from tools.containers.rootfs import SUITE, locked
from tools.images.engine import Engine, EngineError

_DPKG_OPTIONS = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
)

DOCKER_CLEAN = """# As in Debian's own images: packages and caches of apt do not stay in a layer.
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb || true"; };
APT::Update::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb || true"; };
APT::Install-Recommends "false";
"""


def key(today: datetime) -> str:
    """Name of the cached tar: the year and week, and a hash over all that decides the contents.

    A week: the packages' security updates come into the images through it, and nobody should have to think of fetching
    them; making it anew every day would cost a newcomer's first build of each day a minute and more and all layers.
    """
    year, week, _ = today.isocalendar()
    inputs = "\n".join((SUITE, os.uname().machine, *_DPKG_OPTIONS, DOCKER_CLEAN))
    return f"{SUITE}-{year}w{week:02}-{hashlib.sha256(inputs.encode()).hexdigest()[:12]}"


def ensure_tar(attempts: int = 4) -> Path:
    """The base's files as a tar in the cache, made when there is none of this week; older ones go.

    Raises:
        EngineError: mmdebstrap is missing or failed each time.
    """
    if shutil.which("mmdebstrap") is None:
        raise EngineError(
            "mmdebstrap is not installed: apt-get install mmdebstrap (or name a base image: --base IMAGE)"
        )
    with locked("image-base") as cache:
        target = cache / f"image-base-{key(datetime.now(UTC))}.tar"
        if target.exists():
            return target
        building = target.with_suffix(".unfinished")
        command = [
            *("mmdebstrap", "--variant=minbase", "--mode=root", "--format=tar", "--include=ca-certificates"),
            *(f"--dpkgopt={option}" for option in _DPKG_OPTIONS),
            "--aptopt=Acquire::Retries 3",
            f"--customize-hook=printf '%s' {_quoted(DOCKER_CLEAN)} >\"$1/etc/apt/apt.conf.d/docker-clean\"",
            # What a base image has no use for, and what would differ each time.
            '--customize-hook=rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/var/log/* "$1/etc/machine-id"',
            *(SUITE, str(building)),
        ]
        output = ""
        for attempt in range(attempts):
            print(f"making a base image of Debian {SUITE} (a minute, once a week)", file=sys.stderr)
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            if done.returncode == 0:
                for old in cache.glob("image-base-*.tar"):
                    old.unlink()
                building.rename(target)
                return target
            output = done.stderr
            building.unlink(missing_ok=True)
            time.sleep(2 * (attempt + 1))
        raise EngineError(f"mmdebstrap failed {attempts} times:\n{output[-3000:]}")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def ensure_image(engine: Engine, files: Path, name: str, environment: dict[str, str]) -> str:
    """Name of the image with the contents of ``files`` (a tar or a directory), made when the engine has none.

    The name must change with the contents.
    """
    tag = f"localhost/{name}"
    found = subprocess.run(engine.image_id(tag), capture_output=True, check=False)
    if found.returncode == 0 and found.stdout.strip():
        return tag
    if engine.name != "buildah":
        raise EngineError(f"{engine.name} does not make base images here; name one: --base IMAGE")

    def run(*arguments: str) -> str:
        done = subprocess.run(engine.command(*arguments), capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise EngineError(f"buildah {arguments[0]} failed:\n{done.stderr[-3000:]}")
        return done.stdout.strip()

    container = run("from", "scratch")
    try:
        run("add", "--quiet", container, str(files), "/")
        run(
            "config",
            "--cmd",
            "/bin/sh",
            "--env",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            container,
        )
        run("commit", "--quiet", "--rm", "--timestamp", "0", container, tag)
    except BaseException:
        subprocess.run(engine.command("rm", container), capture_output=True, check=False, env=environment)
        raise
    return tag
