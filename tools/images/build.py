"""Builds the images and writes them as OCI archives with their sizes.

The context is copied to the cache first, with the same time on every file: engines that look at times when they decide
whether a layer can be used again then look at contents only, and a file that is edited meanwhile changes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

from tools.attacks.programs import ensure_programs
from tools.containers.rootfs import BASE_PACKAGES, cache_directory, ensure_rootfs, locked, rootfs_key
from tools.images import archive, base
from tools.images.engine import NAMES, Engine, EngineError, choose

REPOSITORY = Path(__file__).resolve().parents[2]
OUTPUT = REPOSITORY / "build" / "images"
TARGETS = ("agent", "detector", "operator", "attacks")
DEFAULT_EPOCH = 1767225600
"""2026-01-01. Files in images get a fixed time, or every build would be another image; SOURCE_DATE_EPOCH changes it."""

HUB_BASE = "debian:bookworm-slim"
_CONTEXT = (
    *("Dockerfile", "pyproject.toml", "uv.lock", "events", "agent", "detector", "operator", "templates", "cli"),
    "tools/images",
)
_CA_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")


def reference(target: str, tag: str = "dev") -> str:
    """The image's name in archives and in a cluster."""
    return f"localhost/vedette-{target}:{tag}"


def stage_context(target: Path) -> None:
    """Make ``target`` a copy of what the images are made of; only files that differ are written."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *_CONTEXT],
        cwd=REPOSITORY,
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        names = {os.fsdecode(name) for name in listed.stdout.split(b"\0") if name}
    else:  # not a clone: a released source tree, in which nothing was built
        found = (p for top in _CONTEXT for p in [REPOSITORY / top, *(REPOSITORY / top).rglob("*")])
        names = {str(p.relative_to(REPOSITORY)) for p in found if p.is_symlink() or p.is_file()}
    present = {name for name in names if os.path.lexists(REPOSITORY / name)}
    for path in [p for p in target.rglob("*") if p.is_symlink() or not p.is_dir()]:
        if str(path.relative_to(target)) not in present:
            path.unlink()
    for name in sorted(present):
        copy, original = target / name, REPOSITORY / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if original.is_symlink():
            if not copy.is_symlink() or os.readlink(copy) != os.readlink(original):
                copy.unlink(missing_ok=True)
                copy.symlink_to(os.readlink(original))
        elif not copy.is_file() or copy.read_bytes() != original.read_bytes():
            copy.unlink(missing_ok=True)
            copy.write_bytes(original.read_bytes())
        if not original.is_symlink():
            # Who checked the sources out with which umask does not matter either.
            copy.chmod(0o755 if os.access(original, os.X_OK) else 0o644)
        os.utime(copy, (DEFAULT_EPOCH, DEFAULT_EPOCH), follow_symlinks=False)
    for parent, directories, files in os.walk(target, topdown=False):
        if not directories and not files and parent != str(target):
            os.rmdir(parent)
            continue
        os.chmod(parent, 0o755)
        os.utime(parent, (DEFAULT_EPOCH, DEFAULT_EPOCH))


def revision() -> str:
    """The commit that is checked out; ``unknown`` outside a clone."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


class Builder:
    """Builds with one engine, in one cache directory."""

    def __init__(self, engine: Engine, directory: Path, base_image: str, epoch: int, *, verbose: bool = False) -> None:
        self.engine = engine
        self.directory = directory
        self.base_image = base_image
        self.epoch = epoch
        self.verbose = verbose
        temporary = directory / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        self.environment = {**os.environ, "TMPDIR": str(temporary)}
        self.context = directory / "context"
        self.context.mkdir(exist_ok=True)

    def _local(self) -> bool:
        return self.base_image == "local" or (self.base_image == "auto" and self.engine.name == "buildah")

    def _base(self) -> str:
        if not self._local():
            return HUB_BASE if self.base_image == "auto" else self.base_image
        tar = base.ensure_tar()
        return base.ensure_image(
            self.engine, tar, f"vedette-base:{tar.stem.removeprefix('image-base-')}", self.environment
        )

    def build(self, target: str) -> str:
        """Build one of `TARGETS`; returns the image's id."""
        timestamp = self.epoch
        bundle = next((Path(path) for path in _CA_BUNDLES if os.path.exists(path)), None)
        if target == "attacks":
            command = self._attacks(timestamp)
        else:
            project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
            command = self.engine.build(
                self.context,
                self.context / "Dockerfile",
                reference(target),
                target=target,
                arguments={"BASE_IMAGE": self._base(), "REVISION": revision(), "VERSION": project["version"]},
                timestamp=timestamp,
                ca_bundle=bundle,
                local_base=self._local(),
            )
        log = self.directory / f"{target}.log"
        with log.open("wb") as out:
            done = subprocess.run(
                command,
                stdout=None if self.verbose else out,
                stderr=None if self.verbose else out,
                check=False,
                env=self.environment,
            )
        if done.returncode:
            words = "" if self.verbose else "\n" + log.read_text(errors="replace")[-4000:]
            raise EngineError(f"{self.engine.name} could not build {target}:{words}")
        return self.image_id(target)

    def _attacks(self, timestamp: int) -> list[str]:
        context = self.directory / "attacks"
        layer = ensure_programs()
        stamp = context / "layer"
        if not stamp.exists() or stamp.read_text() != layer.name:
            shutil.rmtree(context, ignore_errors=True)
            shutil.copytree(layer, context / "programs", symlinks=True)
            stamp.write_text(layer.name)
        if self._local():
            files = ensure_rootfs()
            name = f"vedette-attacks-base:{rootfs_key()}"
            image = base.ensure_image(self.engine, files, name, self.environment)
        else:
            image = self._base()
        return self.engine.build(
            context,
            REPOSITORY / "tools" / "images" / "attacks.Dockerfile",
            reference("attacks"),
            arguments={"BASE_IMAGE": image, "PACKAGES": " ".join(BASE_PACKAGES)},
            timestamp=timestamp,
            local_base=self._local(),
        )

    def image_id(self, target: str) -> str:
        """The id of an image that was built."""
        command = self.engine.image_id(reference(target))
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=self.environment)
        if done.returncode or not done.stdout.strip():
            raise EngineError(f"{self.engine.name} has no image {reference(target)}: {done.stderr.strip()}")
        return done.stdout.split()[0]

    def save(self, target: str, identity: str) -> Path:
        """Write the archive, unless it holds that very image already."""
        OUTPUT.mkdir(parents=True, exist_ok=True)
        path, stamp = OUTPUT / f"{target}.tar", OUTPUT / f".{target}.id"
        if path.exists() and stamp.exists() and stamp.read_text() == identity:
            return path
        unfinished = OUTPUT / f".{target}.unfinished"
        unfinished.unlink(missing_ok=True)
        done = subprocess.run(
            self.engine.save(reference(target), unfinished),
            capture_output=True,
            text=True,
            check=False,
            env=self.environment,
        )
        if done.returncode:
            raise EngineError(f"{self.engine.name} could not save {reference(target)}: {done.stderr[-2000:]}")
        unfinished.rename(path)
        stamp.write_text(identity)
        return path

    def clean(self) -> None:
        """Remove the working containers and mounts that buildah leaves behind, most of all when a build is killed."""
        if self.engine.name != "buildah" or self.engine.storage is None:
            return
        subprocess.run(self.engine.command("rm", "--all"), capture_output=True, check=False, env=self.environment)
        store = os.path.realpath(self.engine.storage)
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in reversed(mounts):
            if mount.startswith(f"{store}/"):
                subprocess.run(["umount", mount], capture_output=True, check=False)

    def prune(self) -> None:
        """Remove the layers that no image uses any more."""
        if self.engine.name == "buildah":
            subprocess.run(
                self.engine.command("rmi", "--prune"), capture_output=True, check=False, env=self.environment
            )


def write_sizes() -> dict[str, dict[str, object]]:
    """Write build/images/sizes.json from the archives that are there; returns what is in it."""
    sizes: dict[str, dict[str, object]] = {}
    for target in TARGETS:
        path = OUTPUT / f"{target}.tar"
        if path.exists():
            image = archive.read(path)
            sizes[target] = {
                "reference": image.reference,
                "digest": image.digest,
                "compressed_bytes": image.compressed_bytes,
                "layers_compressed_bytes": list(image.layers),
            }
    (OUTPUT / "sizes.json").write_text(json.dumps(sizes, indent=1) + "\n")
    return sizes


def build_images(
    targets: Sequence[str] = TARGETS,
    *,
    engine: str = "",
    base_image: str = "auto",
    verbose: bool = False,
    prune: bool = False,
) -> dict[str, Path]:
    """Build and save ``targets``; returns their archives.

    Args:
        targets: of `TARGETS`.
        engine: docker, podman or buildah; empty: the first that is there.
        base_image: a name, ``local`` (made here by mmdebstrap), or ``auto``: local with buildah, else the hub's.
        verbose: show what the engine says.
        prune: remove layers that nothing uses any more.

    Raises:
        EngineError: there is no engine, or a build failed.
    """
    directory = cache_directory() / "images"
    directory.mkdir(exist_ok=True)
    chosen = choose(engine or os.environ.get("VEDETTE_IMAGE_ENGINE", ""), directory)
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", DEFAULT_EPOCH))
    archives = {}
    with locked("images"):
        builder = Builder(chosen, directory, base_image, epoch, verbose=verbose)
        stage_context(builder.context)
        try:
            for target in targets:
                started = time.monotonic()
                identity = builder.build(target)
                archives[target] = builder.save(target, identity)
                size = archive.read(archives[target]).compressed_bytes / 1e6
                print(
                    f"{reference(target)}: {size:.1f} MB compressed, {time.monotonic() - started:.1f} s "
                    f"({archives[target].relative_to(REPOSITORY)})",
                    file=sys.stderr,
                )
            if prune:
                builder.prune()
        finally:
            builder.clean()
        write_sizes()
    return archives


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.images", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--engine", choices=NAMES, help="default: the first that is there")
    parser.add_argument("--base", default="auto", help="base image; 'local': made here; default: local with buildah")
    parser.add_argument("--verbose", action="store_true", help="show what the engine says")
    parser.add_argument("--prune", action="store_true", help="remove layers that nothing uses any more")
    options = parser.parse_args(arguments)
    unknown = set(options.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no such image: {', '.join(sorted(unknown))}")
    try:
        build_images(
            options.targets or TARGETS,
            engine=options.engine or "",
            base_image=options.base,
            verbose=options.verbose,
            prune=options.prune,
        )
    except (EngineError, RuntimeError) as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    return 0
