"""Taking Vedette away: ``kubectl delete -f`` leaves nothing in the cluster and no program in the kernel."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from pathlib import Path

from e2e_world import World, eventually

from tools.demo.installation import NAMESPACE

_BPF, _PROG_GET_FD_BY_ID = 321, 13  # x86-64: asm/unistd_64.h, linux/bpf.h


def programs_of(pid: int) -> set[int]:
    """Ids of the BPF programs that a process holds (``prog_id`` of /proc/PID/fdinfo, proc(5))."""
    found = set()
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            for line in entry.read_text().splitlines():
                if line.startswith("prog_id:"):
                    found.add(int(line.split()[1]))
    return found


def is_loaded(program: int) -> bool:
    """Whether the kernel still has a program, attached or not."""
    attribute = struct.pack("III", program, 0, 0)
    buffer = ctypes.create_string_buffer(attribute, len(attribute))
    descriptor = ctypes.CDLL(None, use_errno=True).syscall(_BPF, _PROG_GET_FD_BY_ID, buffer, len(attribute))
    if descriptor >= 0:
        os.close(descriptor)
    return bool(descriptor >= 0)


def test_deleting_leaves_nothing(node_here: World) -> None:
    world = node_here
    assert world.cluster.local is not None
    spool = world.cluster.local.node_path("/var/lib/vedette/agent")
    (agent,) = world.pids(world.agent_pod(), "agent")[:1]
    programs = programs_of(agent)
    assert programs, "the agent holds its programs"
    assert all(is_loaded(program) for program in programs)

    manifests = world.installation.manifests
    world.kubectl.run("delete", "-f", str(manifests), "--timeout=90s", timeout_s=120)

    namespaced = "all,configmap,secret,serviceaccount,persistentvolumeclaim,networkpolicy,poddisruptionbudget"
    for what in (namespaced, "namespace,clusterrole,clusterrolebinding"):
        left = world.kubectl.run(
            "get", what, "--all-namespaces", "-l", "app.kubernetes.io/part-of=vedette", "-o", "name"
        ).stdout.split()
        assert left == []
    gone = world.kubectl.run("get", "namespace", NAMESPACE, check=False)
    assert "NotFound" in gone.stderr
    eventually(lambda: not any(is_loaded(p) for p in programs), "the kernel has let go of the agent's programs")
    # As docs/kubernetes.md says: what is on the nodes' disks stays, for who installs again and for forensics.
    assert spool.is_dir()
