"""The loader: filters, deduplication, counters, pins, availability, privileges."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from live_collect import Collector, Record, drain

from vedette_agent import bpf_build, loader
from vedette_agent.hooks import PROGRAMS
from vedette_events import _native
from vedette_events.schema import EVENT_TYPES

CAPABILITIES = "bpf,perfmon,net_admin"


def mine(records: list[Record], event: str) -> list[Record]:
    return [r for r in records if r.event == event and r.pid == os.getpid()]


def write(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))


def read(path: Path) -> None:
    os.close(os.open(path, os.O_RDONLY))


def test_every_event_that_the_kernel_makes_has_a_loaded_hook(programs: loader.Programs) -> None:
    assert [h for h in programs.hooks if h.state != "loaded"] == []
    assert {h.event for h in programs.hooks} == {e.name for e in EVENT_TYPES} - {"file_hash"}


def test_wanted_names_change_while_running(collect: Collector, tmp_path: Path) -> None:
    names = ["plain", "n" * 80, "\udcff"]
    for name in names:
        (tmp_path / name).write_bytes(b"")

    def act() -> None:
        for name in names:
            read(tmp_path / name)

    assert mine(collect(act), "open") == []
    with collect.filters(open_names=names):
        assert [r.path for r in mine(collect(act), "open")] == [os.fsencode(tmp_path / name) for name in names]
    with collect.filters(open_names=[b"plain"]):
        assert [r.path for r in mine(collect(act), "open")] == [os.fsencode(tmp_path / "plain")]
    assert mine(collect(act), "open") == []


def test_unwanted_types_are_off_until_wanted_again(collect: Collector, tmp_path: Path) -> None:
    with collect.filters(disabled_types=["open", "unlink"]):
        assert mine(collect(lambda: (write(tmp_path / "a"), os.unlink(tmp_path / "a"))), "open") == []
    assert len(mine(collect(lambda: write(tmp_path / "a")), "open")) == 1


def test_an_unknown_type_is_refused(programs: loader.Programs) -> None:
    with pytest.raises(loader.LoaderError) as caught:
        programs.set_filters({"disabled_types": ["opne"]})
    assert caught.value.reason == "BadConfig"
    assert "'opne'" in str(caught.value)


def test_the_same_act_of_the_same_program_is_reported_once(collect: Collector, tmp_path: Path) -> None:
    before = collect.programs.counters()
    with socket.create_server(("127.0.0.1", 0)) as server, collect.filters(dedupe_ttl_ms=60_000):

        def act() -> None:
            for _ in range(5):
                write(tmp_path / "file")
                with socket.create_connection(server.getsockname()):
                    pass

        records = collect(act)
        assert len(mine(records, "open")) == len(mine(records, "connect")) == 1
        # Another program is another actor, though it does the same.
        code = f"import os; os.close(os.open('{tmp_path}/file', os.O_WRONLY))"
        again = collect(lambda: subprocess.run([sys.executable, "-c", code], check=True))
        assert len([r for r in again if r.event == "open" and r.path == os.fsencode(tmp_path / "file")]) == 1
    assert collect.programs.counters()["deduplicated"] - before["deduplicated"] >= 8


def test_deduplication_ends_with_its_time(collect: Collector, tmp_path: Path) -> None:
    with collect.filters(dedupe_ttl_ms=1):
        records = collect(
            lambda: (write(tmp_path / "f"), subprocess.run(["sleep", "0.02"], check=True), write(tmp_path / "f"))
        )
    assert len(mine(records, "open")) == 2


def test_what_is_rare_is_never_deduplicated(collect: Collector) -> None:
    with collect.filters(dedupe_ttl_ms=60_000):
        records = collect(lambda: [os.close(os.memfd_create("x")) for _ in range(3)])
        assert len(mine(records, "memfd")) == 3
        records = collect(lambda: [subprocess.run(["/bin/true"], check=True) for _ in range(3)])
    assert len([r for r in records if r.event == "exec" and r.ppid == os.getpid()]) == 3


def test_the_same_relative_name_in_two_directories_is_two_acts(
    collect: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collect.filters(dedupe_ttl_ms=60_000):
        found: list[Record] = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            monkeypatch.chdir(tmp_path / name)
            (tmp_path / name / "x").write_bytes(b"")
            found += mine(collect(lambda: os.unlink("x")), "unlink")
    assert [r.dir for r in found] == [os.fsencode(tmp_path / "a"), os.fsencode(tmp_path / "b")]


def test_the_agents_own_files_are_left_out_and_its_ptrace_is_not(collect: Collector, tmp_path: Path) -> None:
    libc = ctypes.CDLL(None)
    collect.programs.set_own_tgid(os.getpid())
    try:
        records = collect(lambda: (write(tmp_path / "f"), libc.ptrace(16, 4_000_000, None, None)))
    finally:
        collect.programs.set_own_tgid(0)
    assert mine(records, "open") == []
    assert len(mine(records, "ptrace")) == 1


def test_a_full_ring_drops_and_counts(bpf_object: Path, helper: Path) -> None:
    programs = loader.load(bpf_object, None, loader.Config(ring_bytes=4096, exclude_self=False))
    try:
        subprocess.run([helper, "storm", "1000"], check=True)
        counters = programs.counters()
        ring = _native.Ring(programs.ring_fd, programs.ring_size)
        received = drain(ring)
        ring.close()
    finally:
        programs.close()
    assert counters["dropped"] > 900
    assert 0 < len(received) <= 4096 // 80
    assert len(received) >= counters["emitted"]  # what other processes did after counting may have come in
    assert counters["emitted"] + counters["dropped"] >= 1000


AGENT = """
import os, sys, time
from pathlib import Path
from vedette_agent import loader
from vedette_events import _native
programs = loader.load(Path(sys.argv[1]), Path(sys.argv[2]), loader.Config(ring_bytes=1 << 20))
ring = _native.Ring(programs.ring_fd, programs.ring_size)
print(programs.session, programs.reused, flush=True)
while True:
    data, position, count = ring.drain(1 << 20)
    ring.commit(position)
    time.sleep(0.005)
"""


def start_agent(bpf_object: Path, pins: Path) -> tuple[subprocess.Popen[str], int, bool]:
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT, str(bpf_object), str(pins)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert agent.stdout is not None
    session, reused = agent.stdout.readline().split()
    return agent, int(session), reused == "True"


def kill(agent: subprocess.Popen[str]) -> None:
    os.kill(agent.pid, signal.SIGKILL)
    agent.wait()
    assert agent.stdout is not None
    agent.stdout.close()


def test_pins_survive_kill_9_and_lose_nothing(bpf_object: Path, bpffs: Path, tmp_path: Path) -> None:
    pins = bpffs / "kill"
    agent, session, reused = start_agent(bpf_object, pins)
    kill(agent)
    assert not reused
    write(tmp_path / "meanwhile")
    programs = loader.load(bpf_object, pins, loader.Config(ring_bytes=1 << 20))
    ring = _native.Ring(programs.ring_fd, programs.ring_size)
    records = drain(ring)
    ring.close()
    assert (programs.reused, programs.session, programs.stale) == (True, session, [])
    assert [h for h in programs.hooks if h.state != "loaded"] == []
    assert os.fsencode(tmp_path / "meanwhile") in [r.path for r in records if r.event == "open"]
    programs.detach()
    programs.close()
    assert list(pins.iterdir()) == []


def test_another_object_or_config_begins_a_session_and_offers_the_old_ring(
    bpf_object: Path, bpffs: Path, tmp_path: Path
) -> None:
    pins = bpffs / "upgrade"
    old = loader.load(bpf_object, pins, loader.Config(ring_bytes=1 << 20, exclude_self=False))
    write(tmp_path / "before")
    new = loader.load(bpf_object, pins, loader.Config(ring_bytes=1 << 19, exclude_self=False))
    write(tmp_path / "after")
    [stale] = new.stale
    assert (new.reused, stale.session, stale.ring_size) == (False, old.session, 1 << 20)
    assert new.session > old.session
    seen = {}
    for name, generation in (("old", stale), ("new", new)):
        ring = _native.Ring(generation.ring_fd, generation.ring_size)
        seen[name] = [r.path for r in drain(ring) if r.event == "open"]
        ring.close()
    before, after = os.fsencode(tmp_path / "before"), os.fsencode(tmp_path / "after")
    assert (before in seen["old"], before in seen["new"]) == (True, False)
    assert (after in seen["old"], after in seen["new"]) == (False, True)
    assert stale.counters()["emitted"] >= 1
    stale.remove()
    old.close()
    assert [p.name for p in pins.iterdir()] == [str(new.session)]
    new.detach()
    new.close()


def link_id(fd: int) -> int:
    info, size = ctypes.create_string_buffer(256), ctypes.c_uint32(256)
    assert ctypes.CDLL("libbpf.so.1").bpf_obj_get_info_by_fd(fd, info, ctypes.byref(size)) == 0
    return int.from_bytes(info.raw[4:8], "little")


def link_lives(link: int) -> bool:
    fd: int = ctypes.CDLL("libbpf.so.1").bpf_link_get_fd_by_id(link)
    if fd < 0:
        return False
    os.close(fd)
    return True


@pytest.mark.parametrize("reused", [False, True])
def test_who_removes_the_pins_does_not_detach_and_it_is_told(
    bpf_object: Path, bpffs: Path, tmp_path: Path, reused: bool
) -> None:
    pins, config = bpffs / f"removed{reused}", loader.Config(ring_bytes=1 << 20, exclude_self=False)
    programs = loader.load(bpf_object, pins, config)
    if reused:
        programs.close()
        programs = loader.load(bpf_object, pins, config)
    assert programs.reused == reused
    assert programs.check_hooks() == programs.hooks
    for pin in (pins / str(programs.session)).glob("link_*"):
        pin.unlink()
    ring = _native.Ring(programs.ring_fd, programs.ring_size)
    subprocess.run(["sleep", "0.2"], check=True)  # the kernel detaches a moment after the last reference goes
    drain(ring)
    write(tmp_path / "later")
    assert os.fsencode(tmp_path / "later") in [r.path for r in drain(ring) if r.event == "open"]
    now = programs.check_hooks()
    assert {h.state for h in now} == {"loaded"}
    assert "its pin was removed; it ends with the agent" in {h.reason for h in now}
    ring.close()
    ids = [link_id(fd) for fd in programs._links.values()]
    assert [i for i in ids if not link_lives(i)] == []
    programs.detach()
    programs.close()
    deadline = time.monotonic() + 10
    while any(map(link_lives, ids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [i for i in ids if link_lives(i)] == []


def test_a_hook_that_was_detached_under_its_holder_has_failed(bpf_object: Path) -> None:
    programs = loader.load(bpf_object, None, loader.Config(ring_bytes=1 << 20))
    try:
        cgroup = {p.name: p.hook for p in PROGRAMS if p.attachment == "cgroup" and p.name in programs._links}
        name, hook = next(iter(cgroup.items()))
        assert ctypes.CDLL("libbpf.so.1").bpf_link_detach(programs._links[name]) == 0
        failed = [h for h in programs.check_hooks() if h.state != "loaded"]
        assert {(h.hook, h.state, h.reason) for h in failed} == {(hook, "failed", "it was detached from its cgroup")}
    finally:
        programs.close()


@pytest.mark.parametrize("key", ["identity", "links", "hooks", "exclude_self", "settings_size"])
def test_meta_data_of_another_version_makes_the_generation_stale(bpf_object: Path, bpffs: Path, key: str) -> None:
    pins, config = bpffs / f"meta_{key}", loader.Config(ring_bytes=1 << 20)
    old = loader.load(bpf_object, pins, config)
    meta = json.loads(loader._lookup(old._maps["meta"], loader._ZERO, loader._META_SIZE).rstrip(b"\0"))
    del meta[key]
    loader._update(old._maps["meta"], loader._ZERO, json.dumps(meta).encode().ljust(loader._META_SIZE, b"\0"))
    old.close()
    new = loader.load(bpf_object, pins, config)
    # The layout of the settings matters only for stopping: the same object is still the same generation.
    expected = (True, []) if key == "settings_size" else (False, [old.session])
    assert (new.reused, [g.session for g in new.stale]) == expected
    for generation in new.stale:
        generation.remove()
    new.detach()
    new.close()
    assert list(pins.iterdir()) == []


def test_half_a_generation_is_cleared_away(bpf_object: Path, bpffs: Path) -> None:
    pins = bpffs / "half"
    first = loader.load(bpf_object, pins, loader.Config(ring_bytes=1 << 20))
    (pins / str(first.session) / "meta").unlink()
    first.close()
    second = loader.load(bpf_object, pins, loader.Config(ring_bytes=1 << 20))
    assert (second.reused, second.stale) == (False, [])
    assert [p.name for p in pins.iterdir()] == [str(second.session)]
    second.detach()
    second.close()


def test_a_refused_optional_program_costs_its_events_only(needs_root: None, tmp_path: Path) -> None:
    target = bpf_build.build(tmp_path / "refused.bpf.o", defines=("VEDETTE_TEST_REFUSED",))
    programs = loader.load(target, None, loader.Config(ring_bytes=1 << 20, exclude_self=False))
    states = {(h.event, h.hook): h for h in programs.hooks}
    collector = Collector(programs)
    records = collector(lambda: os.close(os.memfd_create("x")))
    collector.close()
    programs.close()
    assert len(mine(records, "memfd")) == 1
    refused = states["userfaultfd", "sys_exit:userfaultfd"]
    assert refused.state == "failed"
    assert refused.reason.startswith("the verifier refused it: ")
    assert {h.event for h in programs.hooks if h.state != "loaded"} == {"userfaultfd"}


def test_the_base_object_of_older_kernels_loads_too(needs_root: None, tmp_path: Path) -> None:
    target = bpf_build.build(tmp_path / "base.bpf.o", defines=("VEDETTE_BASE",))
    programs = loader.load(target, None, loader.Config(ring_bytes=1 << 20, exclude_self=False))
    collector = Collector(programs)
    records = collector(lambda: write(tmp_path / "f"))
    collector.close()
    programs.close()
    assert [h for h in programs.hooks if h.state != "loaded"] == []
    assert [r.path for r in mine(records, "open")] == [os.fsencode(tmp_path / "f")]


def test_a_missing_tracepoint_is_told_and_replaced(
    bpf_object: Path, helper: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    btf = tmp_path / "vmlinux"
    btf.write_bytes(loader.KERNEL_BTF.read_bytes().replace(b"\0btf_trace_io_uring_submit_req\0", b"\0" * 31))
    monkeypatch.setattr(loader, "KERNEL_BTF", btf)
    programs = loader.load(bpf_object, None, loader.Config(ring_bytes=1 << 20))
    collector = Collector(programs)
    command = [helper, "uring_open", "/etc/shadow"]
    records = collector(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
    collector.close()
    programs.close()
    reason = "this kernel has no tracepoint io_uring_submit_req"
    assert [h for h in programs.hooks if h.event == "io_uring"] == [
        loader.HookState("io_uring", "io_uring_submit_req", "missing", reason),
        loader.HookState("io_uring", "sys_exit:io_uring_setup", "loaded"),
    ]
    assert [h for h in programs.hooks if h.state != "loaded" and h.event != "io_uring"] == []
    assert [r.opcode for r in records if r.event == "io_uring" and r.comm == b"live_helper"] == [0xFFFFFFFF]


def test_the_base_object_serves_where_the_other_is_refused(needs_root: None, tmp_path: Path) -> None:
    target = bpf_build.build(tmp_path / "vedette.bpf.o", defines=("VEDETTE_TEST_REFUSED_DISPATCH",))
    with pytest.raises(loader.LoaderError) as caught:
        loader.load(target, None, loader.Config(ring_bytes=1 << 20))
    assert caught.value.reason == "LoadRefused"
    assert "'sys_exit'" in str(caught.value)
    bpf_build.build(bpf_build.base_of(target), defines=("VEDETTE_BASE",))
    programs = loader.load(target, None, loader.Config(ring_bytes=1 << 20))
    programs.close()
    assert [h for h in programs.hooks if h.state != "loaded"] == []


UNPRIVILEGED = """
import json, os, sys
from pathlib import Path
from vedette_agent import loader
try:
    programs = loader.load(Path(sys.argv[1]), Path(sys.argv[2]), loader.Config(ring_bytes=1 << 20))
except loader.LoaderError as error:
    print(json.dumps({"error": error.reason}))
else:
    hooks = [[h.event, h.state] for h in programs.hooks]
    print(json.dumps({"uid": os.getuid(), "reused": programs.reused, "hooks": hooks}))
"""


def as_nobody(capabilities: str, bpf_object: Path, pins: Path) -> dict[str, Any]:
    """Load as uid 65534 with these capabilities only."""
    limits = ["--reuid=65534", "--regid=65534", "--clear-groups", f"--inh-caps=-all,{capabilities}"]
    limits += [f"--ambient-caps=-all,{capabilities}", f"--bounding-set=-all,{capabilities}"]
    command = ["setpriv", *limits, sys.executable, "-c", UNPRIVILEGED, str(bpf_object), str(pins)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_an_unprivileged_user_with_three_capabilities_suffices(bpf_object: Path, bpffs: Path) -> None:
    bpffs.chmod(0o755)
    pins = bpffs / "nobody"
    pins.mkdir()
    os.chown(pins, 65534, 65534)
    capabilities = ",".join(f"+{name}" for name in CAPABILITIES.split(","))
    first = as_nobody(capabilities, bpf_object, pins)
    assert (first["uid"], first["reused"]) == (65534, False)
    assert {state for _, state in first["hooks"]} == {"loaded"}
    assert as_nobody(capabilities, bpf_object, pins)["reused"]
    loader.load(bpf_object, pins, loader.Config(ring_bytes=1 << 20)).detach()


def test_without_net_admin_answers_are_missing_and_told(bpf_object: Path, bpffs: Path) -> None:
    pins = bpffs / "no-net-admin"
    pins.mkdir()
    bpffs.chmod(0o755)
    os.chown(pins, 65534, 65534)
    found = as_nobody("+bpf,+perfmon", bpf_object, pins)
    assert [hook for hook in found["hooks"] if hook[1] != "loaded"] == [["dns", "failed"], ["dns", "failed"]]
    loader.load(bpf_object, pins, loader.Config(ring_bytes=1 << 20)).detach()


def test_without_capabilities_the_reason_is_given(bpf_object: Path, bpffs: Path) -> None:
    pins = bpffs / "none"
    pins.mkdir()
    bpffs.chmod(0o755)
    os.chown(pins, 65534, 65534)
    assert as_nobody("-all", bpf_object, pins) == {"error": "LoadRefused"}
    pins.rmdir()


@pytest.mark.parametrize(
    ("path", "config", "reason"),
    [
        ("/nonexistent.o", loader.Config(), "ObjectInvalid"),
        ("/bin/true", loader.Config(), "ObjectInvalid"),
        (None, loader.Config(ring_bytes=5000), "BadConfig"),
    ],
)
def test_errors_have_a_reason(bpf_object: Path, path: str | None, config: loader.Config, reason: str) -> None:
    with pytest.raises(loader.LoaderError) as caught:
        loader.load(path or bpf_object, None, config)
    assert caught.value.reason == reason


def test_a_pin_directory_that_is_no_bpffs_is_refused(bpf_object: Path, tmp_path: Path) -> None:
    with pytest.raises(loader.LoaderError) as caught:
        loader.load(bpf_object, tmp_path / "pins", loader.Config(ring_bytes=1 << 20))
    assert caught.value.reason == "PinRefused"


def test_every_number_in_the_table_goes_to_one_program() -> None:
    numbers = [number for program in PROGRAMS for number in program.calls]
    assert len(numbers) == len(set(numbers))
    assert max(numbers) < 600
