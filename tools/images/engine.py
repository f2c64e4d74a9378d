"""The command lines of docker, podman and buildah, as far as they differ. Pure, except `choose`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

NAMES = ("docker", "podman", "buildah")


class EngineError(RuntimeError):
    """No program to build images with, or it failed; the message says what to do or holds its own words."""


@dataclass(frozen=True)
class Engine:
    """One of `NAMES`. ``storage`` is where buildah keeps layers, so that they lie in Vedette's own cache."""

    name: str
    storage: Path | None = None

    def _program(self) -> list[str]:
        if self.name == "buildah" and self.storage is not None:
            return [
                *("buildah", "--root", str(self.storage / "store"), "--runroot", str(self.storage / "run")),
                *("--storage-driver", os.environ.get("STORAGE_DRIVER", "overlay")),
            ]
        return [self.name]

    def command(self, *arguments: str) -> list[str]:
        """Any command of the program."""
        return [*self._program(), *arguments]

    def build(
        self,
        context: Path,
        dockerfile: Path,
        tag: str,
        *,
        target: str = "",
        arguments: Mapping[str, str] | None = None,
        timestamp: int = 0,
        ca_bundle: Path | None = None,
        local_base: bool = False,
    ) -> list[str]:
        """Build ``target`` of ``dockerfile`` as ``tag``.

        Args:
            context: directory that COPY copies from.
            dockerfile: its path.
            tag: name of the image.
            target: stage to build; empty: the last.
            arguments: build arguments.
            timestamp: seconds since the epoch for what the engine itself dates.
            ca_bundle: certificates for package downloads, seen by single build steps only.
            local_base: the base image is not to be looked for in a registry.
        """
        options = ["--file", str(dockerfile), "--tag", tag]
        if target:
            options += ["--target", target]
        for name, value in (arguments or {}).items():
            options += ["--build-arg", f"{name}={value}"]
        if ca_bundle is not None:
            options += ["--secret", f"id=ca-bundle,src={ca_bundle}"]
        if self.name == "docker":
            options += ["--build-arg", f"SOURCE_DATE_EPOCH={timestamp}", "--provenance=false"]
            return self.command("buildx", "build", "--load", *options, str(context))
        options += ["--build-arg", f"SOURCE_DATE_EPOCH={timestamp}", "--timestamp", str(timestamp), "--layers"]
        if local_base:
            options += ["--pull=never" if self.name == "podman" else "--pull-never"]
        if self.name == "podman":
            return self.command("build", "--format", "oci", *options, str(context))
        # chroot: needs no runtime, no cgroup and no network set-up, so it also works where containers are restricted.
        return self.command("bud", "--isolation", "chroot", "--network", "host", *options, str(context))

    def save(self, tag: str, archive: Path) -> list[str]:
        """Write the image as an OCI archive, named ``tag`` inside."""
        if self.name == "docker":
            return self.command("save", "--output", str(archive), tag)
        if self.name == "podman":
            return self.command("save", "--format", "oci-archive", "--output", str(archive), tag)
        return self.command("push", "--quiet", tag, f"oci-archive:{archive}:{tag}")

    def image_id(self, tag: str) -> list[str]:
        """Print the id of the image; fails when there is none."""
        if self.name == "buildah":
            return self.command("images", "--quiet", "--no-trunc", tag)
        return self.command("image", "inspect", "--format", "{{.Id}}", tag)


def choose(wanted: str, storage: Path) -> Engine:
    """The engine called ``wanted``; empty: the first that is there and answers.

    Raises:
        EngineError: there is none.
    """
    for name in (wanted,) if wanted else NAMES:
        if name not in NAMES:
            raise EngineError(f"no such engine: {name} (one of {', '.join(NAMES)})")
        if shutil.which(name) is None:
            continue
        engine = Engine(name, storage)
        # docker is often there without a daemon that would answer.
        if name != "docker" or subprocess.run(engine.command("info"), capture_output=True, check=False).returncode == 0:
            return engine
    missing = f"{wanted} is not there" if wanted else "none of docker, podman and buildah is there"
    raise EngineError(
        f"{missing} (or it does not answer). Debian, Ubuntu: apt-get install --no-install-recommends buildah"
    )
