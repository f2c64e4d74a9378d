"""Fetch Debian's cloud kernels and make the root file system they are booted with; both are cached.

The cache is ``$XDG_CACHE_HOME/vedette/kernels`` (``~/.cache/vedette/kernels``). A kernel once fetched is used until its
directory is removed or `ensure_kernel` is told to refresh. apt runs with an own configuration: its own list of sources,
its own lists. The machine's sources are not touched, only asked which mirror is in use.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.kernels.cpio import Archive

FAMILIES = ("5.10", "6.1", "6.12", "6.18", "newest")
"""The kernels of Debian 11, 12 and 13, one long-term kernel after those, and the newest that Debian 13 is offered."""
SUITES = (
    ("debian", "bullseye"),
    ("security", "bullseye-security"),
    ("debian", "bookworm"),
    ("security", "bookworm-security"),
    ("debian", "trixie"),
    ("security", "trixie-security"),
    ("debian", "trixie-backports"),
)
MODULES = ("overlay",)
"""What the tests need of what the cloud kernels have as modules. None of them needs another one."""
PYTHON_SUITES = {(3, 11): "bookworm", (3, 13): "trixie"}
"""The release whose Python runs the C extension that was built for ours."""
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_IMAGE = re.compile(r"linux-image-(?P<release>\d+\.\d+[.\w+~-]*-cloud-amd64)")


class KernelError(RuntimeError):
    """A kernel or the root file system could not be had; the message says what to do."""


@dataclass(frozen=True)
class Kernel:
    """A kernel that is ready to boot."""

    family: str
    release: str
    """What ``uname -r`` will say."""
    version: str
    """Version of the Debian package."""
    image: Path
    modules: Path
    """A cpio archive with `MODULES` below ``/modules``."""

    @property
    def numbers(self) -> tuple[int, int]:
        """Major and minor version."""
        major, minor = self.release.split(".")[:2]
        return int(major), int(re.match(r"\d+", minor).group())  # type: ignore[union-attr]


def cache_directory() -> Path:
    """Where kernels and root file systems are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vedette" / "kernels"


@contextlib.contextmanager
def _locked(name: str) -> Iterator[Path]:
    """The cache, with nobody else making the thing called ``name`` meanwhile."""
    directory = cache_directory()
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory


def _run(command: Sequence[str], *, cwd: Path | None = None, attempts: int = 1, stdin: bytes = b"") -> bytes:
    """Standard output of a command that must succeed, tried again after a pause when it does not.

    Raises:
        KernelError: every attempt failed; the message holds the end of what it said.
    """
    for attempt in range(1, attempts + 1):
        try:
            done = subprocess.run(command, input=stdin, capture_output=True, cwd=cwd, check=False)
        except FileNotFoundError:
            raise KernelError(f"{command[0]} is not installed: apt-get install {command[0]}") from None
        if done.returncode == 0:
            return done.stdout
        if attempt < attempts:
            time.sleep(3 * attempt)
    raise KernelError(f"{' '.join(command[:6])} … failed {attempts} times:\n{done.stderr.decode()[-2000:]}")


# ---- apt with an own configuration ----


def mirrors() -> dict[str, str]:
    """Addresses of the Debian archive ("debian") and of its security updates ("security").

    Those that this machine's apt is configured with; ``VEDETTE_DEBIAN_MIRROR`` (an address that ends in ``/debian``)
    goes before them, and is needed where apt knows no Debian mirror.

    Raises:
        KernelError: none is known.
    """
    given = os.environ.get("VEDETTE_DEBIAN_MIRROR", "").rstrip("/")
    if given:
        return {"debian": given, "security": f"{given}-security"}
    listed = _run(["apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"]).decode()
    known = {label: uri.rstrip("/") for label, _, uri in (line.partition(" ") for line in listed.splitlines())}
    if "Debian" not in known:
        raise KernelError(
            "apt knows no Debian mirror (or apt-get update has never run): set VEDETTE_DEBIAN_MIRROR to one"
        )
    return {"debian": known["Debian"], "security": known.get("Debian-Security", f"{known['Debian']}-security")}


class _Apt:
    """apt with lists of its own below the cache."""

    def __init__(self, directory: Path) -> None:
        addresses = mirrors()
        sources = "".join(f"deb [signed-by={KEYRING}] {addresses[of]} {suite} main\n" for of, suite in SUITES)
        self._directory = directory / f"apt-{hashlib.sha256(sources.encode()).hexdigest()[:12]}"
        for part in ("lists/partial", "cache/archives/partial"):
            (self._directory / part).mkdir(parents=True, exist_ok=True)
        (self._directory / "sources.list").write_text(sources)
        settings = {
            "Dir::Etc::SourceList": self._directory / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State::Lists": self._directory / "lists",
            "Dir::Cache": self._directory / "cache",
            "Acquire::Retries": 3,
            "Acquire::Languages": "none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
            "APT::Architecture": "amd64",
            "APT::Sandbox::User": "root",
        }
        self._options = [f"-o{key}={value}" for key, value in settings.items()]

    def update(self, *, max_age_s: float) -> None:
        """Fetch the lists when they are older."""
        stamp = self._directory / "updated"
        if stamp.exists() and time.time() - stamp.stat().st_mtime < max_age_s:
            return
        _run(["apt-get", *self._options, "-qq", "update"], attempts=4)
        stamp.touch()

    def names(self) -> set[str]:
        """Names of all kernel packages."""
        return set(_run(["apt-cache", *self._options, "pkgnames", "linux-"]).decode().split())

    def download(self, package: str, target: Path) -> Path:
        """Fetch the newest version of a package into ``target`` and return the file."""
        _run(["apt-get", *self._options, "-qq", "download", package], cwd=target, attempts=4)
        [found] = target.glob(f"{package}_*.deb")
        return found


def _natural(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", release.removesuffix("-cloud-amd64")))


def newest_of(family: str, names: set[str]) -> str:
    """The newest release of a family ("6.1", or "newest": of all) among names of packages.

    Raises:
        KernelError: the archive offers none.
    """
    found = [match["release"] for name in names if (match := _IMAGE.fullmatch(name))]
    wanted = [release for release in found if family == "newest" or release.startswith(f"{family}.")]
    if not wanted:
        raise KernelError(f"the archive offers no cloud kernel {family}")
    return max(wanted, key=_natural)


# ---- kernels ----


def ensure_kernel(family: str, *, refresh: bool = False) -> Kernel:
    """A kernel of a family, fetched when it is not cached.

    Args:
        family: one of `FAMILIES`, or another beginning of a version ("6.16").
        refresh: look for a newer one first.

    Raises:
        KernelError: it cannot be had.
    """
    with _locked("kernels") as cache:
        directory = cache / family
        described = directory / "kernel.json"
        if refresh or not described.exists():
            _fetch_kernel(family, cache, directory, max_age_s=0 if refresh else 86400)
        values = json.loads(described.read_text())
    return Kernel(family, values["release"], values["version"], directory / "vmlinuz", directory / "modules.cpio")


def _fetch_kernel(family: str, cache: Path, directory: Path, *, max_age_s: float) -> None:
    apt = _Apt(cache)
    apt.update(max_age_s=max_age_s)
    names = apt.names()
    release = newest_of(family, names)
    # Up to 6.18 everything is in linux-image-…; later kernels come in parts, and that package only joins them.
    packages = [f"linux-{part}-{release}" for part in ("image", "binary", "modules")]
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        made = Path(temporary)
        image = b""
        version = ""
        modules: dict[str, bytes] = {}
        for package in (name for name in packages if name in names):
            fetched = apt.download(package, made)
            version = fetched.name.split("_")[1]
            contents = _run(["dpkg-deb", "--fsys-tarfile", str(fetched)])
            fetched.unlink()
            with tarfile.open(fileobj=io.BytesIO(contents)) as archive:
                for member in archive:
                    name = Path(member.name).name
                    module = name.partition(".ko")[0]
                    if not member.isreg():
                        continue
                    source = archive.extractfile(member)
                    if name in (f"vmlinuz-{release}", "vmlinuz") and source:  # the latter below /usr/lib/modules
                        image = source.read()
                    elif module in MODULES and ".ko" in name and source:
                        data = source.read()
                        modules[module] = lzma.decompress(data) if name.endswith(".xz") else data
        if not image or set(modules) != set(MODULES):
            raise KernelError(f"{release}: its packages hold no kernel image or not all of {', '.join(MODULES)}")
        packed = Archive()
        for name, data in modules.items():
            packed.file(f"modules/{name}.ko", data)
        directory.mkdir(exist_ok=True)
        (directory / "vmlinuz").write_bytes(image)
        (directory / "modules.cpio").write_bytes(packed.close())
        (made / "kernel.json").write_text(json.dumps({"release": release, "version": version}))
        (made / "kernel.json").rename(directory / "kernel.json")


# ---- root file system ----

PACKAGES = ("libbpf1", "busybox-static")
_LEFT_OUT = re.compile(
    r"usr/(share|include|games|src|local)/|var/|usr/lib/python3\.\d+/(test|idlelib|ensurepip|lib2to3|pydoc_data)/"
    r"|usr/lib/python3\.\d+/config-|.*/__pycache__/"
)


def ensure_rootfs() -> Path:
    """A cpio archive with a minimal Debian: Python of our own version, libbpf and busybox; made when not cached.

    Raises:
        KernelError: it cannot be made.
    """
    version = sys.version_info[:2]
    suite = PYTHON_SUITES.get(version)
    if suite is None:
        supported = ", ".join(".".join(map(str, v)) for v in PYTHON_SUITES)
        raise KernelError(f"the virtual machines run Python {supported}; this is {version[0]}.{version[1]}")
    python = f"python{version[0]}.{version[1]}"
    packages = (f"{python}-minimal", f"lib{python}-stdlib", *PACKAGES)
    inputs = json.dumps([suite, packages, _LEFT_OUT.pattern, 1])
    name = f"rootfs-{hashlib.sha256(inputs.encode()).hexdigest()[:12]}.cpio"
    with _locked("rootfs") as cache:
        target = cache / name
        if target.exists():
            return target
        if shutil.which("mmdebstrap") is None:
            raise KernelError("mmdebstrap is not installed: apt-get install mmdebstrap")
        # "extract" runs no program of the new system, which so needs no shell, no dpkg and no init of its own.
        tar = _run(
            [
                "mmdebstrap",
                "--variant=extract",
                f"--include={','.join(packages)}",
                "--architectures=amd64",
                '--aptopt=Acquire::Retries "3"',
                "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
                suite,
                "-",
                f"deb {mirrors()['debian']} {suite} main",
            ],
            attempts=4,
        )
        packed = Archive()
        packed.character_device("dev/console", 5, 1)
        for made in ("proc", "sys", "tmp", "run", "root"):
            packed.directory(made)
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            packed.tar(archive, lambda path: not _LEFT_OUT.match(path))
        packed.link("usr/bin/python3", python)
        unfinished = target.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(packed.close())
        unfinished.rename(target)
    return target
