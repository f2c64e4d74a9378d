"""Write the seeds of the fuzzer and the layouts that its harness reads.

    python tests/fuzz/corpus.py DIRECTORY

makes ``DIRECTORY/layouts`` and ``DIRECTORY/corpus/``; events/README.md says how to run the fuzzer.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

from vedette_events import dns
from vedette_events.columns import Heap, Splitter
from vedette_events.encode import encode_event
from vedette_events.schema import EVENT_TYPES

SPLIT, DRAIN, DNS, MATCHER, SIEVE, SHELL = (bytes([kind]) for kind in range(6))


def split_seeds() -> dict[str, bytes]:
    """One record of every type, and all of them as one batch."""
    tails: dict[str, dict[str, Any]] = {e.name: {t.name: "/etc/x" for t in e.tails} for e in EVENT_TYPES}
    records = {name: encode_event(name, pid=7, **values) for name, values in tails.items()}
    seeds = {f"split-{name}": SPLIT + record for name, record in records.items()}
    return {**seeds, "split-all": SPLIT + b"".join(records.values())}


def drain_seeds() -> dict[str, bytes]:
    """Whole, busy, discarded and wrapping samples."""
    record = encode_event("exec", ino=5, path="/bin/x")

    def sample(bits: int) -> bytes:
        data = struct.pack("<II", len(record) | bits, 0) + record
        return data.ljust(-(-len(data) // 8) * 8, b"\0")

    seeds = {}
    for name, bits in (("whole", 0), ("busy", 1 << 31), ("discarded", 1 << 30)):
        ring = sample(0) + sample(bits) + sample(0)
        for start in (0, 3800):
            seeds[f"drain-{name}-{start}"] = DRAIN + struct.pack("<HH", start, len(ring)) + ring
    return seeds


def dns_seeds() -> dict[str, bytes]:
    """A query, an answer, two questions."""
    query = dns.encode_query("www.bad.example")
    both = query[:5] + b"\2" + query[6:] + b"\xc0\x0c\0\1\0\1"
    answer = dns.encode_answer("www.bad.example", "203.0.113.5")
    return {"dns-query": DNS + query, "dns-answer": DNS + answer, "dns-two": DNS + both}


def matcher_seeds() -> dict[str, bytes]:
    """Literals of every length class over a few tails."""
    heap = Heap.of([b"nc\0-e\0/bin/sh\0", b"", b"/usr/bin/xmrig --donate", b"a"])
    area = bytes([len(heap)]) + heap.offsets.tobytes() + heap.data
    seeds = {}
    for name, literals in (
        ("short", [b"a", b"nc", b"-e "]),
        ("mixed", [b"\0nc\0", b"xmrig", b"/sh"]),
        ("long", [b"/usr/bin", b"--donate", b"-e /bin/sh"]),
    ):
        text = b"".join(bytes([len(literal)]) + literal for literal in literals)
        seeds[f"matcher-{name}"] = MATCHER + text + b"\0" + area
    return seeds


def sieve_seeds() -> dict[str, bytes]:
    """Numbers of every size, which the harness makes a sieve of; shells with and without a command."""
    counts = bytes([40, 5, 2, 2, 4, 4, 4, 4, 12, 8, 3, 5])
    seeds = {
        f"sieve-{step}": SIEVE + counts + bytes((step * n + n // 7) % 250 for n in range(900)) for step in (0, 1, 3, 11)
    }
    shells = [(b"/bin/sh", b"sh\0-c\0id\0"), (b"/bin/busybox", b"sh\0"), (b"/bin/bash", b"bash\0-o\0x\0-s\0y")]
    return seeds | {f"shell-{n}": SHELL + bytes([len(path)]) + path + argv for n, (path, argv) in enumerate(shells)}


def write(directory: Path) -> None:
    """Write everything below ``directory``."""
    corpus = directory / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    (directory / "layouts").write_bytes(Splitter().layouts)
    for name, seed in (split_seeds() | drain_seeds() | dns_seeds() | matcher_seeds() | sieve_seeds()).items():
        (corpus / name).write_bytes(seed)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
