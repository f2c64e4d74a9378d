from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tools.localcluster import build
from tools.localcluster.build import Module, cache_key, parse_go_version


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    directory = tmp_path / "sample"
    directory.mkdir()
    (directory / "go.mod").write_text("module sample\n\ngo 1.26.0\n")
    (directory / "go.sum").write_text("")
    (directory / "main.go").write_text('package main\n\nfunc main() { println(version) }\n\nvar version = "none"\n')
    return Module("sample", {"sample": "."}, ("-X main.version=1",))


def test_the_key_is_the_same_for_the_same_input(module: Module) -> None:
    assert cache_key(module, "go1.26.8") == cache_key(module, "go1.26.8")


@pytest.mark.parametrize("file", ["go.mod", "go.sum", "main.go"])
def test_the_key_changes_with_every_file_of_the_module(module: Module, file: str) -> None:
    before = cache_key(module, "go1.26.8")
    path = module.directory / file
    path.write_text(path.read_text() + "\n")

    assert cache_key(module, "go1.26.8") != before


@pytest.mark.parametrize(
    "change",
    [
        {"linker_flags": ("-X main.version=2",)},
        {"environment": {"CGO_ENABLED": "1"}},
        {"packages": {"sample": "./other"}},
    ],
)
def test_the_key_changes_with_what_is_asked_of_the_compiler(module: Module, change: dict[str, object]) -> None:
    changed = dataclasses.replace(module, **change)  # type: ignore[arg-type]

    assert cache_key(changed, "go1.26.8") != cache_key(module, "go1.26.8")


def test_the_key_changes_with_the_compiler(module: Module) -> None:
    assert cache_key(module, "go1.26.8") != cache_key(module, "go1.26.9")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("go1.26.8", (1, 26)),
        ("go version go1.19.8 linux/amd64", (1, 19)),
        ("go1.27rc1", (1, 27)),
        ("devel +abc", None),
        ("", None),
    ],
)
def test_versions_of_go_are_read(text: str, version: tuple[int, int] | None) -> None:
    assert parse_go_version(text) == version


@pytest.mark.parametrize(
    ("setting", "proxies"),
    [
        ("", ["https://proxy.golang.org"]),
        ("https://one.example/go/,direct", ["https://one.example/go"]),
        ("http://one.example|https://two.example,off", ["http://one.example", "https://two.example"]),
        ("off", []),
    ],
)
def test_the_toolchain_is_asked_of_the_users_proxies(
    monkeypatch: pytest.MonkeyPatch, setting: str, proxies: list[str]
) -> None:
    monkeypatch.setenv("GOPROXY", setting)

    assert build._proxies() == proxies


@pytest.mark.parametrize(
    ("vedette", "xdg", "expected"),
    [
        ("{}/v", "{}/x", "v/cluster"),
        ("", "{}/x", "x/vedette/cluster"),
        ("", "", ".cache/vedette/cluster"),
    ],
)
def test_the_cache_lies_where_the_user_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vedette: str, xdg: str, expected: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("VEDETTE_CACHE", vedette.format(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", xdg.format(tmp_path))

    assert build.cache_directory() == tmp_path / expected
    assert (tmp_path / expected).is_dir()


def test_every_component_has_its_module_with_checksums() -> None:
    for module in (build.KUBERNETES, build.ETCD, build.COREDNS, build.KWOK):
        assert (module.directory / "go.mod").is_file()
        assert (module.directory / "go.sum").stat().st_size > 0


def test_the_version_that_is_told_is_the_version_that_is_built() -> None:
    requirement = f"k8s.io/kubernetes {build.KUBERNETES_VERSION}"

    assert requirement in (build.KUBERNETES.directory / "go.mod").read_text()
    assert f"-X k8s.io/component-base/version.gitVersion={build.KUBERNETES_VERSION}" in build.KUBERNETES.linker_flags
