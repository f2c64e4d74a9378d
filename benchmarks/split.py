"""Speed of the split and of the matcher on one core, with the machine's load beside each figure.

    .venv/bin/python benchmarks/split.py [--json FILE]

The records are synthetic: 20 % exec, 50 % open, 15 % connect, 10 % exit, 5 % dns, in random order, with paths and
command lines of the lengths and vocabulary of an ordinary server.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vedette_events import _native
from vedette_events.columns import Heap, split_batch
from vedette_events.encode import encode_event

PROGRAMS = ["python3", "bash", "sh", "grep", "sed", "node", "java", "curl", "runc", "containerd-shim", "git", "sleep"]
DIRECTORIES = ["/usr/bin", "/bin", "/usr/local/bin", "/usr/lib/x86_64-linux-gnu", "/opt/app/bin", "/usr/sbin"]
WORDS = ["--config", "/etc/app/config.yaml", "-c", "--verbose", "main", "/var/log", "-m", "http.server", "8080"]
WORDS += [
    "--namespace",
    "kube-system",
    "get",
    "pods",
    "-o",
    "json",
    "status",
    "/tmp/work",
    "import sys; print(sys.version)",
]
FILES = [
    "/usr/lib/x86_64-linux-gnu/libc.so.6",
    "/proc/self/status",
    "/etc/passwd",
    "/var/lib/app/data/segment-00017.db",
    "/sys/fs/cgroup/kubepods.slice/memory.max",
    "/home/user/.cache/tool/index.json",
    "/tmp/build/output.o",
]


def make_event(rng: random.Random) -> bytes:
    kind = rng.random()
    common: dict[str, Any] = {"pid": rng.randrange(1, 1 << 22), "time": rng.getrandbits(60)}
    if kind < 0.20:
        program = f"{rng.choice(DIRECTORIES)}/{rng.choice(PROGRAMS)}"
        argv = [program, *rng.choices(WORDS, k=rng.randrange(8))]
        return encode_event("exec", path=program, argv=argv, cwd="/home/user/project", filename=program, **common)
    if kind < 0.70:
        return encode_event("open", path=rng.choice(FILES), **common)
    if kind < 0.85:
        return encode_event("connect", raddr="198.51.100.7", rport=443, **common)
    if kind < 0.95:
        return encode_event("exit", **common)
    question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03api\x07example\x03com\0\0\x01\0\x01"
    return encode_event("dns", direction="QUERY", payload=question, **common)


def make_literals(rng: random.Random, count: int, shortest: int) -> list[bytes]:
    """Literals as rules have them: names of tools, options, paths and random words."""
    literals = {
        b"\0nc ",
        b"/dev/tcp/",
        b"xmrig",
        b"stratum+tcp",
        b"/etc/shadow",
        b" -e /bin/sh",
        b"nmap\0",
        b"docker.sock",
    }
    literals = {literal for literal in literals if len(literal) >= shortest}
    letters = "etaoinshrdlucmfwypvbgkqjxz-_./"
    while len(literals) < count:
        literals.add("".join(rng.choices(letters, k=rng.randrange(shortest, 16))).encode())
    return sorted(literals)


def best_seconds(work: Callable[[], object], seconds: float = 1.0) -> float:
    """The least time of one call in seconds, repeating for ``seconds``."""
    best, end = float("inf"), time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def run() -> dict[str, float]:
    rng = random.Random(1)
    _native.keep_freed_memory()
    distinct = [make_event(rng) for _ in range(5000)]
    figures: dict[str, float] = {}
    for count in (500, 2000, 10_000, 50_000):
        records = b"".join(rng.choices(distinct, k=count))
        seconds = best_seconds(lambda records=records: split_batch(records))  # type: ignore[misc]
        figures[f"split_{count}_events_per_second"] = count / seconds
        figures[f"split_{count}_bytes_per_second"] = len(records) / seconds
    batch = split_batch(b"".join(rng.choices(distinct, k=50_000)))
    argv: Heap = batch.types["exec"].tails["argv"]
    for count, shortest in ((100, 4), (1000, 3), (1000, 4), (1000, 5), (1000, 7), (5000, 4)):
        matcher = _native.Matcher(make_literals(rng, count, shortest))
        seconds = best_seconds(lambda matcher=matcher: matcher.search(argv.data, argv.offsets))  # type: ignore[misc]
        figures[f"matcher_{count}_literals_from_{shortest}_bytes_per_second"] = len(argv.data) / seconds
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    figures = run()
    load = os.getloadavg()[0]
    for name, value in figures.items():
        text = f"{value / 1e6:8.1f} M events/s" if name.endswith("events_per_second") else f"{value / 1e9:8.2f} GB/s"
        print(f"{name:52} {text}   load {load:.2f}")
    if options.json:
        options.json.write_text(json.dumps({**figures, "load_average": load}, indent=2) + "\n")


if __name__ == "__main__":
    main()
