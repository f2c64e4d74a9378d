"""The agent as a process on the real kernel: privileges, kills, hand-over, end. The detector is a stub."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_process import AgentWorld, compile_load

from vedette_agent import bpf_build
from vedette_agent.privileges import KEPT
from vedette_events.framing import BatchFlags, BatchHeader

ORDINARY = """
import sys
from vedette_agent import main, privileges
main.preload(main.settings.parse(sys.argv[1:]))
privileges.drop(65534, 65534)
sys.exit(main.main(sys.argv[1:]))
"""
"""An agent that was never root. Python itself may lie where only root may read, so it is not simply run by setpriv."""

pytestmark = pytest.mark.usefixtures("bpf_object")


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("the load generator needs a C compiler")
    return compile_load(tmp_path_factory.mktemp("load"))


@pytest.fixture
def world(needs_root: None) -> Iterator[AgentWorld]:
    made = AgentWorld()
    yield made
    print(made.log.read_text(errors="replace"), file=sys.stderr)
    made.close()


def from_ring(batches: list[BatchHeader]) -> int:
    return sum(b.count for b in batches if b.ring_to > b.ring_from)


def test_what_runs_is_seen_and_what_ran_before_is_in_the_snapshot(world: AgentWorld) -> None:
    sleeper = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL)
    world.start()
    world.detector.wait_for(lambda: any(b.flags & BatchFlags.SNAPSHOT for b in world.detector.batches))
    runner = subprocess.run(["/bin/echo", "a\nb", "\udcff"], stdout=subprocess.DEVNULL, check=True)
    assert runner.returncode == 0
    sleeper.kill()
    sleeper.wait()
    assert world.stop() == 0

    execs = [values for name, values in world.events() if name == "exec"]
    (echo,) = [v for v in execs if v["argv"] == b"/bin/echo\0a\nb\0\xff\0"]
    assert echo["ppid"] == os.getpid()
    assert not echo["flags"] & 8
    (sleep,) = [v for v in execs if v["pid"] == sleeper.pid]
    assert sleep["flags"] & 8
    assert (sleep["argv"], sleep["ppid"], sleep["stdin_kind"]) == (b"sleep\x001000\0", os.getpid(), 8)
    assert sleep["cwd"] == os.fsencode(os.getcwd())
    # It is the same process that the kernel's own records name, to the nanosecond.
    (ended,) = [v for name, v in world.events() if name == "exit" and v["pid"] == sleeper.pid]
    assert sleep["start"] == ended["start"]
    # The snapshot's cgroup ids are the kernel's: both children were started in this process's cgroup.
    assert sleep["cgroup"] == echo["cgroup"] != 0
    last = world.detector.batches[-1]
    assert last.flags == BatchFlags.FINAL
    assert last.counters.emitted == from_ring(world.detector.batches)
    assert last.counters.dropped == 0
    assert [p for p in world.pins.iterdir() if p.is_dir()] == []


def test_the_running_agent_has_four_capabilities_and_no_way_back(world: AgentWorld) -> None:
    world.start()
    assert world.process is not None
    threads = list(Path(f"/proc/{world.process.pid}/task").iterdir())
    assert len(threads) >= 2
    for thread in threads:
        status = dict(line.split(":", 1) for line in (thread / "status").read_text().splitlines())
        assert status["Uid"].split() == ["60700"] * 4
        assert status["Groups"].strip() == ""
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == sum(1 << cap for cap in KEPT)
        assert int(status["CapBnd"], 16) == int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
        assert status["NoNewPrivs"].strip() == "1"
    assert world.stop() == 0


@pytest.mark.slow
def test_kill_9_at_any_instant_under_load_loses_and_doubles_nothing(world: AgentWorld, load: Path) -> None:
    # The ring takes in what happens while no agent runs, also when some are killed before they have begun to drain.
    options = ("--ring-bytes", "64MiB")
    count, rate = 1_000_000, 50_000
    chance = random.Random(1)
    world.start(*options)
    storm = subprocess.Popen([load, "storm", "0", str(count), str(rate)], stdout=subprocess.DEVNULL)
    kills = 0
    while storm.poll() is None:
        if chance.random() < 0.7:  # in the middle of its work; the others have hardly started
            arrived = len(world.detector.batches)
            world.detector.wait_for(lambda arrived=arrived: len(world.detector.batches) > arrived)
        time.sleep(chance.uniform(0.0, 0.4))
        world.kill()
        kills += 1
        world.launch(*options)
    assert storm.returncode == 0
    beats = len(world.detector.heartbeats)
    world.detector.wait_for(lambda: len(world.detector.heartbeats) > beats)
    assert world.stop() == 0

    batches = world.detector.batches
    last = batches[-1]
    assert kills >= 4
    assert {b.session for b in batches} == {last.session}
    unique = {b.sequence: b for b in batches}
    assert sorted(unique) == list(range(1, last.sequence + 1))
    assert from_ring(list(unique.values())) == last.counters.emitted
    seen: set[int] = set()
    kept = [r for b, r in zip(batches, world.detector.records, strict=True) if _first(b.sequence, seen)]
    world.detector.records = kept
    numbers = world.storm_numbers(storm.pid)
    assert set(numbers.values()) == {1}
    # What the kernel put into the ring arrived. Only a machine so busy that the ring ran full drops, and counts.
    assert count - len(numbers) <= last.counters.dropped


def run_storm(load: Path, count: int, rate: int) -> int:
    """Run a storm to its end; returns its process id, by which its events are known."""
    storm = subprocess.Popen([load, "storm", "0", str(count), str(rate)], stdout=subprocess.DEVNULL)
    assert storm.wait() == 0
    return storm.pid


def _first(sequence: int, seen: set[int]) -> bool:
    if sequence in seen:
        return False
    seen.add(sequence)
    return True


def test_a_detector_that_goes_away_and_comes_back_misses_nothing(world: AgentWorld, load: Path) -> None:
    world.start()
    world.detector.stop()
    pid = run_storm(load, 200_000, 100_000)
    world.listen()
    beats = len(world.detector.heartbeats)
    world.detector.wait_for(lambda: len(world.detector.heartbeats) > beats)
    assert world.stop() == 0

    numbers = world.storm_numbers(pid)
    assert 200_000 - len(numbers) <= world.detector.batches[-1].counters.dropped
    assert [b.sequence for b in world.detector.batches] == list(range(1, len(world.detector.batches) + 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("disk", "limit", "reason"),
    [
        ("80g", "1MiB", "SpoolFull"),
        ("1500k", "4MiB", "DiskFull"),
        ("1500k", "64MiB", None),  # one segment alone fills the disk: what follows stays in the ring
    ],
)
def test_what_does_not_fit_is_given_up_oldest_first_and_counted(
    world: AgentWorld, load: Path, disk: str, limit: str, reason: str | None
) -> None:
    world.spool.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={disk},mode=0700", "vedette-test", str(world.spool)], check=True
    )
    world.start("--spool-limit", limit)
    world.detector.stop()
    pid = run_storm(load, 600_000, 120_000)
    world.listen()
    beats = len(world.detector.heartbeats)
    world.detector.wait_for(lambda: len(world.detector.heartbeats) > beats)
    assert world.stop() == 0

    last = world.detector.batches[-1]
    assert (last.counters.spool_lost_events > 0) == (reason is not None)
    assert last.counters.spool_lost_events + last.counters.dropped > 0
    assert from_ring(world.detector.batches) + last.counters.spool_lost_events == last.counters.emitted
    expected = {reason: last.counters.spool_lost_batches} if reason else {}
    assert world.detector.heartbeats[-1]["spool"]["lost_by_reason"] == expected
    sequences = [b.sequence for b in world.detector.batches]
    assert sequences == sorted(set(sequences))
    assert len(sequences) + last.counters.spool_lost_batches == last.sequence
    numbers = world.storm_numbers(pid)
    assert set(numbers.values()) == {1}
    assert len(numbers) + last.counters.spool_lost_events + last.counters.dropped >= 600_000
    if not last.counters.dropped:
        assert max(numbers) == 599_999  # the oldest went, the newest arrived


def test_an_agent_that_leaves_the_programs_attached_hands_over_without_a_gap(world: AgentWorld) -> None:
    world.start("--keep-attached")
    world.detector.wait_for(lambda: any(b.flags & BatchFlags.SNAPSHOT for b in world.detector.batches))
    assert world.stop() == 0
    session = world.detector.batches[-1].session
    subprocess.run(["/bin/echo", "between two agents"], check=True, stdout=subprocess.DEVNULL)
    world.start()
    assert world.stop() == 0

    assert {b.session for b in world.detector.batches} == {session}
    assert [b.sequence for b in world.detector.batches] == list(range(1, len(world.detector.batches) + 1))
    argvs = [v["argv"] for name, v in world.events() if name == "exec"]
    assert argvs.count(b"/bin/echo\0between two agents\0") == 1
    assert sum(1 for b in world.detector.batches if b.flags & BatchFlags.SNAPSHOT) == 1


def test_who_removes_a_pin_does_not_blind_the_running_agent(world: AgentWorld) -> None:
    world.start()
    pins = list(world.pins.glob("*/link_*"))
    assert pins
    for pin in pins:
        pin.unlink()
    beats = len(world.detector.heartbeats)
    world.detector.wait_for(lambda: len(world.detector.heartbeats) > beats)
    subprocess.run(["/bin/echo", "without a pin"], check=True, stdout=subprocess.DEVNULL)
    assert world.stop() == 0

    argvs = [v["argv"] for name, v in world.events() if name == "exec"]
    assert argvs.count(b"/bin/echo\0without a pin\0") == 1
    hooks = world.detector.heartbeats[-1]["hooks"]
    assert "its pin was removed; it ends with the agent" in {hook["reason"] for hook in hooks}
    assert [p for p in world.pins.iterdir() if p.is_dir()] == []


def test_a_spool_that_was_lost_begins_a_new_session(world: AgentWorld) -> None:
    world.start()
    subprocess.run(["/bin/true"], check=True)
    world.detector.wait_for(lambda: from_ring(world.detector.batches) > 0)
    world.kill()
    old = world.detector.batches[-1].session
    shutil.rmtree(world.spool)
    world.start()
    assert world.stop() == 0

    new = [b for b in world.detector.batches if b.session != old]
    assert [b.sequence for b in new] == list(range(1, len(new) + 1))
    assert "loading anew" in world.log.read_text()


def test_programs_of_another_size_are_drained_before_the_new_ones_are_reported(world: AgentWorld) -> None:
    world.start("--keep-attached")
    assert world.stop() == 0
    old = world.detector.batches[-1].session
    subprocess.run(["/bin/echo", "still in the old ring"], check=True, stdout=subprocess.DEVNULL)
    world.start("--ring-bytes", "1MiB")
    assert world.stop() == 0

    sessions = [b.session for b in world.detector.batches]
    assert sessions == sorted(sessions)
    assert len(set(sessions)) == 2
    final = [b for b in world.detector.batches if b.session == old][-1]
    assert final.flags == BatchFlags.FINAL
    assert final.counters.emitted == from_ring([b for b in world.detector.batches if b.session == old])
    argvs = [v["argv"] for name, v in world.events() if name == "exec"]
    assert argvs.count(b"/bin/echo\0still in the old ring\0") == 1


def test_new_filters_are_in_force_within_the_next_answer(world: AgentWorld, tmp_path: Path) -> None:
    secret = tmp_path / "very-secret"
    secret.write_text("")
    world.start()
    secret.read_text()
    world.detector.filters = {"version": "f1", "open_names": ["very-secret"], "disabled_types": ["fork"]}
    subprocess.run(["/bin/true"], check=True)
    world.detector.wait_for(lambda: any(h.get("x-vedette-filters") == "f1" for _, h, _ in world.detector.requests))
    secret.read_text()
    assert world.stop() == 0

    opens = [v for name, v in world.events() if name == "open" and v["path"].endswith(b"/very-secret")]
    assert len([v for v in opens if v["oflags"] & os.O_ACCMODE == os.O_RDONLY]) == 1


def test_an_executable_is_hashed_once(world: AgentWorld, tmp_path: Path) -> None:
    import hashlib

    program = world.directory / "program"
    shutil.copy("/bin/sleep", program)
    program.chmod(0o755)
    world.start()
    subprocess.run([program, "0.4"], check=True)
    subprocess.run([program, "0.4"], check=True)
    world.detector.wait_for(lambda: any(name == "file_hash" for name, _ in world.events()))
    assert world.stop() == 0

    info = program.stat()
    hashes = [v for name, v in world.events() if name == "file_hash" and v["ino"] == info.st_ino]
    assert [v["sha256"] for v in hashes] == [hashlib.sha256(program.read_bytes()).digest()]
    assert (hashes[0]["length"], hashes[0]["ctime"]) == (info.st_size, info.st_ctime_ns)


def test_it_starts_as_an_ordinary_user_with_capabilities(world: AgentWorld) -> None:
    """As in a container: nothing is prepared by root but the directories and the bpffs."""
    tree = Path(__file__).resolve()
    if not all(parent.stat().st_mode & 0o001 for parent in tree.parents):
        world.log.touch()  # the fixture shows it at the end
        pytest.skip("place: an ordinary user cannot read the tree here")
    world.spool.mkdir(mode=0o700)
    os.chown(world.spool, 65534, 65534)
    world.pins.mkdir()
    subprocess.run(["mount", "-t", "bpf", "vedette-test", str(world.pins)], check=True)
    os.chown(world.pins, 65534, 65534)
    world.start(entry=("-c", ORDINARY))
    subprocess.run(["/bin/echo", "ordinary"], check=True, stdout=subprocess.DEVNULL)
    world.kill()
    world.start(entry=("-c", ORDINARY))
    assert world.stop() == 0

    argvs = [v["argv"] for name, v in world.events() if name == "exec"]
    assert argvs.count(b"/bin/echo\0ordinary\0") == 1
    assert len({b.session for b in world.detector.batches}) == 1
    assert world.detector.batches[-1].counters.emitted == from_ring(world.detector.batches)


def test_started_by_root_it_still_has_the_programs_for_older_kernels(world: AgentWorld, tmp_path: Path) -> None:
    target = bpf_build.build(tmp_path / "vedette.bpf.o", defines=("VEDETTE_TEST_REFUSED_DISPATCH",))
    bpf_build.build(bpf_build.base_of(target), defines=("VEDETTE_BASE",))
    world.start("--object", str(target))
    assert [h for h in world.detector.heartbeats[-1]["hooks"] if h["state"] != "loaded"] == []
    assert world.stop() == 0


def test_a_second_agent_on_the_same_spool_gives_up(world: AgentWorld) -> None:
    world.start()
    command = [sys.executable, "-m", "vedette_agent", "--spool-dir", str(world.spool), "--pin-dir", str(world.pins)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert world.stop() == 0

    assert second.returncode == 3
    assert "reason=SpoolBusy" in second.stderr


def test_bad_options_are_all_named_at_once() -> None:
    command = [sys.executable, "-m", "vedette_agent", "--endpoint", "ftp://x", "--ring-bytes", "5000", "--uid", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)

    assert done.returncode == 2
    for text in ("endpoint 'ftp://x'", "--ring-bytes 5000", "--uid 0", "reason=InvalidSettings"):
        assert text in done.stderr
