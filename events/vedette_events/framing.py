"""Batches: records framed, numbered, checksummed and compressed, as they lie in the spool and go over the wire.

A frame is little-endian:

    magic "VDB1" | u16 header size | fixed part | node name | agent version | u32 CRC-32 of all before it
    zstd frame (one, with its content size) holding the records

The CRC-32 of the payload is part of the header, so a header that checks names the payload that belongs to it.
Frames may follow one another directly. This module needs no numpy: the agent uses it.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field, replace
from enum import IntFlag

import zstandard

from vedette_events.schema import HEADER_SIZE, SCHEMA_VERSION, readable_versions

MAGIC = b"VDB1"
MAX_RAW = 16 << 20
"""Greatest size in bytes of a batch's records before compression; nothing larger is ever decompressed."""
MAX_PAYLOAD = MAX_RAW + (MAX_RAW >> 7) + 512
"""Greatest size in bytes of a compressed payload: above zstd's worst case for `MAX_RAW`."""
MAX_NODE = 253
"""Greatest length in bytes of a node's name (a DNS subdomain, as Kubernetes has it)."""
MAX_AGENT_VERSION = 64
BOOT_ID_SIZE = 16
LEVEL = -1
"""zstd level of batches: without entropy coding of literals. On recorded events frames are 1 to 5 % larger than at
level 1, agents compress them a fifth faster and detectors decompress them a fifth faster."""

_PREFIX = struct.Struct("<4sH")
_FIXED = struct.Struct("<HHBBII I 16s QQQQ q QQQ IQQQQQ")
_CRC = struct.Struct("<I")
MIN_HEADER = _PREFIX.size + _FIXED.size + _CRC.size
MAX_HEADER = MIN_HEADER + MAX_NODE + MAX_AGENT_VERSION
"""Reading this many bytes (or the file's rest) is enough for `decode_header`."""


class BatchFlags(IntFlag):
    """What is particular about a batch."""

    SNAPSHOT = 1  # holds what ran before the agent started; made from /proc
    FINAL = 2  # the last one of its session


@dataclass(frozen=True)
class Counters:
    """What became of the session's events so far (cumulative): the ledger's side that only the node knows."""

    emitted: int = 0
    deduplicated: int = 0
    dropped: int = 0
    spool_lost_batches: int = 0
    spool_lost_events: int = 0


@dataclass(frozen=True)
class BatchHeader:
    """What a batch says about itself.

    `encode_batch` fills in ``raw_size`` and ``payload_size``. Times are ns since boot; ``wall_offset_ns`` is the wall
    clock minus CLOCK_BOOTTIME when the batch was made. ``ring_from`` and ``ring_to`` are consumer positions of the
    ring buffer: equal for batches whose records did not come from it.
    """

    node: str
    boot_id: bytes
    session: int
    sequence: int
    count: int
    ring_from: int = 0
    ring_to: int = 0
    wall_offset_ns: int = 0
    created_ns: int = 0
    first_time: int = 0
    last_time: int = 0
    flags: BatchFlags = field(default=BatchFlags(0))
    counters: Counters = Counters()
    agent_version: str = ""
    schema_version: int = SCHEMA_VERSION
    raw_size: int = 0
    payload_size: int = 0


class BatchError(ValueError):
    """A batch that cannot be accepted.

    Attributes:
        reason: stable CamelCase word: BadMagic, BadHeader, HeaderChecksum, Truncated, TooLarge, UnsupportedVersion,
            PayloadChecksum, BadPayload, BadRecord.
        header: the batch's header where it could be read.
        offset: where in the given buffer the frame begins (for BadRecord: where in the records the record begins).
    """

    def __init__(self, reason: str, message: str, *, header: BatchHeader | None = None, offset: int = 0) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.header = header
        self.offset = offset


class BadRecordError(BatchError):
    """A record inside a batch is malformed.

    Attributes:
        index: number of the record in the batch, from 0.
        offset: where it begins in the decompressed records, in bytes.
        what: what is wrong with it.
    """

    def __init__(self, index: int, offset: int, what: str, *, header: BatchHeader | None = None) -> None:
        super().__init__("BadRecord", f"record {index} at byte {offset}: {what}", header=header, offset=offset)
        self.index = index
        self.what = what


class _Codecs(threading.local):
    """zstd contexts, which one thread at a time may use; making one per batch would cost more than small batches."""

    def __init__(self) -> None:
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}
        self.decompressor = zstandard.ZstdDecompressor()


_codecs = _Codecs()


def encode_batch(header: BatchHeader, records: bytes | bytearray | memoryview, level: int = LEVEL) -> bytes:
    """Frame ``records`` (whole records one after another) under ``header``; ``raw_size`` and ``payload_size`` are set.

    Args:
        header: what the batch says about itself; ``count`` must be the number of records.
        records: at most `MAX_RAW` bytes.
        level: zstd level.

    Raises:
        BatchError: ``TooLarge``, or ``BadHeader`` for values that no frame can hold.
    """
    raw_size = len(records)
    if raw_size > MAX_RAW:
        raise BatchError("TooLarge", f"{raw_size} bytes of records, more than {MAX_RAW}", header=header)
    compressor = _codecs.compressors.get(level)
    if compressor is None:
        compressor = _codecs.compressors[level] = zstandard.ZstdCompressor(level=level, write_content_size=True)
    payload = compressor.compress(records)
    node, agent_version = header.node.encode(), header.agent_version.encode()
    problem = _problem(replace(header, raw_size=raw_size), len(node), len(agent_version))
    if problem:
        raise BatchError("BadHeader", problem, header=header)
    try:
        fixed = _FIXED.pack(
            header.schema_version,
            header.flags,
            len(node),
            len(agent_version),
            raw_size,
            len(payload),
            header.count,
            header.boot_id,
            header.session,
            header.sequence,
            header.ring_from,
            header.ring_to,
            header.wall_offset_ns,
            header.created_ns,
            header.first_time,
            header.last_time,
            zlib.crc32(payload),
            *astuple(header.counters),
        )
    except struct.error as error:
        raise BatchError("BadHeader", str(error), header=header) from error
    body = _PREFIX.pack(MAGIC, MIN_HEADER + len(node) + len(agent_version)) + fixed + node + agent_version
    return b"".join((body, _CRC.pack(zlib.crc32(body)), payload))


def _problem(header: BatchHeader, node_size: int, version_size: int) -> str | None:
    """Why no frame may hold this header; None when one may."""
    if not 0 < node_size <= MAX_NODE:
        return f"node name of {node_size} bytes, not 1 to {MAX_NODE}"
    if version_size > MAX_AGENT_VERSION:
        return f"agent version of {version_size} bytes, more than {MAX_AGENT_VERSION}"
    if len(header.boot_id) != BOOT_ID_SIZE:
        return f"boot id of {len(header.boot_id)} bytes, not {BOOT_ID_SIZE}"
    if header.sequence < 1:
        return "sequence 0: the first batch of a session is 1"
    if header.ring_from > header.ring_to:
        return f"ring_from {header.ring_from} lies after ring_to {header.ring_to}"
    if header.count * HEADER_SIZE > header.raw_size or (header.raw_size and not header.count):
        return f"{header.count} records cannot be in {header.raw_size} bytes"
    return None


def _decode_header(buffer: bytes | bytearray | memoryview, offset: int) -> tuple[BatchHeader, int, int]:
    """Header, its size and the payload's CRC-32."""
    view = memoryview(buffer)[offset:]
    if bytes(view[: len(MAGIC)]) != MAGIC[: len(view)]:
        raise BatchError("BadMagic", f"a batch begins with {MAGIC!r}, not {bytes(view[:4])!r}", offset=offset)
    if len(view) < MIN_HEADER:
        raise BatchError("Truncated", f"{len(view)} bytes are less than a header", offset=offset)
    _, header_size = _PREFIX.unpack_from(view)
    if not MIN_HEADER <= header_size <= MAX_HEADER:
        raise BatchError("BadHeader", f"header size {header_size}, not {MIN_HEADER} to {MAX_HEADER}", offset=offset)
    if len(view) < header_size:
        raise BatchError("Truncated", f"{len(view)} bytes of a header of {header_size}", offset=offset)
    crc_at = header_size - _CRC.size
    if zlib.crc32(view[:crc_at]) != _CRC.unpack_from(view, crc_at)[0]:
        raise BatchError("HeaderChecksum", "the header does not match its checksum", offset=offset)
    (
        schema_version,
        flags,
        node_size,
        version_size,
        raw_size,
        payload_size,
        count,
        boot_id,
        session,
        sequence,
        ring_from,
        ring_to,
        wall_offset_ns,
        created_ns,
        first_time,
        last_time,
        payload_crc,
        *counters,
    ) = _FIXED.unpack_from(view, _PREFIX.size)
    names = bytes(view[_PREFIX.size + _FIXED.size : crc_at])
    if node_size + version_size != len(names):
        raise BatchError("BadHeader", "the names do not fill the header", offset=offset)
    try:
        node, agent_version = names[:node_size].decode(), names[node_size:].decode()
    except UnicodeDecodeError as error:
        raise BatchError("BadHeader", "node name or agent version is not UTF-8", offset=offset) from error
    header = BatchHeader(
        node=node,
        boot_id=boot_id,
        session=session,
        sequence=sequence,
        count=count,
        ring_from=ring_from,
        ring_to=ring_to,
        wall_offset_ns=wall_offset_ns,
        created_ns=created_ns,
        first_time=first_time,
        last_time=last_time,
        flags=BatchFlags(flags),
        counters=Counters(*counters),
        agent_version=agent_version,
        schema_version=schema_version,
        raw_size=raw_size,
        payload_size=payload_size,
    )
    if raw_size > MAX_RAW or payload_size > MAX_PAYLOAD:
        message = f"{raw_size} bytes of records in {payload_size}, more than {MAX_RAW}"
        raise BatchError("TooLarge", message, header=header, offset=offset)
    problem = _problem(header, node_size, version_size)
    if problem:
        raise BatchError("BadHeader", problem, header=header, offset=offset)
    return header, header_size, payload_crc


def decode_header(buffer: bytes | bytearray | memoryview, offset: int = 0) -> tuple[BatchHeader, int]:
    """The header of the frame at ``offset``, and the size of the whole frame; the payload need not be there.

    The schema version is not judged here: the agent passes on what an earlier agent spooled.

    Raises:
        BatchError: BadMagic, Truncated, BadHeader, HeaderChecksum, TooLarge.
    """
    header, header_size, _ = _decode_header(buffer, offset)
    return header, header_size + header.payload_size


def decode_batch(
    buffer: bytes | bytearray | memoryview, offset: int = 0, versions: tuple[int, ...] | None = None
) -> tuple[BatchHeader, bytes]:
    """Header and decompressed records of the frame at ``offset``; what follows the frame is not looked at.

    The records themselves are judged by `vedette_events.columns.split_batch`.

    Args:
        buffer: holds the whole frame.
        offset: where the frame begins.
        versions: schema versions to accept; by default those that this tree reads.

    Raises:
        BatchError: as `decode_header`, and UnsupportedVersion, PayloadChecksum, BadPayload; ``header`` is set then.
    """
    header, header_size, payload_crc = _decode_header(buffer, offset)
    accepted = readable_versions() if versions is None else versions
    if header.schema_version not in accepted:
        message = f"schema version {header.schema_version}; accepted: {', '.join(map(str, accepted))}"
        raise BatchError("UnsupportedVersion", message, header=header, offset=offset)
    start = offset + header_size
    payload = memoryview(buffer)[start : start + header.payload_size]
    if len(payload) < header.payload_size:
        message = f"{len(payload)} bytes of a payload of {header.payload_size}"
        raise BatchError("Truncated", message, header=header, offset=offset)
    if zlib.crc32(payload) != payload_crc:
        raise BatchError("PayloadChecksum", "the payload does not match its checksum", header=header, offset=offset)
    try:
        # zstd allocates what the frame itself declares, so that is compared before anything is decompressed.
        declared = zstandard.frame_content_size(payload)
        if declared != header.raw_size:
            message = f"zstd frame declares {declared} bytes, the header {header.raw_size}"
            raise BatchError("BadPayload", message, header=header, offset=offset)
        records = _codecs.decompressor.decompress(payload, max_output_size=MAX_RAW, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise BatchError("BadPayload", str(error), header=header, offset=offset) from error
    if len(records) != header.raw_size:
        message = f"{len(records)} bytes of records, the header says {header.raw_size}"
        raise BatchError("BadPayload", message, header=header, offset=offset)
    return header, records


def iter_batches(buffer: bytes | bytearray | memoryview, offset: int = 0) -> Iterator[tuple[BatchHeader, memoryview]]:
    """Every frame in ``buffer`` from ``offset`` on: its header and its bytes, still compressed (for `decode_batch`).

    Raises:
        BatchError: as `decode_header`, at the first bad frame; ``Truncated`` when the last frame is not whole. Its
            ``offset`` is where the frame begins: everything before it has been yielded.
    """
    view = memoryview(buffer)
    while offset < len(view):
        header, size = decode_header(view, offset)
        if len(view) - offset < size:
            message = f"{len(view) - offset} bytes of a batch of {size}"
            raise BatchError("Truncated", message, header=header, offset=offset)
        yield header, view[offset : offset + size]
        offset += size
