"""What differs from kernel to kernel, and why: everything that is not the same for all of `acts`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]
Version = tuple[int, int]


@dataclass(frozen=True)
class Difference:
    """On kernels before ``version``, ``instead`` of the records that ``act`` makes on later ones."""

    act: str
    version: Version
    why: str
    instead: Callable[[list[Record]], list[Record]]


def _only_set_up(records: list[Record]) -> list[Record]:
    return [
        {"event": "io_uring", "pid": record["pid"], "opcode": 0xFFFFFFFF} if record["event"] == "io_uring" else record
        for record in records
    ]


def _lower_layer_unknown(records: list[Record]) -> list[Record]:
    return [{**record, "file_bits": record["file_bits"] & ~4} for record in records]


def _beginning_missing(records: list[Record]) -> list[Record]:
    return [{**record, "flags": 32, "path": "/" + "/".join(record["path"].split("/")[-64:])} for record in records]


_NO_REQUESTS = "the tracepoint io_uring_submit_req is there since 6.4: before, only that a ring was set up is told"
DIFFERENCES = (
    Difference("open_and_remove_through_io_uring", (6, 4), _NO_REQUESTS, _only_set_up),
    Difference("connections_by_other_ways", (6, 4), _NO_REQUESTS, _only_set_up),
    Difference(
        "programs_in_an_overlay",
        (6, 1),
        "the number of lower layers lies where only overlayfs' own type tells: NO_LOWER is never set",
        _lower_layer_unknown,
    ),
)
BASE_DIFFERENCES = (
    Difference(
        "deep_path",
        (999, 0),
        "the base object has no bpf_loop and walks 64 components: the beginning of a deeper path is missing",
        _beginning_missing,
    ),
)
"""What the base object does differently on every kernel."""
SINCE: dict[str, Version] = {"io_uring_submit_req": (6, 4)}
"""The hooks that only some kernels have, with the first version that has them."""


def expected_on(version: Version, act: str, records: list[Record], *, base: bool) -> list[Record]:
    """What an act must make on a kernel of this version; ``base``: with the base object."""
    for difference in DIFFERENCES + (BASE_DIFFERENCES if base else ()):
        if difference.act == act and version < difference.version:
            records = difference.instead(records)
    return records


def missing_on(version: Version) -> set[str]:
    """Hooks that a kernel of this version does not have."""
    return {hook for hook, since in SINCE.items() if version < since}
