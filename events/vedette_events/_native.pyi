"""C helpers of the event path. Everything here checks its input and runs without the interpreter's lock.

*heap, offsets* are those of `vedette_events.columns.Heap`: bytes, and N + 1 uint32 (any contiguous buffer).
Arrays are returned as bytes, for `numpy.frombuffer`. The implementation is ``_core.h`` and what it names.
"""

from collections.abc import Sequence
from typing import Any, final

import numpy.typing as npt
from typing_extensions import Buffer

_Array = Buffer | npt.NDArray[Any]

MAX_TYPES: int
MAX_TAILS: int
SHELL_GIVEN: int
SHELL_DASH_C: int
SHELL_BUSYBOX: int

class SplitError(ValueError):
    """A malformed record; args are (problem, index, offset, type code, tail, value, bound), see ``enum vd_problem``."""

class RingError(RuntimeError):
    """The ring buffer's memory contradicts itself."""

def split(records: bytes, layouts: bytes, /) -> dict[int, tuple[bytes, bytes, tuple[tuple[bytes, bytes], ...]]]:
    """Records by type code: (fixed parts, uint32 positions in the batch, (heap, offsets) of each tail).

    `vedette_events.columns.split_batch` is what to call.

    Raises:
        SplitError: the first malformed record.
    """

def scan(records: bytes, /) -> tuple[int, int, int]:
    """Number of records, least and greatest time (ns since boot; 0 and 0 for no records), by their headers alone.

    Raises:
        SplitError: sizes that do not fit.
    """

def keep_freed_memory(limit: int = 256 << 20, /) -> None:
    """Let the C allocator keep up to ``limit`` bytes of freed memory instead of giving it back to the kernel.

    For a whole process that handles large batches one after another. Measured: the split of 100,000 records becomes
    1.6 times faster, because most of its time went into page faults.

    Raises:
        ValueError: more than 2 GiB.
    """

def basename_hashes(heap: bytes, offsets: _Array, /) -> bytes:
    """FNV-1a (uint64) of each tail's bytes after its last slash."""

def tail_hashes(heap: bytes, offsets: _Array, /) -> bytes:
    """FNV-1a (uint64) of each tail's bytes."""

def fnv1a(data: Buffer, /) -> int:
    """64-bit FNV-1a hash."""

def dns_names(heap: bytes, offsets: _Array, /) -> tuple[bytes, bytes]:
    """The first question's name in each DNS message: a heap of lower-case text without the final dot.

    Labels are joined by dots whatever their bytes; empty for the root and for messages that cannot be read.
    """

def dns_match(heap: bytes, offsets: _Array, table: _Array, /) -> bytes:
    """Rows (uint32, ascending) of DNS messages that ask for a name of the table or for one below it.

    Args:
        heap: DNS messages.
        offsets: as above.
        table: FNV-1a hashes (uint64, sorted ascending) of lower-case names without final dot.
    """

@final
class Matcher:
    """Finds which of many literals occur in which tails.

    ASCII letters match in either case. A NUL in a literal matches the beginning or end of a tail, and the end of an
    argument inside ``args`` tails; a space in a literal matches a space or the end of an argument, so that a command
    line written with spaces is found in its argument vector. A match never reaches into a neighbouring tail.

    Raises:
        ValueError: an empty literal.
        TypeError: a literal that is not bytes.
    """

    def __new__(cls, literals: Sequence[bytes]) -> Matcher: ...
    def __len__(self) -> int: ...
    def search(self, heap: bytes, offsets: _Array, /) -> tuple[bytes, bytes]:
        """Pairs of (row, index of the literal), as two uint32 arrays of equal length; each pair once, in no order."""

def shell_arguments(
    path_heap: bytes, path_offsets: _Array, argv_heap: bytes, argv_offsets: _Array, rows: _Array, /
) -> bytes:
    """What path and arguments of some execs say of a shell: one byte of ``SHELL_`` bits for each row.

    ``SHELL_GIVEN``: it was given a command or a script (options and their values left out). ``SHELL_DASH_C``: its
    second string is ``-c`` and something follows. ``SHELL_BUSYBOX``: the program is called busybox, so the others do
    not count.

    Args:
        path_heap: paths of all execs.
        path_offsets: as above.
        argv_heap: argument vectors of all execs.
        argv_offsets: as above.
        rows: which of them, uint32.
    """

@final
class Sieve:
    """Which rows of one event type pass which of many plans.

    `vedette_detector.engine.prefilter` packs them; the parts are arrays of the structs in ``_core.h``.

    Args:
        row_size: bytes of a row.
        watched: how many sets of values change from call to call.
        late_tails: in how many tails literals are looked for that are too short to be searched everywhere.
        masks: ``struct vd_mask``.
        plans: ``struct vd_plan``.
        groups: ``struct vd_group``.
        literals: uint32: where each literal's groups begin in ``indexes``, and where the last one's end.
        indexes: uint32: numbers of masks, groups and plans.
        values: uint64: sets and networks.
        lates: ``struct vd_late``.
        text: the short literals, lower case.

    Raises:
        ValueError: the parts do not fit each other.
    """

    def __new__(
        cls,
        row_size: int,
        watched: int,
        late_tails: int,
        masks: bytes,
        plans: bytes,
        groups: bytes,
        literals: bytes,
        indexes: bytes,
        values: bytes,
        lates: bytes,
        text: bytes,
    ) -> Sieve: ...
    def select(
        self,
        rows: _Array,
        watched: tuple[bytes | None, ...],
        found: tuple[tuple[bytes, bytes, int], ...],
        late: tuple[tuple[bytes, _Array], ...],
        /,
    ) -> dict[int, bytes]:
        """Rows (uint32, ascending) by the plans' answers; answers without rows are left out.

        Args:
            rows: the rows.
            watched: the sets that change, uint64 ascending.
            found: for each tail that was searched: what `Matcher.search` gave, and the number of its first literal.
            late: heap and offsets of each tail for short literals.
        """

@final
class Ring:
    """Consumer of a BPF ring buffer map (or of a file with the same layout, in tests).

    ``drain`` copies what is there and leaves the consumer position alone; ``commit`` gives the space back to the
    kernel once the records are safe elsewhere. Not to be used from two threads at once.

    Args:
        map_fd: descriptor of the map; may be closed afterwards.
        size: the map's max_entries in bytes.

    Raises:
        OSError: the map cannot be mapped.
        ValueError: a size that no ring has.
    """

    def __new__(cls, map_fd: int, size: int) -> Ring: ...
    def drain(self, max_bytes: int = 1 << 20, /) -> tuple[bytes, int, int]:
        """Whole records from the consumer position on, the position behind the last of them, and their number.

        Stops at a sample that is still being written, when ``max_bytes`` (at least 65536) are full, or at the end.
        Samples that the program discarded are skipped, and so are samples that hold no record (see ``malformed``).

        Raises:
            RingError: the ring's memory contradicts itself.
        """
    def commit(self, position: int, /) -> None:
        """Give back everything before ``position``.

        Raises:
            ValueError: not a multiple of 8 between ``consumer`` and ``producer``.
        """
    def drain_new_executables(self) -> list[tuple[int, int, int, int, bytes]]:
        """(pid, dev, ino, ctime, path) of executables drained since the last call whose (dev, ino, ctime) is new.

        From exec and mmap records. Some 12,000 file states are remembered, then all are forgotten at once, so a file
        may be named again later. At most 1024 wait at a time; further ones are named when they are seen again.
        """
    def close(self) -> None:
        """Unmap; everything but ``close``, ``size`` and ``malformed`` raises ValueError afterwards."""
    @property
    def consumer(self) -> int:
        """Position up to which samples are given back to the kernel."""
    @property
    def producer(self) -> int:
        """Position up to which the kernel has reserved samples."""
    @property
    def size(self) -> int:
        """Size of the data in bytes."""
    @property
    def malformed(self) -> int:
        """Samples skipped so far because they hold no record."""
