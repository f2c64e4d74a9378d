"""Events per second and core: raw compressed batches in, detections out.

    python benchmarks/engine.py [--frames FILE] [--seconds 2] [--json]

Measured is all that a worker does with a frame: check, decompress, split, history, prefilter, confirm. The mix is
made up like that of a busy container host and is replayed as many nodes; ``--frames``, or VEDETTE_BENCH_FRAMES in the
environment, names a recorded one: a file of framed batches. Every figure has the machine's load average beside it,
since a figure from a busy machine says little.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from vedette_detector.engine.engine import Engine
from vedette_detector.sigma.loader import Ruleset, load_rule_text, load_rules, rules_directory
from vedette_detector.threat_lists import ThreatLists
from vedette_events import _native
from vedette_events.dtypes import dtype
from vedette_events.encode import encode_event
from vedette_events.framing import MAX_RAW, BatchHeader, decode_batch, encode_batch, iter_batches
from vedette_events.schema import EVENT_TYPES

BATCH_SIZES = (500, 2_000, 10_000, 50_000, 100_000)
NODES = 20
_SECOND = 10**9
_EVENTS = 400_000
"""So many events are measured on, then all histories begin anew."""
_MIX = (
    ("open", 38),
    ("exec", 8),
    ("fork", 10),
    ("exit", 10),
    ("connect", 10),
    ("accept", 5),
    ("dup", 6),
    ("dns", 4),
    ("unlink", 4),
    ("rename", 2),
    ("chmod", 1),
    ("mmap", 1),
    ("setuid", 1),
)
_DIRECTORIES = (
    "/var/lib/postgresql/16/main/base/16384",
    "/var/log/pods/prod_web-6d4b75cb6d-hx2lp_6f1d/web",
    "/app/node_modules/@babel/core/lib",
    "/tmp/build",
    "/home/runner/work/project/target/debug/deps",
    "/var/cache/nginx/client_temp",
    "/data/kafka/events-3",
    "/usr/share/zoneinfo/Europe",
)
_PROGRAMS = (
    ("/usr/bin/python3.11", ["python3", "-m", "app.worker", "--queue", "default"]),
    ("/usr/bin/bash", ["bash", "-c", "set -e; exec /entrypoint.sh server"]),
    ("/usr/bin/grep", ["grep", "-rn", "TODO", "src/"]),
    ("/usr/bin/gcc", ["gcc", "-O2", "-c", "-Iinclude", "src/module.c", "-o", "build/module.o"]),
    ("/bin/sh", ["sh", "-c", "pg_isready -U postgres -h 127.0.0.1 -p 5432"]),
    ("/usr/bin/curl", ["curl", "-fsS", "http://localhost:8080/healthz"]),
    ("/usr/sbin/runc", ["runc", "--root", "/run/containerd/runc/k8s.io", "exec", "--process", "/tmp/runc-process"]),
    ("/usr/bin/node", ["node", "--max-old-space-size=4096", "server.js"]),
    ("/usr/bin/git", ["git", "fetch", "--no-tags", "--depth=1", "origin", "+refs/heads/main"]),
)


def dns_query(name: str) -> bytes:
    labels = b"".join(bytes([len(x)]) + x.encode() for x in name.split("."))
    return b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + labels + b"\x00\x00\x01\x00\x01"


def _process(rng: random.Random) -> tuple[dict[str, Any], str]:
    pid = rng.randrange(1000, 30000)
    common = {
        "pid": pid,
        "tid": pid,
        "ppid": pid - 1,
        "start": 900 * _SECOND + pid * 1000,
        "cgroup": rng.randrange(1, 42),
        "uid": rng.choice((0, 0, 1000, 65534)),
        "comm": rng.choice(("python3", "node", "postgres", "java", "nginx", "bash")),
    }
    return common, rng.choice(_DIRECTORIES)


def make_records(count: int, seed: int = 1) -> list[bytes]:
    """A made-up mix of ``count`` records."""
    rng = random.Random(seed)
    names, weights = zip(*_MIX, strict=True)
    time_ns = 1000 * _SECOND
    out: list[bytes] = []
    for cgroup in range(2, 42):
        path = f"/kubepods.slice/kubepods-burstable.slice/cri-containerd-{cgroup:064x}.scope"
        out.append(encode_event("cgroup", time=time_ns, cgroup=cgroup, path=path))
    running = [_process(rng) for _ in range(4)]
    for number, name in enumerate(rng.choices(names, weights, k=count - len(out))):
        time_ns += rng.randrange(1000, 9000)
        # A few processes are at work at a time, each for some events in its own directory.
        if rng.random() < 0.15:
            running[rng.randrange(len(running))] = _process(rng)
        common, directory = running[rng.randrange(len(running))]
        common = {"time": time_ns, **common}
        pid = common["pid"]
        file = f"{directory}/{rng.choice(('part', 'index', 'segment', 'cache'))}-{rng.randrange(100000):05d}.dat"
        if name == "open":
            out.append(encode_event("open", **common, path=file, oflags=0o101, ino=number + 1000, dev=66, fd=7))
        elif name == "exec":
            path, argv = rng.choice(_PROGRAMS)
            out.append(
                encode_event(
                    "exec",
                    **common,
                    path=path,
                    argv=[*argv, f"--id={rng.randrange(10**6)}"],
                    cwd="/app",
                    filename=path,
                    ino=hash(path) & 0xFFFF,
                    dev=66,
                    parent_start=900 * _SECOND + (pid - 1) * 1000,
                    stdin_kind="NULL",
                    stdout_kind="PIPE",
                    stderr_kind="PIPE",
                    pid_ns=4026532200,
                )
            )
        elif name == "fork":
            out.append(encode_event("fork", **common, child_pid=pid + 1, child_start=time_ns, child_ns_pid=pid % 999))
        elif name == "exit":
            out.append(encode_event("exit", **common))
        elif name in ("connect", "accept"):
            address = f"10.{rng.randrange(4)}.{rng.randrange(256)}.{rng.randrange(1, 255)}"
            out.append(
                encode_event(
                    name, **common, family=2, sock_type=1, raddr=address, rport=rng.choice((80, 443, 5432, 6379, 9092))
                )
            )
        elif name == "dup":
            out.append(encode_event("dup", **common, old_fd=9, new_fd=rng.randrange(3, 20), family=2))
        elif name == "dns":
            host = f"svc-{rng.randrange(300)}.prod.svc.cluster.local"
            out.append(encode_event("dns", **common, direction=1, family=2, rport=53, payload=dns_query(host)))
        elif name in ("unlink", "chmod"):
            out.append(encode_event(name, **common, path=file.rsplit("/", 1)[1], dir=directory))
        elif name == "rename":
            out.append(encode_event(name, **common, path=file + ".tmp", new_path=file))
        elif name == "mmap":
            out.append(encode_event(name, **common, path="/usr/lib/x86_64-linux-gnu/libssl.so.3", prot=5))
        else:
            out.append(encode_event(name, **common, call=1))
    return out


def shifted(records: Sequence[bytes], by_ns: int) -> list[bytes]:
    """The same records later, by processes that were started later: a replay that history can tell from the first."""
    names = ("time", "start", "parent_start", "child_start", "target_start", "ctime")
    places: dict[int, list[int]] = {}
    for kind in EVENT_TYPES:
        fields: Any = dtype(kind.name).fields or {}
        places[kind.code] = [int(fields[name][1]) for name in names if name in fields]
    out = []
    for record in records:
        copy = bytearray(record)
        for place in places[int.from_bytes(record[4:6], "little")]:
            value = int.from_bytes(copy[place : place + 8], "little")
            if value:
                copy[place : place + 8] = (value + by_ns).to_bytes(8, "little")
        out.append(bytes(copy))
    return out


def make_frames(
    records: Sequence[bytes], batch_size: int, per_node: int = 0, wall_offset_ns: int = 1_700_000_000 * _SECOND
) -> list[tuple[bytes, int]]:
    """(frame, number of events) for each batch.

    With ``per_node``, a node has so many records in a row, as the recorded host had: processes, their parents and the
    files that they wrote lie in one history. Otherwise one batch after another goes to the next node.
    """
    out: list[tuple[bytes, int]] = []
    for start in range(0, len(records), batch_size):
        part = records[start : start + batch_size]
        number = start // per_node if per_node else len(out)
        raw = b"".join(part)
        if len(raw) > MAX_RAW:
            raise ValueError(f"{batch_size} events take {len(raw)} bytes, more than a batch may hold")
        header = BatchHeader(
            node=f"node-{number % NODES}",
            boot_id=bytes(16),
            session=1,
            sequence=1 + len(out),
            count=len(part),
            wall_offset_ns=wall_offset_ns,
        )
        out.append((encode_batch(header, raw), len(part)))
    return out


def user_rules(count: int = 500) -> Ruleset:
    """Made-up rules of the kinds that Sigma's own repository holds for Linux."""
    out = Ruleset()
    for n in range(count):
        kind = n % 10
        if kind < 5:
            category = "process_creation"
            detection = f"""
  image:
    Image|endswith: ['/offensive-tool-{n}', '/other-tool-{n}']
  arguments:
    CommandLine|contains|all: [' --exploit-{n}', '-target{n}']
  condition: image or arguments"""
        elif kind < 7:
            category = "file_event"
            detection = f"""
  target:
    TargetFilename|contains: ['/etc/service-{n}/', '.hidden-{n}.so']
  filter:
    Image|endswith: /dpkg
  condition: target and not filter"""
        elif kind < 8:
            category = "network_connection"
            detection = f"""
  address:
    DestinationIp: 203.0.113.{n % 250 + 1}
    DestinationPort: {20000 + n}
  condition: address"""
        elif kind < 9:
            category = "dns_query"
            detection = f"""
  name:
    QueryName|endswith: .c2-{n}.example
  condition: name"""
        else:
            category = "process_creation"
            detection = f"""
  shell:
    Image|endswith: [/sh, /bash]
    CommandLine|re: 'fetch-{n} +http://[a-z]+/stage[0-9]'
  condition: shell"""
        text = f"""
title: User rule {n}
id: 00000000-0000-4000-8000-{n:012d}
status: test
description: A made-up rule.
author: Vedette
date: 2026-11-01
logsource: {{product: linux, category: {category}}}
detection:{detection}
level: medium
"""
        loaded = load_rule_text(text, f"user-{n}.yml")
        if loaded.errors:
            raise ValueError(str(loaded.errors[0]))
        out.rules += loaded.rules
    return out


def all_detectors() -> Sequence[Any]:
    try:
        from vedette_detector.detectors import ALL_DETECTORS  # the package may be left out of a build
    except ImportError:
        return ()
    return tuple(ALL_DETECTORS)


def measure(make_engine: Callable[[], Engine], frames: list[tuple[bytes, int]], seconds: float) -> dict[str, float]:
    """Process the frames, again and again from the beginning while there is time; best of three runs."""
    best: dict[str, float] = {}
    for _ in range(3):
        engine = make_engine()
        for frame, _ in frames[: min(len(frames), NODES)]:
            engine.process_frame(frame)
        gc.collect()
        events = candidates = detections = 0
        slowest = 0.0
        began, cpu = time.perf_counter(), time.process_time()
        while time.process_time() - cpu < seconds:
            for node in range(NODES):
                engine.forget(f"node-{node}")
            for frame, count in frames:
                before = time.perf_counter()
                outcome = engine.process_frame(frame)
                slowest = max(slowest, time.perf_counter() - before)
                events += count
                candidates += outcome.candidates
                detections += len(outcome.detections)
        used = time.process_time() - cpu
        wall = time.perf_counter() - began
        found = {
            "events_per_second": events / used,
            "wall_events_per_second": events / wall,
            "candidates_per_million": 1e6 * candidates / events,
            "detections_per_million": 1e6 * detections / events,
            "slowest_batch_ms": 1000 * slowest,
        }
        if found["events_per_second"] > best.get("events_per_second", 0):
            best = found
    return best


def load_frames(path: Path) -> list[bytes]:
    """Records of a file of framed batches, one by one."""
    out = []
    for _, frame in iter_batches(path.read_bytes()):
        _, raw = decode_batch(frame)
        at = 0
        while at < len(raw):
            size = int.from_bytes(raw[at : at + 4], "little")
            out.append(raw[at : at + size])
            at += size
    return out


def run(seconds: float = 1.0, frames_file: Path | None = None, sizes: Iterable[int] = BATCH_SIZES) -> dict[str, Any]:
    """Measure everything; keys for ``build/bench.json``."""
    _native.keep_freed_memory()  # as a worker does
    if frames_file is None and os.environ.get("VEDETTE_BENCH_FRAMES"):
        frames_file = Path(os.environ["VEDETTE_BENCH_FRAMES"])
    records = load_frames(frames_file) if frames_file else make_records(100_000)
    ruleset = load_rules([rules_directory()])
    more = user_rules()
    detectors = all_detectors()
    threats = ThreatLists.of([f"198.51.100.{n}" for n in range(1, 200)] + [f"evil-{n}.example" for n in range(2000)])
    variants = {
        "all_rules": lambda: Engine(ruleset, threats, detectors=detectors),
        "all_rules_and_500_user_rules": lambda: Engine(
            Ruleset(rules=[*ruleset.rules, *more.rules]), threats, detectors=detectors
        ),
    }
    recorded = len(records)
    span = max(int.from_bytes(r[8:16], "little") for r in records) + _SECOND
    passes = max(1, _EVENTS // len(records))
    records = [record for number in range(passes) for record in shifted(records, number * span)]
    raw = sum(map(len, records))
    out: dict[str, Any] = {
        "rules": len(ruleset.rules),
        "detectors": len(detectors),
        "bytes_per_event": raw / len(records),
        "curves": {},
    }
    for variant, make_engine in variants.items():
        curve = {}
        for size in sizes:
            usable = min(size, int(MAX_RAW / (raw / len(records)) * 0.98))
            if frames_file:
                # With the recorded clock, since detectors compare files' change times with it.
                header, _ = decode_batch(frames_file.read_bytes())
                frames = make_frames(records, usable, max(_EVENTS // NODES, recorded), header.wall_offset_ns)
            else:
                frames = make_frames(records, usable)
            before = os.getloadavg()[0]
            curve[str(size)] = {**measure(make_engine, frames, seconds), "batch": usable, "load_average": before}
            curve[str(size)]["compression"] = raw / sum(len(f) for f, _ in frames)
        out["curves"][variant] = curve
    out["engine_events_per_second_per_core"] = max(
        point["events_per_second"] for size, point in out["curves"]["all_rules"].items() if int(size) >= 10_000
    )
    out["load_average"] = os.getloadavg()[0]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=Path, help="file of framed batches to replay in place of the made-up mix")
    parser.add_argument("--seconds", type=float, default=1.0, help="CPU seconds per measurement")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(BATCH_SIZES))
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    found = run(arguments.seconds, arguments.frames, arguments.sizes)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{found['rules']} rules, {found['detectors']} detectors, {found['bytes_per_event']:.0f} bytes/event")
    for variant, curve in found["curves"].items():
        print(variant)
        for size, point in curve.items():
            print(
                f"  {int(size):>7} events/batch: {point['events_per_second'] / 1e6:5.2f} M events/s/core"
                f"  (wall {point['wall_events_per_second'] / 1e6:5.2f} M)  ratio {point['compression']:.1f}"
                f"  slowest {point['slowest_batch_ms']:.1f} ms  candidates/M {point['candidates_per_million']:.0f}"
                f"  load {point['load_average']:.2f}"
            )


if __name__ == "__main__":
    main()
