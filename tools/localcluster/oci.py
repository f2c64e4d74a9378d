"""Write a container image of a few files as an OCI archive; the same input gives the same bytes.

For images that are one static program. https://github.com/opencontainers/image-spec
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def _tar(members: Mapping[str, bytes], mode: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), mode
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def image(tag: str, files: Mapping[str, bytes], entrypoint: Sequence[str], *, architecture: str) -> bytes:
    """An archive that ``ctr images import`` and ``docker load`` understand.

    Args:
        tag: full name, for example ``localhost/pause:1``.
        files: content by path without the leading slash; all become executable and belong to root.
        entrypoint: what a container runs.
        architecture: as Go calls it, for example ``amd64``.
    """
    blobs: dict[str, bytes] = {}

    def blob(media_type: str, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    def document(data: Any) -> bytes:
        return json.dumps(data, sort_keys=True).encode()

    layer = _tar(files, 0o755)
    vendor = "application/vnd.oci.image"
    configuration = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Entrypoint": list(entrypoint), "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{vendor}.manifest.v1+json",
        "config": blob(f"{vendor}.config.v1+json", document(configuration)),
        "layers": [blob(f"{vendor}.layer.v1.tar+gzip", gzip.compress(layer, 1, mtime=0))],
    }
    entry = blob(f"{vendor}.manifest.v1+json", document(manifest))
    entry["annotations"] = {
        "io.containerd.image.name": tag,
        "org.opencontainers.image.ref.name": tag.rpartition(":")[2],
    }
    index = {"schemaVersion": 2, "mediaType": f"{vendor}.index.v1+json", "manifests": [entry]}
    return _tar(
        {"oci-layout": document({"imageLayoutVersion": "1.0.0"}), "index.json": document(index), **blobs}, 0o644
    )


def write(path: Path, content: bytes) -> None:
    """Write an archive so that nobody ever sees half of it."""
    temporary = path.with_suffix(".new")
    temporary.write_bytes(content)
    temporary.rename(path)
