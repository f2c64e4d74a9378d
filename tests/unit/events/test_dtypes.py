from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given

from vedette_events import schema
from vedette_events.dtypes import HEADER_DTYPE, dtype
from vedette_events.encode import encode_event
from vedette_events.schema import BY_NAME, EVENT_TYPES

from .strategies import events


@pytest.mark.parametrize("event", EVENT_TYPES, ids=lambda e: e.name)
def test_itemsize_is_the_fixed_size(event: schema.EventType) -> None:
    assert dtype(event.name).itemsize == schema.fixed_size(event)


def test_unknown_type() -> None:
    with pytest.raises(KeyError):
        dtype("nothing")


@given(events())
def test_dtype_reads_what_encode_wrote(event: tuple[str, dict[str, Any]]) -> None:
    name, values = event
    record = encode_event(name, **values)
    row = np.frombuffer(record, dtype(name), count=1)[0]
    header = np.frombuffer(record, HEADER_DTYPE, count=1)[0]
    assert header["size"] == row["size"] == len(record)
    for field in (*schema.HEADER, *BY_NAME[name].fields):
        if field.name in values:
            value = row[field.name]
            assert (value.tobytes() if value.ndim else value) == values[field.name]
    for tail in BY_NAME[name].tails:
        assert row[f"{tail.name}_len"] == len(values[tail.name])
