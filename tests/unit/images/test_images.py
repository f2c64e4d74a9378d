"""The parts of the image build that decide: command lines, which packages, what is pruned, what the context holds."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import json
import os
import py_compile
import tarfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tools.images import archive, base, root, tidy
from tools.images.build import DEFAULT_EPOCH, reference, stage_context
from tools.images.engine import Engine, EngineError, choose

INSTALLED = "\n".join(
    (
        "python3\tinstalled\tpython3.11 (>= 3.11.2), libc6:any | musl, dpkg\tpython3-any",
        "python3.11\tinstalled\tlibc6, virtual-python\t",
        "libc6\tinstalled\tlibgcc-s1\tlibc",
        "libgcc-s1\tinstalled\t\t",
        "real-python\tinstalled\t\tvirtual-python (= 1)",
        "libbpf1t64\tinstalled\tlibc\t",
        "removed\tconfig-files\t\t",
    )
)


def test_packages_come_with_what_they_need_and_no_more() -> None:
    packages = root.parse_packages(INSTALLED)
    found = root.closure(packages, ["python3"])

    assert [p.name for p in found] == ["libc6", "libgcc-s1", "python3", "python3.11", "real-python"]


def test_the_first_installed_of_several_names_counts() -> None:
    found = root.closure(root.parse_packages(INSTALLED), ["libbpf1|libbpf1t64"])

    assert [p.name for p in found] == ["libbpf1t64", "libc6", "libgcc-s1"]


@pytest.mark.parametrize("name", ["removed", "nonsense"])
def test_a_package_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(LookupError, match=f"not installed: {name}"):
        root.closure(root.parse_packages(INSTALLED), [name])


def test_no_file_keeps_its_setuid_bit(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "su").write_text("x")
    (source / "su").chmod(0o6755)
    (source / "link").symlink_to("su")
    for name in ("su", "link"):
        root.copy_file(str(source / name), target)

    copied = target / str(source).lstrip("/") / "su"
    assert copied.stat().st_mode & 0o7777 == 0o755
    assert os.readlink(copied.with_name("link")) == "su"


def test_pruning_removes_what_only_compiling_needs(tmp_path: Path) -> None:
    for name in (
        "pyarrow/include/a.h",
        "pyarrow/lib.so",
        "pyarrow/tests/t.py",
        "x.dist-info/INSTALLER",
        "zstandard/_cffi.so",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"123")

    assert tidy.prune(tmp_path) == 12
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == ["pyarrow/lib.so"]


def test_bytecode_depends_on_no_time(tmp_path: Path) -> None:
    compiled = []
    for seconds in (1, 2):
        directory = tmp_path / str(seconds)
        directory.mkdir()
        (directory / "m.py").write_text("x = 1\n")
        os.utime(directory / "m.py", (seconds, seconds))
        assert tidy.compile_modules(directory, str(directory))
        compiled.append(Path(importlib.util.cache_from_source(str(directory / "m.py"))).read_bytes())

    assert compiled[0] == compiled[1]
    assert int.from_bytes(compiled[0][4:8], "little") == 1  # PEP 552: a hash, which is not checked
    assert py_compile.PycInvalidationMode.UNCHECKED_HASH.value == 3


def test_the_context_is_sources_alone_and_always_the_same(tmp_path: Path) -> None:
    stage_context(tmp_path)
    (tmp_path / "left-over").write_text("x")
    before = {p: p.lstat().st_ino for p in tmp_path.rglob("*") if not p.is_dir() and p.name != "left-over"}
    stage_context(tmp_path)
    after = {p: p.lstat().st_ino for p in tmp_path.rglob("*") if p.is_symlink() or not p.is_dir()}

    names = {str(p.relative_to(tmp_path)) for p in after}
    assert {"Dockerfile", "uv.lock", "agent/launcher/launcher.c", "operator/vedette_operator/templates"} <= names
    assert not any(name.endswith((".so", ".o", ".pyc")) or name.startswith(("tests", "build")) for name in names)
    assert "left-over" not in names
    unchanged = [p for p in before if after.get(p) == before[p]]
    assert len(unchanged) > 0.9 * len(before)  # somebody may be editing one meanwhile
    assert {p.lstat().st_mtime for p in after} == {DEFAULT_EPOCH}


@pytest.mark.parametrize("name", ["docker", "podman", "buildah"])
def test_every_engine_gets_target_arguments_and_secret(name: str) -> None:
    command = Engine(name, Path("/cache")).build(
        Path("/context"),
        Path("/context/Dockerfile"),
        reference("agent"),
        target="agent",
        arguments={"BASE_IMAGE": "localhost/base:1"},
        timestamp=7,
        ca_bundle=Path("/ca.pem"),
        local_base=True,
    )
    joined = " ".join(command)

    assert command[0] == name
    assert command[-1] == "/context"
    assert "--target agent" in joined
    assert "--build-arg BASE_IMAGE=localhost/base:1" in joined
    assert "--build-arg SOURCE_DATE_EPOCH=7" in joined
    assert "--secret id=ca-bundle,src=/ca.pem" in joined
    assert "--tag localhost/vedette-agent:dev" in joined
    assert ("--root /cache/store" in joined) == (name == "buildah")


def test_an_engine_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="none of docker, podman and buildah is there"):
        choose("", tmp_path)
    with pytest.raises(EngineError, match="no such engine: kaniko"):
        choose("kaniko", tmp_path)


def test_the_base_changes_each_week() -> None:
    monday, sunday, next_monday = (base.key(datetime(2026, 11, day, tzinfo=UTC)) for day in (23, 29, 30))

    assert monday == sunday != next_monday
    assert monday.startswith("bookworm-2026w48-")


def packed(directory: Path, layers: list[dict[str, bytes]]) -> Path:
    """An OCI archive with these files in its layers."""
    blobs: dict[str, bytes] = {}

    def blob(content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"digest": f"sha256:{digest}", "size": len(content)}

    entries = []
    for files in layers:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size, member.uid, member.gid, member.mode = len(content), os.getuid(), os.getgid(), 0o644
                member.pax_headers = {"SCHILY.xattr.user.test": "value"}
                tar.addfile(member, io.BytesIO(content))
        entries.append(blob(gzip.compress(buffer.getvalue())))
    config = blob(json.dumps({"config": {"User": "60700"}}).encode())
    manifest = blob(json.dumps({"config": config, "layers": entries}).encode())
    name = {"org.opencontainers.image.ref.name": "localhost/x:dev"}
    blobs["index.json"] = json.dumps({"manifests": [{**manifest, "annotations": name}]}).encode()
    path = directory / "image.tar"
    with tarfile.open(path, "w") as tar:
        for name_, content in blobs.items():
            member = tarfile.TarInfo(name_)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_layers_are_laid_over_each_other(tmp_path: Path) -> None:
    path = packed(tmp_path, [{"a": b"1", "b": b"2", "c": b"3"}, {"a": b"new", ".wh.b": b""}])
    target = tmp_path / "root"
    target.mkdir()
    image = archive.unpack(path, target)

    assert {p.name: p.read_bytes() for p in target.iterdir()} == {"a": b"new", "c": b"3"}
    assert os.getxattr(target / "a", "user.test") == b"value"
    assert image.reference == "localhost/x:dev"
    assert image.config["config"]["User"] == "60700"
    assert len(image.layers) == 2
    assert image.compressed_bytes > sum(image.layers)
