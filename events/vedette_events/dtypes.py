"""numpy dtypes of the records' fixed parts, derived from the schema.

`dtype("exec")` is structured, one field per header field, own field and tail length (``<tail>_len``), at the
record's own offsets; its itemsize is the size of the fixed part. ``comm`` is ``S16``; ``addr`` is four
little-endian uint32 words of network-order bytes (an IPv4 address is word 3); ``sha256`` is 32 uint8.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from vedette_events import schema
from vedette_events.schema import BY_NAME, FIELD_SIZES, HEADER, HEADER_SIZE, SCHEMA_VERSION, EventType, Field, FieldKind

_FORMATS: dict[FieldKind, Any] = {
    "u8": "u1",
    "u16": "<u2",
    "u32": "<u4",
    "u64": "<u8",
    "s32": "<i4",
    "s64": "<i8",
    "comm": "S16",
    "addr": ("<u4", (4,)),
    "sha256": ("u1", (32,)),
}


def _structured(fields: Sequence[Field], tails: Sequence[str], itemsize: int) -> np.dtype[np.void]:
    names = [f.name for f in fields] + [f"{t}_len" for t in tails]
    formats = [_FORMATS[f.kind] for f in fields] + ["<u2"] * len(tails)
    sizes = [FIELD_SIZES[f.kind] for f in fields] + [2] * len(tails)
    offsets = [sum(sizes[:i]) for i in range(len(sizes))]
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": itemsize})


def event_dtype(event: EventType, version: int = SCHEMA_VERSION) -> np.dtype[np.void]:
    """The dtype of ``event``'s fixed part in schema ``version``."""
    tails = [t.name for t in schema.tails_of(event, version)]
    return _structured((*HEADER, *schema.fields_of(event, version)), tails, schema.fixed_size(event, version))


@cache
def dtype(name: str, version: int = SCHEMA_VERSION) -> np.dtype[np.void]:
    """The dtype of the event type called ``name`` in schema ``version``.

    Raises:
        KeyError: no such event type.
    """
    return event_dtype(BY_NAME[name], version)


HEADER_DTYPE: np.dtype[np.void] = _structured(HEADER, (), HEADER_SIZE)
"""The header alone."""
