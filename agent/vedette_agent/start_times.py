"""When each process was started, to the nanosecond, as the BPF programs report it.

/proc/<pid>/stat knows it in clock ticks of 10 ms only, and the detector joins a process's events by its pid and its
exact start. So the kernel's task iterator is asked (BPF_TRACE_ITER on ``bpf_iter_task``, Linux 5.8 and later). Its
program is sixteen instructions, written here: they write the id and the start time of every thread group's leader.

Needs CAP_BPF and CAP_PERFMON and libbpf, as loading the other programs does.
"""

from __future__ import annotations

import ctypes
import os
import struct

RECORD = struct.Struct("=QQ")
"""What the iterator writes for each process: its id in the initial namespace, its start in ns since boot."""

_TYPE_TRACING, _TRACE_ITER, _SEQ_WRITE = 26, 28, 127  # enums of <linux/bpf.h>
_KIND_STRUCT, _KIND_FUNC = 4, 12  # <linux/btf.h>
_OPTIONS = struct.Struct("@NiIIIIIIII4xPPIIPIIIIP")  # struct bpf_prog_load_opts of libbpf 1.0
_LICENSE = b"Dual BSD/GPL"  # bpf_seq_write is only for programs that may be used under the GPL


def read() -> bytes:
    """One `RECORD` for each process that runs now.

    Raises:
        OSError: the kernel has no such iterator, or does not allow it.
    """
    bpf = _library()
    btf = bpf.btf__load_vmlinux_btf()
    if not btf:
        raise OSError(ctypes.get_errno(), "the kernel's type information cannot be read")
    try:
        offsets = _members(bpf, btf, b"task_struct", (b"pid", b"tgid", b"start_boottime"))
        target = bpf.btf__find_by_name_kind(btf, b"bpf_iter_task", _KIND_FUNC)
    finally:
        bpf.btf__free(btf)
    if target <= 0:
        raise OSError(0, "the kernel has no task iterator")
    code = _instructions(offsets[b"pid"], offsets[b"tgid"], offsets[b"start_boottime"])
    options = _OPTIONS.pack(_OPTIONS.size, 0, _TRACE_ITER, *(0,) * 4, target, *(0,) * 2, *(0,) * 2, 0, 0, 0, *(0,) * 5)
    fds: list[int] = []
    try:
        fds.append(_fd(bpf.bpf_prog_load(_TYPE_TRACING, b"start_times", _LICENSE, code, len(code) // 8, options)))
        fds.append(_fd(bpf.bpf_link_create(fds[0], 0, _TRACE_ITER, None)))
        fds.append(_fd(bpf.bpf_iter_create(fds[1])))
        parts = []
        while part := os.read(fds[2], 1 << 16):
            parts.append(part)
        return b"".join(parts)
    finally:
        for fd in reversed(fds):
            os.close(fd)


def _fd(result: int) -> int:
    if result < 0:
        raise OSError(-result, f"the task iterator is refused: {os.strerror(-result)}")
    return result


def parse(records: bytes) -> dict[int, int]:
    """Start in ns since boot by process id."""
    whole = len(records) // RECORD.size * RECORD.size
    return dict(RECORD.iter_unpack(records[:whole]))


def _library() -> ctypes.CDLL:
    bpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
    pointer, integer, text, word = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32
    for name, result, arguments in (
        ("btf__load_vmlinux_btf", pointer, ()),
        ("btf__free", None, (pointer,)),
        ("btf__find_by_name_kind", ctypes.c_int32, (pointer, text, word)),
        ("btf__type_by_id", pointer, (pointer, word)),
        ("btf__name_by_offset", text, (pointer, word)),
        ("bpf_prog_load", integer, (integer, text, text, text, ctypes.c_size_t, text)),
        ("bpf_link_create", integer, (integer, integer, integer, pointer)),
        ("bpf_iter_create", integer, (integer,)),
    ):
        function = getattr(bpf, name)
        function.restype = result
        function.argtypes = arguments
    return bpf


def _members(bpf: ctypes.CDLL, btf: int, name: bytes, wanted: tuple[bytes, ...]) -> dict[bytes, int]:
    """Offsets in bytes of members of a kernel structure, members of anonymous structures in it included."""
    root = bpf.btf__find_by_name_kind(btf, name, _KIND_STRUCT)
    found: dict[bytes, int] = {}
    waiting = [(root, 0)]
    while waiting:
        type_id, base = waiting.pop()
        address = bpf.btf__type_by_id(btf, type_id) if type_id > 0 else None
        if not address:
            continue
        _, info, _ = struct.unpack("=III", ctypes.string_at(address, 12))
        kind, count = info >> 24 & 0x1F, info & 0xFFFF
        if kind not in (_KIND_STRUCT, 5):  # 5: a union
            continue
        for name_at, member_type, offset in struct.iter_unpack("=III", ctypes.string_at(address + 12, 12 * count)):
            # With the flag set, the upper eight bits are the size of a bit field.
            bits = offset & 0xFFFFFF if info >> 31 else offset
            member = bpf.btf__name_by_offset(btf, name_at) or b""
            if member in wanted:
                found.setdefault(member, base + bits // 8)
            elif not member:
                waiting.append((member_type, base + bits // 8))
    if len(found) < len(wanted):
        raise OSError(0, f"the kernel's {name.decode()} has another form than expected")
    return found


def _instructions(pid_at: int, tgid_at: int, start_at: int) -> bytes:
    """The iterator's program. r6: the task, r7: the iterator's meta data, r10: the stack."""

    def code(opcode: int, dst: int = 0, src: int = 0, offset: int = 0, value: int = 0) -> bytes:
        return struct.pack("=BBhi", opcode, src << 4 | dst, offset, value)

    load64, load32, store64, move, move_value, add = 0x79, 0x61, 0x7B, 0xBF, 0xB7, 0x07
    return b"".join(
        (
            code(load64, 6, 1, 8),  # ctx->task; NULL when the walk has ended
            code(0x15, 6, 0, 12),  # if r6 == 0 goto the end
            code(load64, 7, 1, 0),  # ctx->meta
            code(load32, 2, 6, pid_at),
            code(load32, 3, 6, tgid_at),
            code(0x5D, 2, 3, 8),  # if r2 != r3 (not the group's leader) goto the end
            code(store64, 10, 3, -16),
            code(load64, 4, 6, start_at),
            code(store64, 10, 4, -8),
            code(load64, 1, 7, 0),  # meta->seq
            code(move, 2, 10),
            code(add, 2, 0, 0, -16),
            code(move_value, 3, 0, 0, RECORD.size),
            code(0x85, 0, 0, 0, _SEQ_WRITE),
            code(move_value, 0, 0, 0, 0),
            code(0x95),
        )
    )
