"""Reads OCI archives (image-spec v1.1: index.json, then blobs by digest), to state sizes and to unpack."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

XATTR_PREFIX = "SCHILY.xattr."
_WHITEOUT = ".wh."


@dataclass(frozen=True)
class Image:
    """One image of an archive. ``layers`` are compressed sizes in bytes, lowest first."""

    reference: str
    digest: str
    layers: tuple[int, ...]
    config: dict[str, Any]

    @property
    def compressed_bytes(self) -> int:
        """What a node downloads: all layers and the configuration."""
        return sum(self.layers) + len(json.dumps(self.config))


def _open(archive: Path) -> tuple[tarfile.TarFile, dict[str, Any], str, str]:
    tar = tarfile.open(archive)  # noqa: SIM115 (closed by the callers)
    (entry,) = json.load(_member(tar, "index.json"))["manifests"]
    manifest = json.load(_member(tar, _blob(entry["digest"])))
    while "manifests" in manifest:  # docker puts an index of platforms in between
        entry = {**manifest["manifests"][0], "annotations": entry.get("annotations", {})}
        manifest = json.load(_member(tar, _blob(entry["digest"])))
    annotations = entry.get("annotations", {})
    reference = annotations.get("io.containerd.image.name") or annotations.get("org.opencontainers.image.ref.name", "")
    return tar, manifest, entry["digest"], reference


def _blob(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _member(tar: tarfile.TarFile, name: str) -> io.BufferedReader:
    found = tar.extractfile(name)
    assert found is not None
    return found  # type: ignore[return-value]


def read(archive: Path) -> Image:
    """What the archive holds."""
    tar, manifest, digest, reference = _open(archive)
    with tar:
        config = json.load(_member(tar, _blob(manifest["config"]["digest"])))
        return Image(reference, digest, tuple(layer["size"] for layer in manifest["layers"]), config)


def unpack(archive: Path, target: Path) -> Image:
    """Unpack the image's file system into an empty directory, as root and with file capabilities.

    The archive is trusted: it is one that was built here. Returns what `read` does.
    """
    tar, manifest, _, _ = _open(archive)
    with tar:
        for layer in manifest["layers"]:
            with (
                gzip.open(_member(tar, _blob(layer["digest"]))) as data,
                tarfile.open(fileobj=data, mode="r|") as files,
            ):
                for member in files:
                    _unpack_member(files, member, target)
    return read(archive)


def _unpack_member(files: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    path = target / member.name
    if path.name.startswith(_WHITEOUT):
        hidden = path.parent / path.name.removeprefix(_WHITEOUT)
        if hidden.is_dir() and not hidden.is_symlink():
            shutil.rmtree(hidden)
        else:
            hidden.unlink(missing_ok=True)
        return
    if (path.is_symlink() or path.exists()) and not (path.is_dir() and member.isdir()):
        path.unlink()
    files.extract(member, target, set_attrs=not member.issym(), numeric_owner=True, filter="fully_trusted")
    for name, value in member.pax_headers.items():
        if name.startswith(XATTR_PREFIX):
            # tarfile decodes pax values as UTF-8 and keeps what is none as surrogates.
            raw = value.encode("utf-8", "surrogateescape")
            os.setxattr(path, name.removeprefix(XATTR_PREFIX), raw, follow_symlinks=False)
