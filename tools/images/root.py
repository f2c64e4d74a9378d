"""Copy some packages of a Debian system into an empty directory: the root file system of an image.

    python3 root.py /image python3-minimal libpython3-stdlib libbpf1 coreutils=/usr/bin/chown

Runs inside a build stage, on the distribution's own Python, without anything installed. What a Debian image holds
beyond the packages named and what they need (a package manager, shells, perl, setuid programs) never gets into the
directory. ``PACKAGE=FILE`` takes that one file of a package, with its licence; it must need nothing else of it.
A package's description goes to ``/var/lib/dpkg/status.d``, where image scanners look for it.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LEFT_OUT = frozenset(
    {
        # Needed to install and configure packages, which happens nowhere here.
        *("dpkg", "debconf", "perl-base", "tar", "install-info", "init-system-helpers"),
        # What only the standard library's dbm.ndbm, readline, curses and nis modules link to.
        *("libdb5.3", "libdb5.3t64", "libreadline8", "libreadline8t64", "readline-common", "libncursesw6"),
        *("libncursesw6t64", "libnsl2", "libtirpc3", "libtirpc3t64"),
    }
)
"""Dependencies that nothing in the images uses."""

_NOT_COPIED = re.compile(
    r"/usr/share/(?:man|info|locale|lintian|bash-completion|bug|python3/debpython|applications|pixmaps)(?:/|$)"
    r"|/usr/share/doc/(?!.*/copyright$)"
    r"|/usr/lib/python3[.\d]*/(?:lib2to3|idlelib|turtledemo|pydoc_data|ensurepip|tkinter|distutils/tests)(?:/|$)"
    r"|/usr/lib/python3/dist-packages/|/usr/bin/(?:py3compile|py3clean|pydoc|pygettext|2to3)"
    r"|/etc/(?:cron|init|systemd)|.*/__pycache__(?:/|$)"
)
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


@dataclass(frozen=True)
class Package:
    """An installed package: what it needs (each a list of alternatives) and what other names it goes by."""

    name: str
    needs: tuple[tuple[str, ...], ...]
    provides: tuple[str, ...]


def parse_packages(listing: str) -> dict[str, Package]:
    """Packages by name and by provided name, from lines of name, status, dependencies and provided names."""
    found: dict[str, Package] = {}
    provided: dict[str, Package] = {}
    for line in listing.splitlines():
        name, status, needs, provides = line.split("\t")
        if status != "installed":
            continue
        clauses = tuple(tuple(_names(clause, "|")) for clause in needs.split(",") if clause.strip())
        package = Package(name, clauses, tuple(_names(provides, ",")))
        found[name] = package
        for other in package.provides:
            provided.setdefault(other, package)
    return {**provided, **found}


def _names(text: str, separator: str) -> list[str]:
    """Bare names of ``libc6 (>= 2.36), python3:any``."""
    return [re.split(r"[\s(:]", part.strip(), maxsplit=1)[0] for part in text.split(separator) if part.strip()]


def closure(packages: Mapping[str, Package], wanted: Iterable[str]) -> list[Package]:
    """The packages named and all that they need, by name, without `LEFT_OUT`.

    A name may be several with ``|`` between them, of which the first that is installed counts.

    Raises:
        LookupError: one is not installed.
    """
    chosen: dict[str, Package] = {}
    open_: list[tuple[str, ...]] = [tuple(name.split("|")) for name in wanted]
    while open_:
        alternatives = open_.pop()
        if LEFT_OUT.intersection(alternatives):
            continue
        package = next((packages[name] for name in alternatives if name in packages), None)
        if package is None:
            raise LookupError(f"not installed: {' | '.join(alternatives)}")
        if package.name not in chosen:
            chosen[package.name] = package
            open_ += package.needs
    return [chosen[name] for name in sorted(chosen)]


def copy_file(source: str, target_root: Path) -> None:
    """Copy one path of the system to the same place below ``target_root``; directories become ordinary ones.

    Neither setuid nor setgid bits are copied.
    """
    # /lib may be a link to usr/lib: the file goes to where it really is.
    real = os.path.join(os.path.realpath(os.path.dirname(source)), os.path.basename(source))
    target = target_root / real.lstrip("/")
    info = os.lstat(real)
    if stat.S_ISDIR(info.st_mode):
        target.mkdir(parents=True, exist_ok=True)
        return
    if stat.S_ISLNK(info.st_mode) and source.strip("/") in _MERGED:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink() or target.exists():
        return
    if stat.S_ISLNK(info.st_mode):
        target.symlink_to(os.readlink(real))
    elif stat.S_ISREG(info.st_mode):
        shutil.copyfile(real, target)
        target.chmod(stat.S_IMODE(info.st_mode) & 0o755)


def _query(*arguments: str) -> str:
    return subprocess.run(["dpkg-query", *arguments], check=True, capture_output=True, text=True).stdout


def make_root(target: Path, wanted: Sequence[str]) -> list[str]:
    """Fill ``target``; returns the names of the packages in it."""
    form = "${Package}\\t${db:Status-Status}\\t${Pre-Depends},${Depends}\\t${Provides}\\n"
    single = dict(name.split("=", 1) for name in wanted if "=" in name)
    packages = closure(parse_packages(_query("-W", f"-f={form}")), [name for name in wanted if "=" not in name])
    names = [package.name for package in packages]
    for name in _MERGED:
        link = Path("/") / name
        if link.is_symlink():
            target.mkdir(parents=True, exist_ok=True)
            (target / name).symlink_to(os.readlink(link))
            (target / os.readlink(link)).mkdir(parents=True, exist_ok=True)
    status = target / "var/lib/dpkg/status.d"
    status.mkdir(parents=True)
    for name in names:
        for path in _query("-L", name).splitlines():
            # A path that dpkg was told to leave out is listed all the same; so are ones that were diverted.
            if path.startswith("/") and not _NOT_COPIED.match(path) and os.path.lexists(path):
                copy_file(path, target)
    for name, path in single.items():
        for file in (path, f"/usr/share/doc/{name}/copyright"):
            if os.path.lexists(file):
                copy_file(file, target)
    for name in (*names, *single):
        (status / name).write_text(_query("-s", name))
    copy_file(_CERTIFICATES, target)
    openssl = target / "usr/lib/ssl"
    openssl.mkdir(parents=True, exist_ok=True)
    (openssl / "cert.pem").symlink_to(_CERTIFICATES)
    etc = target / "etc"
    (etc / "passwd").write_text(
        "root:x:0:0:root:/:/usr/sbin/nologin\n"
        "vedette-agent:x:60700:60700:Vedette agent:/:/usr/sbin/nologin\n"
        "vedette:x:60701:60701:Vedette:/:/usr/sbin/nologin\n"
    )
    (etc / "group").write_text("root:x:0:\nvedette-agent:x:60700:\nvedette:x:60701:\n")
    (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    shutil.copyfile("/usr/lib/os-release", etc / "os-release")
    for name, mode in (("tmp", 0o1777), ("run", 0o755), ("proc", 0o555), ("sys", 0o555), ("dev", 0o755)):
        (target / name).mkdir(exist_ok=True)
        (target / name).chmod(mode)
    subprocess.run(["ldconfig", "-r", str(target)], check=True)
    # ldconfig notes when each file was changed in its own cache, which nobody needs afterwards.
    shutil.rmtree(target / "var/cache", ignore_errors=True)
    return [*names, *single.values()]


def main() -> int:
    """Command line; returns the exit status."""
    if len(sys.argv) < 3:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        names = make_root(Path(sys.argv[1]), sys.argv[2:])
    except LookupError as error:
        print(f"root.py: {error}", file=sys.stderr)
        return 1
    print(f"{len(names)} packages: {' '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
