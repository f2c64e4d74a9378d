"""Dropping privileges, each in a child process, since there is no way back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest

from vedette_agent import privileges
from vedette_agent.errors import PrivilegeError
from vedette_agent.privileges import (
    CAP_BPF,
    CAP_NET_ADMIN,
    CAP_PERFMON,
    CAP_SYS_PTRACE,
    Privileges,
    current,
    drop,
    missing,
)

SCRIPT = """
import json, os
from vedette_agent.privileges import drop
drop(65534, 65534)
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
names = "Uid Gid Groups CapPrm CapEff CapBnd CapAmb CapInh NoNewPrivs".split()
result = {k: status[k].strip() for k in names}
result["mem_owner"] = os.stat("/proc/self/mem").st_uid
try:
    os.setuid(0)
    result["back"] = True
except PermissionError:
    result["back"] = False
print(json.dumps(result))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to drop")
def test_four_capabilities_and_nobody_are_left() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=30)

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    kept = sum(1 << cap for cap in (CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN, CAP_SYS_PTRACE))
    assert int(result["CapPrm"], 16) == int(result["CapEff"], 16) == kept
    assert int(result["CapBnd"], 16) == int(result["CapAmb"], 16) == int(result["CapInh"], 16) == 0
    assert set(result["Uid"].split()) == set(result["Gid"].split()) == {"65534"}
    assert result["Groups"] == ""
    assert result["NoNewPrivs"] == "1"
    assert result["mem_owner"] == 0  # not dumpable: the kernel gives its /proc files to root
    assert result["back"] is False


def test_threads_that_would_keep_their_privileges_prevent_dropping() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        with pytest.raises(PrivilegeError, match="before threads are started"):
            drop(65534, 65534)
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize(
    ("effective", "names"),
    [
        (privileges.KEPT, []),
        ({CAP_BPF, CAP_PERFMON}, ["CAP_NET_ADMIN", "CAP_SYS_PTRACE"]),
        ({CAP_SYS_PTRACE}, ["CAP_PERFMON", "CAP_BPF", "CAP_NET_ADMIN"]),
    ],
)
def test_missing_capabilities_are_named_with_the_indispensable_first(effective: set[int], names: list[str]) -> None:
    assert missing(Privileges(65534, 65534, frozenset(effective), frozenset(effective))) == names


def test_current_is_what_proc_says() -> None:
    with open("/proc/self/status") as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff"))
    assert sum(1 << cap for cap in current().effective) == effective
