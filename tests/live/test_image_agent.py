"""The agent's image in a container as a pod has it: not root, four capabilities, nothing to write to but the spool."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_container import AGENT_CAPABILITIES, AgentImageWorld

from tools.containers import Container, ensure_rootfs
from tools.images import archive
from vedette_agent.privileges import KEPT
from vedette_events.framing import BatchFlags

pytestmark = [pytest.mark.usefixtures("needs_root"), pytest.mark.timeout(600)]  # the first one builds the image


@pytest.fixture
def root(agent_image: tuple[Path, archive.Image]) -> Path:
    return agent_image[0]


@pytest.fixture
def world(agent_image: tuple[Path, archive.Image]) -> Iterator[AgentImageWorld]:
    made = AgentImageWorld(*agent_image)
    yield made
    print(made.log.read_text(errors="replace"), file=sys.stderr)
    made.close()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the host that runs before the agent does."""
    made = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL)
    yield made
    made.kill()
    made.wait()


def test_a_container_of_the_image_watches_the_whole_host(
    world: AgentImageWorld, sleeper: subprocess.Popen[bytes]
) -> None:
    with Container(ensure_rootfs()) as other:
        world.start()
        world.detector.wait_for(lambda: any(b.flags & BatchFlags.SNAPSHOT for b in world.detector.batches))
        # It stays until it is hashed: what has ended can be found through no /proc/<pid> any more.
        running = other.popen(["/usr/bin/perl", "-e", "sleep 100", "marker-in-other"])
        subprocess.run(["/bin/echo", "marker-on-host"], stdout=subprocess.DEVNULL, check=True)
        perl = (other.root / "usr/bin/perl").stat()
        world.detector.wait_for(
            lambda: any(name == "file_hash" and values["ino"] == perl.st_ino for name, values in world.events())
        )
        for process in (sleeper, running):
            process.kill()
            process.communicate()
        lines = Path(f"/proc/{world.agent_pid}/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        assert world.stop() == 0
        other_id = other.id.encode()

    events = list(world.events())
    cgroups = {values["cgroup"]: values["path"] for name, values in events if name == "cgroup"}
    execs = [values for name, values in events if name == "exec"]
    (in_other,) = [v for v in execs if v["argv"] == b"/usr/bin/perl\0-e\0sleep 100\0marker-in-other\0"]
    (on_host,) = [v for v in execs if v["argv"] == b"/bin/echo\0marker-on-host\0"]
    assert cgroups[in_other["cgroup"]].endswith(b"/" + other_id)
    assert on_host["ppid"] == os.getpid()
    # The snapshot speaks in the same process numbers, start times and cgroups as the kernel.
    (before,) = [v for v in execs if v["pid"] == sleeper.pid]
    (its_end,) = [v for name, v in events if name == "exit" and v["pid"] == sleeper.pid]
    assert before["flags"] & 8
    assert (before["start"], before["cgroup"]) == (its_end["start"], on_host["cgroup"])
    (first,) = [v for v in execs if v["flags"] & 8 and v["argv"] == b"/bin/sleep\0infinity\0" and v["pid"] != v["ppid"]
                and cgroups.get(v["cgroup"], b"").endswith(other_id)]  # fmt: skip
    assert first["cgroup"] == in_other["cgroup"]

    beat = world.detector.heartbeats[-1]
    assert [hook for hook in beat["hooks"] if hook["state"] == "failed"] == []
    assert any(hook["state"] == "loaded" and hook["event"] == "dns" for hook in beat["hooks"])
    assert beat["host"]["machine_id"] == Path("/etc/machine-id").read_text().strip()
    assert beat["host"]["hostname"] == os.uname().nodename
    assert beat["host_pid_ns"] == os.stat("/proc/2/ns/pid").st_ino
    assert beat["host_mnt_ns"] == os.stat("/proc/2/ns/mnt").st_ino
    assert not beat["pinned"]
    assert beat["session"] < beat["attached_ns"]
    assert beat["session"] <= beat["drained_ns"]

    assert status["Uid"].split() == status["Gid"].split() == ["60700"] * 4
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == sum(1 << cap for cap in KEPT)
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
    last = world.detector.batches[-1]
    assert last.flags == BatchFlags.FINAL
    assert sum(b.count for b in world.detector.batches if b.ring_to > b.ring_from) == last.counters.emitted
    assert last.counters.dropped == 0


@pytest.mark.parametrize("absent", ["CAP_BPF", "CAP_PERFMON"])
def test_without_an_indispensable_capability_it_names_it_and_ends(world: AgentImageWorld, absent: str) -> None:
    world.launch(capabilities=[name for name in AGENT_CAPABILITIES if name != absent])

    assert world.wait() == 4
    (line,) = world.log.read_text().splitlines()
    assert line == (
        f"vedette-agent: capability {absent.removeprefix('CAP_')} is missing, nothing can be watched "
        "(it was not granted: add it to securityContext.capabilities.add)"
    )


@pytest.mark.parametrize(
    ("absent", "effect"),
    [
        ("CAP_NET_ADMIN", "DNS answers are not seen"),
        ("CAP_SYS_PTRACE", "executables are not hashed and other users' processes are known by name only"),
    ],
)
def test_without_another_capability_it_names_it_and_goes_on(world: AgentImageWorld, absent: str, effect: str) -> None:
    world.start(capabilities=[name for name in AGENT_CAPABILITIES if name != absent])

    assert world.stop() == 0
    assert world.log.read_text().splitlines()[0] == (
        f"vedette-agent: capability {absent.removeprefix('CAP_')} is missing, {effect} "
        "(it was not granted: add it to securityContext.capabilities.add)"
    )
    dns = {
        hook["state"]
        for hook in world.detector.heartbeats[-1]["hooks"]
        if hook["hook"].startswith("cgroup_skb/ingress")
    }
    assert dns == ({"failed"} if absent == "CAP_NET_ADMIN" else {"loaded"})


def test_started_by_another_program_it_says_that_it_must_be_the_first(world: AgentImageWorld) -> None:
    world.launch(entry=("/usr/bin/python3", "-c", "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"))

    assert world.wait() == 4
    assert world.log.read_text().splitlines()[0] == (
        "vedette-agent: capability BPF is missing, nothing can be watched (it was granted, but with no_new_privs "
        "(allowPrivilegeEscalation: false) it only arrives when this program is the container's first: "
        "start nothing around it)"
    )


def test_the_next_container_delivers_what_the_one_before_left(world: AgentImageWorld) -> None:
    world.start()
    world.detector.stop()
    subprocess.run(["/bin/echo", "while-away"], stdout=subprocess.DEVNULL, check=True)
    assert world.stop() == 0
    old = world.detector.heartbeats[-1]["session"]
    world.socket.unlink()
    world.listen()
    world.start()
    new = world.detector.heartbeats[-1]["session"]
    subprocess.run(["/bin/echo", "after"], stdout=subprocess.DEVNULL, check=True)
    assert world.stop() == 0

    sessions = [b.session for b in world.detector.batches]
    assert sessions == sorted(sessions)
    assert set(sessions) == {old, new}
    finals = {b.session: b for b in world.detector.batches if b.flags & BatchFlags.FINAL}
    assert finals.keys() == {old, new}
    # What the ledger states as the gap: from when the programs were stopped to when the next ones were attached.
    assert old < finals[old].created_ns < new < finals[new].created_ns
    echoes = [v["argv"] for name, v in world.events() if name == "exec" and v["argv"].startswith(b"/bin/echo\0")]
    assert echoes.index(b"/bin/echo\0while-away\0") < echoes.index(b"/bin/echo\0after\0")


def test_a_killed_container_loses_no_more_than_what_was_in_the_ring(world: AgentImageWorld) -> None:
    world.start()
    before = world.detector.heartbeats[-1]
    subprocess.run(["/bin/echo", "before"], stdout=subprocess.DEVNULL, check=True)
    world.detector.wait_for(
        lambda: any(name == "exec" and v["argv"] == b"/bin/echo\0before\0" for name, v in world.events())
    )
    world.kill()
    world.start()
    after = world.detector.heartbeats[-1]
    assert world.stop() == 0

    old = [b for b in world.detector.batches if b.session == before["session"]]
    assert not any(b.flags & BatchFlags.FINAL for b in old)
    known = max(b.created_ns for b in old if b.ring_to > b.ring_from)
    seen = [
        v["time"] for header, records in zip(world.detector.batches, world.detector.records, strict=True)
        if header.session == before["session"] for name, v in world.decode(records)
        if name == "exec" and v["argv"] == b"/bin/echo\0before\0"
    ]  # fmt: skip
    assert before["session"] < seen[0] < known < after["session"] < after["attached_ns"]


def test_the_image_holds_nothing_to_attack_with(root: Path) -> None:
    files = [path for path in root.rglob("*") if not path.is_symlink() and path.is_file()]
    assert [p for p in files if p.stat().st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IWOTH)] == []
    assert [p for p in root.rglob("*") if not p.is_symlink() and p.stat().st_mode & stat.S_IWOTH] == [root / "tmp"]
    owners = {p.lstat().st_uid for p in root.rglob("*")}
    assert owners <= {0, 60700}
    assert [p for p in files if p.lstat().st_uid == 60700] == []
    names = {path.name for path in files}
    compilers = {"gcc", "cc", "clang", "ld", "as", "make", "tcc"}
    others = {"sh", "bash", "dash", "busybox", "perl", "apt-get", "dpkg", "pip", "pip3", "uv", "su", "mount", "curl"}
    assert names & (compilers | others) == set()
    # Libraries and modules carry the bit too, as Debian's packages have it.
    programs = [p for p in files if p.stat().st_mode & 0o111 and p.suffix != ".py" and ".so" not in p.suffixes]
    assert sorted(str(p.relative_to(root)) for p in programs if "lib" not in p.relative_to(root).parts) == [
        "opt/vedette/bin/vedette-agent",
        "usr/bin/chown",
        "usr/bin/python3.11",
        "usr/local/bin/vedette-agent",
    ]
    capable = [p for p in files if "security.capability" in os.listxattr(p)]
    assert capable == [root / "usr/local/bin/vedette-agent"]


def test_every_module_has_its_bytecode(root: Path) -> None:
    # A read-only root file system never gets any; without it the start takes several times as long.
    site = next(root.glob("opt/vedette/lib/python3*/site-packages"))
    modules = [*site.rglob("*.py"), *(root / "usr/lib").glob("python3.*/**/*.py")]
    assert len(modules) > 500
    assert [p for p in modules if not list((p.parent / "__pycache__").glob(f"{p.stem}.cpython-*.pyc"))] == []
