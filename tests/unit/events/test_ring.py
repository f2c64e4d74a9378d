from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette_events._native import Ring, RingError
from vedette_events.encode import encode_event

PAGE = mmap.PAGESIZE
BUSY, DISCARD = 1 << 31, 1 << 30
EXEC = encode_event("exec", pid=3, dev=8, ino=5, ctime=9, path="/bin/tool")
EXIT = encode_event("exit", pid=3)


class FakeRing:
    """A file laid out as the kernel lays out a ring buffer, and the kernel's side of writing it."""

    def __init__(self, size: int = PAGE) -> None:
        self.size = size
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * PAGE + size)
        self.memory = mmap.mmap(self.fd, 2 * PAGE + size)
        self.position = 0

    def start_at(self, position: int) -> None:
        self.position = position
        struct.pack_into("<Q", self.memory, 0, position)
        struct.pack_into("<Q", self.memory, PAGE, position)

    def _write(self, position: int, data: bytes) -> None:
        for i in range(0, len(data), 8):  # samples are multiples of 8 and so never break inside one
            at = 2 * PAGE + (position + i) % self.size
            self.memory[at : at + 8] = data[i : i + 8]

    def put(self, sample: bytes, bits: int = 0) -> int:
        at = self.position
        data = struct.pack("<II", len(sample) | bits, 0) + sample
        data = data.ljust(-(-len(data) // 8) * 8, b"\0")
        self._write(at, data)
        self.position += len(data)
        struct.pack_into("<Q", self.memory, PAGE, self.position)
        return at

    def finish(self, at: int, sample: bytes, bits: int = 0) -> None:
        self._write(at, struct.pack("<II", len(sample) | bits, 0))

    def close(self) -> None:
        self.memory.close()
        os.close(self.fd)


@pytest.fixture
def kernel() -> Iterator[FakeRing]:
    fake = FakeRing()
    yield fake
    fake.close()


@pytest.fixture
def ring(kernel: FakeRing) -> Iterator[Ring]:
    ring = Ring(kernel.fd, kernel.size)
    yield ring
    ring.close()


def test_an_empty_ring(ring: Ring) -> None:
    assert ring.drain() == (b"", 0, 0)
    assert (ring.consumer, ring.producer, ring.size, ring.malformed) == (0, 0, PAGE, 0)


def test_drain_leaves_the_position_until_commit(kernel: FakeRing, ring: Ring) -> None:
    kernel.put(EXEC)
    kernel.put(EXIT)
    records, position, count = ring.drain()
    assert (records, position, count) == (EXEC + EXIT, kernel.position, 2)
    assert ring.consumer == 0
    assert ring.drain() == (records, position, count)
    ring.commit(position)
    assert (ring.consumer, ring.drain()) == (position, (b"", position, 0))


def test_drain_stops_at_a_sample_that_is_still_being_written(kernel: FakeRing, ring: Ring) -> None:
    kernel.put(EXIT)
    at = kernel.put(EXEC, BUSY)
    kernel.put(EXIT)
    assert ring.drain() == (EXIT, at, 1)
    kernel.finish(at, EXEC)
    assert ring.drain() == (EXIT + EXEC + EXIT, kernel.position, 3)


def test_discarded_samples_are_skipped(kernel: FakeRing, ring: Ring) -> None:
    kernel.put(EXEC, DISCARD)
    kernel.put(EXIT)
    kernel.put(EXEC, DISCARD)
    assert ring.drain() == (EXIT, kernel.position, 1)
    assert ring.malformed == 0


@pytest.mark.parametrize(
    "sample",
    [b"", b"short", EXIT[:-8], struct.pack("<I", 12) + EXIT[4:], struct.pack("<I", 81) + EXIT[4:] + bytes(8)],
)
def test_samples_without_a_record_are_counted_once(kernel: FakeRing, ring: Ring, sample: bytes) -> None:
    kernel.put(sample)
    kernel.put(EXIT)
    for _ in range(3):
        assert ring.drain() == (EXIT, kernel.position, 1)
        assert ring.malformed == 1


def test_a_sample_reserved_larger_than_its_record(kernel: FakeRing, ring: Ring) -> None:
    kernel.put(EXIT + b"left over")
    assert ring.drain()[0] == EXIT


def test_records_wrap_around_the_end(kernel: FakeRing, ring: Ring) -> None:
    expected = b""
    for number in range(200):
        record = encode_event("open", pid=number, path="/x" * (number % 40))
        kernel.put(record)
        records, position, count = ring.drain()
        assert (records, count) == (record, 1)
        ring.commit(position)
        expected += record
    assert ring.consumer > 4 * PAGE


def test_max_bytes_bounds_a_drain() -> None:
    kernel = FakeRing(1 << 17)
    ring = Ring(kernel.fd, kernel.size)
    for _ in range(1400):
        kernel.put(EXIT)
    records, position, count = ring.drain(1)
    assert (len(records), count) == (65536 // len(EXIT) * len(EXIT), 65536 // len(EXIT))
    ring.commit(position)
    assert ring.drain()[2] == 1400 - count
    kernel.close()


def test_commit_takes_only_positions_between_consumer_and_producer(kernel: FakeRing, ring: Ring) -> None:
    kernel.start_at(8000)
    kernel.put(EXIT)
    ring.commit(8008)
    for position in (8000, 8009, kernel.position + 8):
        with pytest.raises(ValueError, match=rf"^position {position} is not a multiple of 8 from 8008 to "):
            ring.commit(position)
    with pytest.raises(OverflowError):
        ring.commit(-1)
    with pytest.raises(TypeError):
        ring.commit("8")  # type: ignore[arg-type]
    assert ring.consumer == 8008


def test_new_executables_are_named_once(kernel: FakeRing, ring: Ring) -> None:
    mapped = encode_event("mmap", pid=4, dev=8, ino=6, ctime=9, path="/lib/x.so")
    for record in (EXEC, EXEC, mapped, encode_event("exec", ino=0), encode_event("open", ino=77)):
        kernel.put(record)
    ring.drain()
    ring.drain()
    assert ring.drain_new_executables() == [(3, 8, 5, 9, b"/bin/tool"), (4, 8, 6, 9, b"/lib/x.so")]
    assert ring.drain_new_executables() == []
    kernel.put(encode_event("exec", pid=5, dev=8, ino=5, ctime=10, path="/bin/tool"))
    ring.drain()
    assert ring.drain_new_executables() == [(5, 8, 5, 10, b"/bin/tool")]


def test_new_executables_are_bounded_and_forgotten_late() -> None:
    kernel = FakeRing(1 << 20)
    ring = Ring(kernel.fd, kernel.size)
    seen = 0
    for start in range(1, 14001, 1000):
        for ino in range(start, start + 1000):
            kernel.put(encode_event("exec", ino=ino, path="/x"))
        ring.commit(ring.drain(1 << 20)[1])
        seen += len(ring.drain_new_executables())
    assert seen == 14000
    for ino in range(20000, 22000):
        kernel.put(encode_event("exec", ino=ino, path="/x"))
    ring.commit(ring.drain(1 << 20)[1])
    assert len(ring.drain_new_executables()) == 1024
    kernel.put(encode_event("exec", ino=21999, path="/x"))
    ring.drain()
    assert [e[2] for e in ring.drain_new_executables()] == [21999]
    kernel.close()


@pytest.mark.parametrize(("size", "bits"), [(PAGE, 0), (1 << 29, 0), (1 << 29, DISCARD)])
def test_a_sample_beyond_the_producer_is_corruption(kernel: FakeRing, ring: Ring, size: int, bits: int) -> None:
    at = kernel.put(EXIT)
    kernel._write(at, struct.pack("<II", size | bits, 0))
    with pytest.raises(RingError, match=r"^the ring is corrupt at position 0$"):
        ring.drain()


@pytest.mark.parametrize(("consumer", "producer"), [(0, PAGE + 8), (16, 8), (4, 80)])
def test_positions_that_contradict_each_other(kernel: FakeRing, ring: Ring, consumer: int, producer: int) -> None:
    struct.pack_into("<Q", kernel.memory, 0, consumer)
    struct.pack_into("<Q", kernel.memory, PAGE, producer)
    with pytest.raises(RingError, match=rf"^the ring is corrupt at position {consumer}$"):
        ring.drain()


def test_a_closed_ring(ring: Ring) -> None:
    ring.close()
    ring.close()
    assert (ring.size, ring.malformed) == (PAGE, 0)
    for use in (ring.drain, ring.drain_new_executables, lambda: ring.commit(0), lambda: ring.consumer):
        with pytest.raises(ValueError, match=r"^the ring is closed$"):
            use()


@pytest.mark.parametrize("size", [0, 1, PAGE - 1, PAGE + 8, 3 * PAGE, 1 << 40])
def test_sizes_that_no_ring_has(kernel: FakeRing, size: int) -> None:
    with pytest.raises(ValueError, match=rf"^size {size} is not a power of two from one page to "):
        Ring(kernel.fd, size)


def test_files_that_are_no_ring(kernel: FakeRing) -> None:
    with pytest.raises(ValueError, match=r"too short for a ring of 8192$"):
        Ring(kernel.fd, 8192)
    reader, writer = os.pipe()
    with pytest.raises(OSError, match=r"Permission denied"):
        Ring(reader, PAGE)
    os.close(reader)
    os.close(writer)
    with pytest.raises(OSError, match=r"Bad file descriptor"):
        Ring(reader, PAGE)


@given(st.binary(max_size=400), st.integers(0, 600), st.integers(0, PAGE * 2), st.booleans())
def test_any_memory_is_drained_or_called_corrupt(data: bytes, consumer: int, ahead: int, aligned: bool) -> None:
    kernel = FakeRing()
    ring = Ring(kernel.fd, kernel.size)
    kernel.memory[2 * PAGE : 2 * PAGE + len(data)] = data
    consumer = consumer & ~7 if aligned else consumer
    struct.pack_into("<Q", kernel.memory, 0, consumer)
    struct.pack_into("<Q", kernel.memory, PAGE, consumer + (ahead & ~7))
    try:
        records, position, _ = ring.drain()
    except RingError:
        corrupt = True
    else:
        corrupt = False
        assert consumer <= position <= consumer + ahead
        assert len(records) <= position - consumer
    assert corrupt or consumer % 8 == 0
    ring.close()
    kernel.close()


@pytest.mark.live
def test_a_real_ring_can_be_mapped() -> None:
    if os.uname().machine != "x86_64" or os.geteuid() != 0:
        pytest.skip("needs root on x86-64")
    # BPF_MAP_CREATE (0) of a BPF_MAP_TYPE_RINGBUF (27); include/uapi/linux/bpf.h.
    libc = ctypes.CDLL(None, use_errno=True)
    attributes = ctypes.create_string_buffer(struct.pack("<IIIII", 27, 0, 0, 1 << 16, 0), 128)
    fd = libc.syscall(321, 0, attributes, 128)
    if fd < 0:
        pytest.skip(f"no ring buffers here: {os.strerror(ctypes.get_errno())}")
    ring = Ring(fd, 1 << 16)
    os.close(fd)
    assert (ring.drain(), ring.consumer, ring.producer) == ((b"", 0, 0), 0, 0)
    ring.commit(0)
    ring.close()
