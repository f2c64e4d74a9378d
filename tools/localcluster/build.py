"""Compile the components of Kubernetes from their Go modules, once, and keep them in a cache outside the tree.

The cache is ``$VEDETTE_CACHE/cluster``, by default ``$XDG_CACHE_HOME/vedette/cluster`` (``~/.cache/vedette/cluster``).
A directory there is named after everything that decides what is in it: the module's files, the flags, the version of
Go. It appears complete or not at all. `GOPROXY`, `GOFLAGS`, `GOCACHE` and the other settings of Go are left alone.

Where there is no Go, or one that is too old, the toolchain is fetched from the Go module proxy, where Go itself would
get it (golang.org/toolchain), and checked against a checksum written down here.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tools.localcluster import configs, oci
from tools.localcluster.errors import BuildError, PrerequisiteError
from tools.localcluster.processes import tail

SOURCES = Path(__file__).parent / "components"
GO_NEEDED = (1, 26)
"""kwok 0.8 and etcd 3.6.16 are written for 1.26; Kubernetes 1.35 and CoreDNS for 1.25."""
GO_FETCHED = "1.26.8"
GO_CHECKSUMS = {
    "amd64": "30c2b1bf7dcc88d3eb0a1364e47ddd9128edb3110a30e8a0ef61cd5856b31de7",
    "arm64": "02b36b6787b3ac767668f630e2998df45a3b1f9ffee08d1bf3ef6487cd658d99",
}
"""SHA-256 of golang.org/toolchain@v0.0.1-go1.26.8.linux-ARCH.zip."""
KUBERNETES_VERSION = "v1.35.4"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Module:
    """A Go module below ``components/`` and the programs built from it."""

    name: str
    packages: Mapping[str, str]
    """Program name to package."""
    linker_flags: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=lambda: {"CGO_ENABLED": "0"})

    @property
    def directory(self) -> Path:
        """The module's own directory."""
        return SOURCES / self.name


def _version_flags(version: str) -> tuple[str, ...]:
    """What Kubernetes' own build sets (hack/lib/version.sh), so that ``--version`` and /version tell the truth."""
    major, minor = version.removeprefix("v").split(".")[:2]
    values = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return tuple(f"-X {package}.{key}={value}" for package in packages for key, value in values.items())


KUBERNETES = Module(
    "kubernetes",
    {
        name: f"k8s.io/kubernetes/cmd/{name}"
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
    },
    _version_flags(KUBERNETES_VERSION),
)
ETCD = Module("etcd", {"etcd": "."})
COREDNS = Module("coredns", {"coredns": "."})
KWOK = Module("kwok", {"kwok": "sigs.k8s.io/kwok/cmd/kwok"})


def cache_directory() -> Path:
    """The cache, made when missing."""
    chosen = os.environ.get("VEDETTE_CACHE")
    base = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vedette"
    directory = base / "cluster"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@contextlib.contextmanager
def _locked(name: str) -> Iterator[Path]:
    """The cache, with nobody else making the thing called ``name`` meanwhile."""
    directory = cache_directory()
    with (directory / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory


def architecture() -> str:
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise PrerequisiteError(f"the local cluster is built for {', '.join(ARCHITECTURES)}, not for {machine}")
    return ARCHITECTURES[machine]


def cache_key(module: Module, go_version: str) -> str:
    """Everything that decides what comes out of the compiler, as sixteen hexadecimal digits."""
    digest = hashlib.sha256()

    def part(content: bytes) -> None:
        digest.update(len(content).to_bytes(8, "big") + content)

    for text in (go_version, *module.linker_flags, *(f"{k}={v}" for k, v in sorted(module.environment.items()))):
        part(text.encode())
    for program, package in sorted(module.packages.items()):
        part(f"{program} {package}".encode())
    for file in sorted(module.directory.iterdir()):
        if file.is_file():
            part(file.name.encode())
            part(file.read_bytes())
    return digest.hexdigest()[:16]


def parse_go_version(text: str) -> tuple[int, int] | None:
    """Major and minor of what ``go version`` or ``go env GOVERSION`` prints."""
    match = re.search(r"\bgo(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


@dataclass(frozen=True)
class Go:
    """A Go that is new enough."""

    program: str
    version: str


def find_go(say: Say) -> Go:
    """The machine's Go, or the one of the cache, fetched when it is not there."""
    for candidate in (shutil.which("go"), "/usr/local/go/bin/go"):
        if candidate and Path(candidate).exists() and (go := _go(candidate)):
            return go
    fetched = _fetch_go(say)
    go = _go(str(fetched))
    if go is None:
        raise BuildError(f"{fetched} does not run or is not Go {GO_FETCHED}")
    return go


def _go(program: str) -> Go | None:
    try:
        # In a directory without go.mod and with its own toolchain only: what it is, not what it could fetch.
        version = subprocess.run(
            [program, "env", "GOVERSION"],
            capture_output=True,
            text=True,
            cwd="/",
            env={**os.environ, "GOTOOLCHAIN": "local"},
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    parsed = parse_go_version(version)
    return Go(program, version) if parsed and parsed >= GO_NEEDED else None


def _proxies() -> list[str]:
    """The module proxies of GOPROXY that can be asked over HTTP, as Go orders them."""
    listed = re.split(r"[,|]", os.environ.get("GOPROXY") or "https://proxy.golang.org")
    return [proxy.rstrip("/") for proxy in listed if proxy.startswith(("http://", "https://"))]


def _fetch_go(say: Say) -> Path:
    name = f"toolchain@v0.0.1-go{GO_FETCHED}.linux-{architecture()}"
    wanted = GO_CHECKSUMS.get(architecture())
    if wanted is None:
        raise PrerequisiteError(f"install Go {'.'.join(map(str, GO_NEEDED))} or newer (https://go.dev/dl/)")
    with _locked("go") as cache:
        directory = cache / f"go{GO_FETCHED}"
        if not directory.exists():
            with tempfile.TemporaryDirectory(dir=cache) as temporary:
                archive = Path(temporary) / "toolchain.zip"
                say(f"fetching Go {GO_FETCHED} (70 MB)")
                _download(f"golang.org/toolchain/@v/{name.partition('@')[2]}.zip", archive)
                found = hashlib.sha256(archive.read_bytes()).hexdigest()
                if found != wanted:
                    raise BuildError(f"{name}.zip has SHA-256 {found}, expected {wanted}")
                with zipfile.ZipFile(archive) as opened:
                    opened.extractall(temporary)
                unpacked = Path(temporary) / "golang.org" / name
                # The archive has no file modes; Go, too, marks what is in these two directories when it unpacks it.
                for pattern in ("bin/*", "pkg/tool/*/*"):
                    for program in unpacked.glob(pattern):
                        program.chmod(0o755)
                unpacked.rename(directory)
        return directory / "bin" / "go"


def _download(path: str, target: Path) -> None:
    problems = []
    for proxy in _proxies():
        for attempt in range(3):
            try:
                with urllib.request.urlopen(f"{proxy}/{path}", timeout=60) as response, target.open("wb") as file:
                    shutil.copyfileobj(response, file)
                return
            except (OSError, urllib.error.URLError) as error:
                problems.append(f"{proxy}: {error}")
                time.sleep(attempt)
    raise PrerequisiteError(
        f"Go {'.'.join(map(str, GO_NEEDED))} or newer is missing and could not be fetched: {problems[-1:] or 'GOPROXY'}"
    )


def build(module: Module, go: Go, say: Say) -> Path:
    """The directory with the module's programs; compiled when it is not in the cache.

    Raises:
        BuildError: with the end of what the compiler said.
    """
    with _locked(module.name) as cache:
        directory = cache / f"{module.name}-{cache_key(module, go.version)}"
        if directory.exists():
            return directory
        began = time.monotonic()
        say(f"compiling {', '.join(module.packages)} ({go.version}; takes minutes the first time)")
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            made, log = Path(temporary) / "made", cache / f"{module.name}.log"
            made.mkdir()
            command = [go.program, "build", "-trimpath", "-buildvcs=false"]
            command += ["-ldflags", " ".join(("-s", "-w", *module.linker_flags)), "-o", f"{made}/"]
            command += module.packages.values()
            environment = {**os.environ, **module.environment, "GOTOOLCHAIN": "local", "GOWORK": "off"}
            with log.open("w") as output:
                code = subprocess.run(
                    command, cwd=module.directory, env=environment, stdout=output, stderr=output, check=False
                ).returncode
            missing = [name for name in module.packages if not (made / name).exists()]
            if code or missing:
                raise BuildError(f"{module.name}: go build ended with {code}. The end of {log}:\n{tail(log)}")
            made.rename(directory)
        say(f"compiled {module.name} in {time.monotonic() - began:.0f} s")
        return directory


def pause_image(say: Say) -> Path:
    """The archive of the pause image: a C program of a few lines, linked statically."""
    source = SOURCES / "pause" / "pause.c"
    key = hashlib.sha256(source.read_bytes() + configs.PAUSE_IMAGE.encode()).hexdigest()[:16]
    with _locked("pause") as cache:
        archive = cache / f"pause-{key}.tar"
        if not archive.exists():
            say("compiling pause")
            with tempfile.TemporaryDirectory(dir=cache) as temporary:
                program = Path(temporary) / "pause"
                result = subprocess.run(
                    ["gcc", "-Os", "-static", "-s", "-o", str(program), str(source)],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if result.returncode:
                    raise BuildError(f"pause: {result.stderr[-1000:]}")
                files = {"pause": program.read_bytes()}
            oci.write(archive, oci.image(configs.PAUSE_IMAGE, files, ["/pause"], architecture=architecture()))
        return archive


def dns_image(programs: Path) -> Path:
    """The archive of the DNS image, from the compiled CoreDNS."""
    with _locked("coredns"):
        archive = programs / "image.tar"
        if not archive.exists():
            files = {"coredns": (programs / "coredns").read_bytes()}
            oci.write(archive, oci.image(configs.DNS_IMAGE, files, ["/coredns"], architecture=architecture()))
        return archive


@dataclass(frozen=True)
class Components:
    """Everything of the cluster that is not a Debian package."""

    kubernetes: Path
    """Directory of the Kubernetes programs."""
    etcd: Path
    images: tuple[Path, ...]
    """Archives of the images the cluster itself needs."""
    kwok: Path | None = None

    @property
    def kubectl(self) -> Path:
        """The kubectl of the cluster's version."""
        return self.kubernetes / "kubectl"


def components(say: Say, *, simulated_nodes: bool = False) -> Components:
    """All components, compiled as far as the cache does not have them."""
    go = find_go(say)
    return Components(
        kubernetes=build(KUBERNETES, go, say),
        etcd=build(ETCD, go, say) / "etcd",
        images=(pause_image(say), dns_image(build(COREDNS, go, say))),
        kwok=build(KWOK, go, say) / "kwok" if simulated_nodes else None,
    )
