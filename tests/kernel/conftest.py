"""One boot for each kernel: what the programs reported there, for all tests of that kernel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import vedette_agent
import vedette_events
from tools.kernels import FAMILIES, Kernel, KernelError, boot, ensure_kernel, machine
from tools.kernels.cpio import Archive
from vedette_agent import bpf_build

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # test modules are imported one by one, not as a package
PLACE = "opt/vedette"
USERS = ("base", "root", "agent")
"""See guest.py."""


@dataclass
class Report:
    """What happened in a virtual machine, as one of the `USERS`."""

    kernel: Kernel
    user: str
    console: str
    loaded: dict[str, Any] = field(default_factory=dict)
    """Uid, hooks and seconds; or, with the key ``message``, why nothing was loaded."""
    acts: dict[str, dict[str, Any]] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    again: dict[str, Any] = field(default_factory=dict)
    """What a second load found."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.kernel)
            item.add_marker(pytest.mark.timeout(900))  # the first test of a kernel fetches and boots it


def families() -> tuple[str, ...]:
    """Which kernels: ``VEDETTE_KERNELS`` (names with spaces between) or all."""
    return tuple(os.environ.get("VEDETTE_KERNELS", "").split()) or FAMILIES


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "report" in metafunc.fixturenames:
        pairs = [(family, user) for family in families() for user in USERS]
        metafunc.parametrize("report", pairs, ids=["-".join(pair) for pair in pairs], indirect=True, scope="session")


@pytest.fixture(scope="session")
def helper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C program of the live tests, statically linked."""
    target = tmp_path_factory.mktemp("helper") / "helper"
    source = HERE.parent / "live" / "live_helper.c"
    subprocess.run(["gcc", "-O1", "-static", "-Wall", "-Werror", "-o", str(target), str(source)], check=True)
    return target


@pytest.fixture(scope="session")
def files(helper: Path) -> Archive:
    """What is laid into every virtual machine: the agent as it is in the tree, its objects, and the acts."""
    archive = Archive()
    built = bpf_build.ensure()
    for path in (built, bpf_build.base_of(built)):
        archive.file(f"{PLACE}/{path.name}", path.read_bytes())
    for name in ("acts.py", "guest.py"):
        archive.file(f"{PLACE}/{name}", (HERE / name).read_bytes())
    archive.file(f"{PLACE}/helper", helper.read_bytes(), 0o755)
    for package in (vedette_agent, vedette_events):
        [directory] = package.__path__
        archive.tree(Path(directory), f"{PLACE}/{package.__name__}", lambda path: path.suffix in (".py", ".so"))
    return archive


def run(family: str, files: Archive) -> dict[str, Report]:
    """Boot a kernel and collect what happened, for each of the `USERS`."""
    kernel = ensure_kernel(family)
    finished = boot(kernel, ["python3", "-B", f"/{PLACE}/guest.py", *USERS], files=files)
    reports = {user: Report(kernel, user, finished.console) for user in USERS}
    for line in finished.output.decode().splitlines():
        values = json.loads(line)
        kind, report = values.pop("line"), reports[values.pop("user")]
        if kind == "record":
            report.records.append(values)
        elif kind == "act":
            report.acts[values["name"]] = values
        elif kind == "counters":
            report.counters = values
        elif kind == "again":
            report.again = values
        else:
            report.loaded = values
    return reports


_reports: dict[str, dict[str, Report] | Exception] = {}


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest, files: Archive) -> Report:
    """The report of a kernel and user; the kernel is booted when it is first asked for."""
    for tool in (machine.QEMU, "mmdebstrap", "gcc"):
        if shutil.which(tool) is None:
            pytest.skip(f"kernel tests need {tool}")
    family, user = request.param
    if family not in _reports:
        try:
            _reports[family] = run(family, files)
        except (KernelError, machine.MachineError) as error:
            _reports[family] = error
            raise
    found = _reports[family]
    if isinstance(found, Exception):
        pytest.skip(f"kernel: {family} was not booted, as the error of its first test says")
    return found[user]
