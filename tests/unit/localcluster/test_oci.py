from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile

from tools.localcluster import oci


def _members(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        return {m.name: opened.extractfile(m).read() for m in opened.getmembers()}  # type: ignore[union-attr]


def test_everything_is_found_under_its_digest() -> None:
    members = _members(oci.image("localhost/pause:1", {"pause": b"program"}, ["/pause"], architecture="amd64"))

    for name, content in members.items():
        if name.startswith("blobs/sha256/"):
            assert hashlib.sha256(content).hexdigest() == name.rpartition("/")[2]
    (entry,) = json.loads(members["index.json"])["manifests"]
    assert entry["annotations"]["io.containerd.image.name"] == "localhost/pause:1"
    manifest = json.loads(members["blobs/sha256/" + entry["digest"].removeprefix("sha256:")])
    config = json.loads(members["blobs/sha256/" + manifest["config"]["digest"].removeprefix("sha256:")])
    assert config["config"]["Entrypoint"] == ["/pause"]
    layer = gzip.decompress(members["blobs/sha256/" + manifest["layers"][0]["digest"].removeprefix("sha256:")])
    assert config["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(layer).hexdigest()]
    with tarfile.open(fileobj=io.BytesIO(layer)) as opened:
        (file,) = opened.getmembers()
        assert (file.name, file.mode, file.uid) == ("pause", 0o755, 0)


def test_the_same_image_is_the_same_bytes() -> None:
    first, second = (oci.image("a:1", {"a": b"x"}, ["/a"], architecture="amd64") for _ in range(2))

    assert first == second
