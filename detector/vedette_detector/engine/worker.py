"""One engine in a process of its own: what `WorkerPool` starts, one per core.

Started as ``python -m vedette_detector.engine.worker FD``, it serves requests from one end of a socket pair until the
other end closes. Both ends are the same program and user; nothing else can reach the socket, so messages are pickled.

Messages: ``<u32 length><u8 kind><length bytes>``. Every request but ``SETUP`` is answered, in order.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import pickle
import signal
import socket
import struct
import sys
from typing import Any

from vedette_detector.engine.engine import Engine
from vedette_events import _native
from vedette_events.framing import BadRecordError, BatchError

HEAD = struct.Struct("<IB")
SETUP, BATCH, REPLAY, RULES, LISTS, FORGET, STATUS = range(7)
OK, BATCH_ERROR, FAILED = range(3)

log = logging.getLogger(__name__)


def pack(kind: int, payload: bytes) -> bytes:
    """A message's head."""
    return HEAD.pack(len(payload), kind)


def describe_batch_error(error: BatchError) -> dict[str, Any]:
    """A batch error as plain data (exceptions with own constructors do not survive pickling)."""
    out: dict[str, Any] = {
        "reason": error.reason,
        "message": error.message,
        "header": error.header,
        "offset": error.offset,
    }
    if isinstance(error, BadRecordError):
        out |= {"index": error.index, "what": error.what}
    return out


def restore_batch_error(data: dict[str, Any]) -> BatchError:
    """The opposite of `describe_batch_error`."""
    if "index" in data:
        return BadRecordError(data["index"], data["offset"], data["what"], header=data["header"])
    return BatchError(data["reason"], data["message"], header=data["header"], offset=data["offset"])


class Server:
    """Answers requests one by one."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._engine: Engine | None = None

    def serve(self) -> None:
        """Serve until the other end closes."""
        reader = self._channel.makefile("rb", buffering=1 << 20)
        while True:
            head = reader.read(HEAD.size)
            if len(head) < HEAD.size:
                return
            size, kind = HEAD.unpack(head)
            payload = reader.read(size)
            if len(payload) < size:
                return
            answer = self._answer(kind, payload)
            if answer is None:
                continue
            status, body = answer
            data = pickle.dumps(body, pickle.HIGHEST_PROTOCOL)
            self._channel.sendall(pack(status, data) + data)

    def _answer(self, kind: int, payload: bytes) -> tuple[int, Any] | None:
        if kind == SETUP:
            ruleset, lists, settings, detectors = pickle.loads(payload)  # noqa: S301  # from our own parent
            self._engine = Engine(ruleset, lists, settings, detectors)
            # Rules and modules live for ever; the collector need not walk them for every hundred batches.
            gc.collect()
            gc.freeze()
            return None
        engine = self._engine
        assert engine is not None
        try:
            if kind in (BATCH, REPLAY):
                return OK, engine.process_frame(payload, replay=kind == REPLAY)
            if kind == RULES:
                ruleset, detectors = pickle.loads(payload)  # noqa: S301
                engine.replace_rules(ruleset, detectors)
            elif kind == LISTS:
                engine.replace_threat_lists(pickle.loads(payload))  # noqa: S301
            elif kind == FORGET:
                engine.forget(payload.decode("utf-8", "surrogateescape"))
            elif kind == STATUS:
                return OK, engine.describe()
            return OK, None
        except BatchError as e:
            return BATCH_ERROR, describe_batch_error(e)
        except Exception as e:  # the parent decides what becomes of the batch; this worker goes on
            log.exception("the engine failed")
            return FAILED, f"{type(e).__name__}: {e}"


def main() -> None:
    """Serve the socket whose number is the first argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us by closing the socket
    _native.keep_freed_memory()
    # Batches make few cycles and history holds many objects: the default threshold would walk them all the time.
    gc.set_threshold(50_000, 20, 50)
    # A parent that was killed leaves answers unread and requests half sent. There is nobody to tell of it.
    with socket.socket(fileno=int(sys.argv[1])) as channel, contextlib.suppress(ConnectionError):
        Server(channel).serve()


if __name__ == "__main__":
    main()
