"""What the agent makes itself waits for room in the spool, in order, and none of it is lost or doubled."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from vedette_agent.drain import Batches, KernelCounters
from vedette_agent.own_records import OwnRecords
from vedette_agent.spool import Spool
from vedette_events.encode import encode_event
from vedette_events.framing import BatchFlags, iter_batches


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mount: {mounted.stderr.decode()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_what_has_no_room_waits_and_goes_in_order(small_disk: Path) -> None:
    spool = Spool(small_disk / "spool")
    batches = Batches(
        spool,
        node="n",
        boot_id=bytes(16),
        session=1,
        counters=lambda: KernelCounters(emitted=0, deduplicated=0, dropped=0),
    )
    own = OwnRecords(batches)
    record = encode_event("file_hash", time=1, pid=1)
    own.put(record, 1)
    assert own.flush()
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    noise = [encode_event("exec", time=n, path="/" + os.urandom(90).hex()) for n in range(60)]
    own.put(b"".join(noise), len(noise), BatchFlags.SNAPSHOT)
    own.put(record * 2, 2)
    assert not own.flush()
    assert not own.flush()
    filler.unlink()
    assert own.flush()
    chunk = spool.read(1 << 20)
    assert chunk is not None
    found = [(header.sequence, header.count, header.flags) for header, _ in iter_batches(chunk.body)]
    assert found == [(1, 1, 0), (2, 60, BatchFlags.SNAPSHOT), (3, 2, 0)]
    spool.close()
