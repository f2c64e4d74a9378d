"""Shared: histories made of real records."""

from collections.abc import Callable, Iterable

import pytest

from vedette_detector.engine.history import HistorySettings, NodeHistory
from vedette_events.columns import split_batch

Make = Callable[..., NodeHistory]


@pytest.fixture
def make_history() -> Make:
    """Makes a history from batches of records."""

    def make(*batches: Iterable[bytes], settings: HistorySettings | None = None) -> NodeHistory:
        history = NodeHistory("node", bytes(16), settings)
        for records in batches:
            history.append(split_batch(b"".join(records)), 1_700_000_000 * 10**9)
        return history

    return make
