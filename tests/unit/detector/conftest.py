"""Fixtures of the detector's tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.detector.detector_parts import RULE
from vedette_detector.config import Settings


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """A directory with the one rule."""
    folder = tmp_path / "rules"
    folder.mkdir()
    (folder / "scanner.yml").write_text(RULE)
    return folder


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory whose path is short enough for unix sockets."""
    folder = Path(tempfile.mkdtemp(prefix="vd-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def settings(tmp_path: Path, short_dir: Path, rules: Path) -> Settings:
    """Settings of a detector of its own."""
    return Settings(
        data_dir=tmp_path / "data",
        listen=(f"unix://{short_dir}/d.sock",),
        rules=(rules,),
        builtin_rules=False,
        workers=1,
        reload_s=0.05,
        store_timeout_s=1.0,
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mount: {mounted.stderr.decode()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def _find_postgres() -> Path | None:
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    candidates += [Path(folder) for folder in os.get_exec_path()]
    needed = ("initdb", "postgres", "pg_isready")
    return next((c for c in candidates if all((c / name).exists() for name in needed)), None)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """A real PostgreSQL on a unix socket; its SQLAlchemy URL without a database name."""
    binaries = _find_postgres()
    if binaries is None:
        if os.environ.get("CI") == "true":
            pytest.fail("PostgreSQL is not installed")
        pytest.skip("PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp(prefix="vd-pg-"))
    user: dict[str, Any] = {}
    if os.geteuid() == 0:
        # PostgreSQL refuses to run as root.
        user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        shutil.chown(folder, "nobody", "nogroup")
    data = folder / "data"
    subprocess.run(
        [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"],
        check=True,
        capture_output=True,
        cwd=folder,
        **user,
    )
    server = subprocess.Popen(
        [binaries / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", "-F"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        **user,
    )
    try:
        deadline = time.monotonic() + 30
        while subprocess.run([binaries / "pg_isready", "-q", "-h", folder], check=False).returncode:
            assert time.monotonic() < deadline
            assert server.poll() is None
            time.sleep(0.05)
        yield f"postgresql://postgres@/{{}}?host={folder}"
    finally:
        server.terminate()
        server.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgresql(postgresql_server: str) -> str:
    """URL of a fresh database."""
    import psycopg
    from psycopg import sql

    name = f"v{time.monotonic_ns()}"
    folder = postgresql_server.partition("host=")[2]
    with psycopg.connect(host=folder, user="postgres", dbname="postgres", autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return postgresql_server.format(name)
