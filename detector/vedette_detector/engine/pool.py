"""Engines on all cores: one worker process per core, nodes assigned by a stable hash.

A node's batches go to one worker, in order, so its history is whole there. Rules and lists are swapped while batches
flow. A worker that dies is replaced: its history is rebuilt from the batches that a callback yields, and what it had
not answered is given to the new one. A batch that kills two workers is refused, or left out of the history.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import pickle
import socket
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from vedette_detector.engine.context import EngineSettings
from vedette_detector.engine.engine import Outcome, RuleSource, Unit
from vedette_detector.engine.worker import (
    BATCH,
    BATCH_ERROR,
    FAILED,
    FORGET,
    HEAD,
    LISTS,
    REPLAY,
    RULES,
    SETUP,
    STATUS,
    pack,
    restore_batch_error,
)
from vedette_detector.threat_lists import ThreatLists
from vedette_events.framing import BatchError, decode_header

log = logging.getLogger(__name__)

History = Callable[[Callable[[str], bool]], Iterator[bytes]]
"""Given which nodes are wanted, the framed batches that rebuild their history, oldest first."""

_MAX_BYTES_UNDER_WAY = 64 << 20
_MAX_REPLAYS_UNDER_WAY = 8
_END_WAIT_S = 5.0
HANGS_AFTER_S = 120.0
"""A worker that owes an answer and gives none for so long is killed. The largest batch takes seconds."""


class EngineError(RuntimeError):
    """The engine failed in a way that is not the batch's fault."""

    reason = "EngineFailed"


@dataclass
class _Request:
    kind: int
    payload: bytes
    answer: asyncio.Future[Any]
    deaths: int = 0


@dataclass
class WorkerStatus:
    """One worker, for status pages."""

    pid: int | None
    restarts: int
    waiting: int
    nodes: dict[str, Any] = field(default_factory=dict)


class _Worker:
    """One process and the requests that it has not answered."""

    def __init__(self, number: int, pool: WorkerPool) -> None:
        self.number = number
        self.pool = pool
        self.restarts = 0
        self.waiting: deque[_Request] = deque()
        self._unsent: deque[_Request] = deque()  # what earlier processes left unanswered and this one is yet to get
        self._generation = 0  # of the process; counted up when one ends
        self._bytes = 0
        self._room = asyncio.Condition()
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._closing = False
        self._progress = 0.0  # when the last answer came, or the first request to be waited for was sent

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Start the process, rebuild history, give it what the last one left unanswered."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end.setsockopt(socket.SOL_SOCKET, option, 1 << 20)
        try:
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "vedette_detector.engine.worker",
                    str(theirs.fileno()),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                )
        except OSError:
            ours.close()
            raise
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
        generation = self._generation
        self._unsent.extend(self.waiting)
        self.waiting = deque()
        self._reading = asyncio.create_task(self._read(reader), name=f"engine worker {self.number}")
        setup = pickle.dumps(self.pool.setup(), pickle.HIGHEST_PROTOCOL)
        self._writer.write(pack(SETUP, setup) + setup)
        try:
            await self._rebuild(generation)
        finally:
            # A worker that died meanwhile leaves them to its successor, which rebuilds for itself.
            if generation == self._generation:
                while self._unsent:
                    self._send(self._unsent.popleft())
                self._ready.set()

    async def _rebuild(self, generation: int) -> None:
        if self.pool.history is None:
            return
        batches = self.pool.history(lambda node: self.pool.number_of(node) == self.number)
        under_way: deque[asyncio.Future[Any]] = deque()
        count = 0
        while True:
            batch = await asyncio.to_thread(next, batches, None)
            if generation != self._generation:
                return  # what is written now would reach the next process, and be its history twice
            if batch is None:
                break
            if self.pool.kills(batch):
                continue
            count += 1
            under_way.append(self._send(self._request(REPLAY, bytes(batch))))
            if len(under_way) >= _MAX_REPLAYS_UNDER_WAY:
                await asyncio.wait([under_way.popleft()])
        if under_way:
            await asyncio.wait(under_way)
        if generation != self._generation:
            return
        log.info("engine worker %d rebuilt its history from %d batches", self.number, count)

    def _request(self, kind: int, payload: bytes) -> _Request:
        return _Request(kind, payload, asyncio.get_running_loop().create_future())

    def _send(self, request: _Request) -> asyncio.Future[Any]:
        if not self.waiting:
            self._progress = asyncio.get_running_loop().time()
        self.waiting.append(request)
        self._bytes += len(request.payload)
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(pack(request.kind, request.payload))
            self._writer.write(request.payload)
        return request.answer

    async def ask(self, kind: int, payload: bytes) -> Any:
        """Send a request when there is room; its answer."""
        await self._ready.wait()
        async with self._room:
            await self._room.wait_for(lambda: self._bytes < _MAX_BYTES_UNDER_WAY or self._closing)
        if self._closing:
            raise EngineError("the engine is closed")
        return await self._send(self._request(kind, payload))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                size, status = HEAD.unpack(await reader.readexactly(HEAD.size))
                body = pickle.loads(await reader.readexactly(size))  # noqa: S301  # from our own child
                await self._answered(status, body)
        await self._ended()

    async def _answered(self, status: int, body: Any) -> None:
        request = self.waiting.popleft()
        self._progress = asyncio.get_running_loop().time()
        async with self._room:
            self._bytes -= len(request.payload)
            self._room.notify_all()
        if request.answer.done():  # whoever asked has gone
            return
        if status == BATCH_ERROR:
            error: Exception = restore_batch_error(body)
        elif status == FAILED:
            error = EngineError(body)
        else:
            request.answer.set_result(body)
            return
        request.answer.set_exception(error)
        if request.kind == REPLAY:
            request.answer.exception()  # nobody asks for it: a bad batch in the journal is skipped

    def end_if_it_hangs(self) -> None:
        """Kill a process that does not answer, so that it is replaced as any that died."""
        silent = asyncio.get_running_loop().time() - self._progress
        running = self._process is not None and self._process.returncode is None
        if self.waiting and running and self._ready.is_set() and silent > HANGS_AFTER_S:
            assert self._process is not None
            log.error("engine worker %d (pid %d) has not answered for %.0f s", self.number, self._process.pid, silent)
            self._process.kill()

    async def _ended(self) -> None:
        assert self._process is not None
        assert self._writer is not None
        self._generation += 1
        self._writer.close()
        code = await self._process.wait()
        self._bytes = 0
        if self._closing:
            self._fail_all("the engine is closed")
            return
        self._ready.clear()
        self.restarts += 1
        log.error("engine worker %d (pid %d) ended with %s; replacing it", self.number, self._process.pid, code)
        self._refuse_killers()
        while True:
            # Waits between attempts grow, so that a worker that cannot start does not burn a core.
            await asyncio.sleep(min(0.05 * 2 ** min(self.restarts - 1, 7), 5.0))
            if self._closing:
                self._fail_all("the engine is closed")
                return
            try:
                await self.start()
            except OSError as error:
                # Too many processes or open files, most likely. What waits goes on waiting: nobody else may judge it.
                log.error("engine worker %d cannot be started: %s; trying again", self.number, error)
                self.restarts += 1
            else:
                return

    def _refuse_killers(self) -> None:
        """The oldest unanswered request is what the worker died of, if it died of one."""
        kept: deque[_Request] = deque()
        for place, request in enumerate(self.waiting):
            if request.kind == REPLAY:
                if place == 0:
                    self.pool.died_of(request.payload)
                request.answer.cancel()
                continue
            if request.answer.done():
                continue
            if place == 0:
                request.deaths += 1
            if request.deaths >= 2 and request.kind == BATCH:
                header, _ = decode_header(request.payload)
                message = "two engine workers died of this batch"
                request.answer.set_exception(BatchError("EngineCrashed", message, header=header))
                continue
            kept.append(request)
        self.waiting = kept

    def _fail_all(self, message: str) -> None:
        self.waiting.extend(self._unsent)
        self._unsent.clear()
        while self.waiting:
            request = self.waiting.popleft()
            if not request.answer.done():
                request.answer.set_exception(EngineError(message))
                if request.kind == REPLAY:
                    request.answer.exception()

    async def close(self) -> None:
        """End the process by closing its socket; kill it if it does not end."""
        self._closing = True
        self._ready.set()
        async with self._room:
            self._room.notify_all()
        if self._writer is not None:
            self._writer.close()
        if self._process is not None:
            try:
                await asyncio.wait_for(self._process.wait(), _END_WAIT_S)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        if self._reading is not None:
            await asyncio.wait([self._reading], timeout=_END_WAIT_S)


class WorkerPool:
    """Engines in worker processes.

    Args:
        size: how many workers.
        ruleset: the rules.
        threat_lists: the threat lists.
        settings: the engines' settings; the bound of bytes for all nodes is each worker's own.
        detectors: detectors in Python; instances of importable classes.
        history: yields the batches that rebuild the history of some nodes; None: start empty.
    """

    def __init__(
        self,
        size: int,
        ruleset: RuleSource | None = None,
        threat_lists: ThreatLists | None = None,
        settings: EngineSettings | None = None,
        detectors: Sequence[Unit] = (),
        history: History | None = None,
    ) -> None:
        if size < 1:
            raise ValueError(f"a pool of {size} workers")
        self.size = size
        self.history = history
        self._ruleset = ruleset
        self._lists = threat_lists or ThreatLists()
        self._settings = settings or EngineSettings()
        self._detectors = tuple(detectors)
        self._workers = [_Worker(number, self) for number in range(size)]
        self._watching: asyncio.Task[None] | None = None
        self._deaths: dict[bytes, int] = {}

    def died_of(self, replayed: bytes) -> None:
        """A worker died while this batch of the history was the oldest that it had not answered."""
        digest = hashlib.sha256(replayed).digest()
        self._deaths[digest] = self._deaths.get(digest, 0) + 1

    def kills(self, replayed: bytes) -> bool:
        """Whether history is rebuilt without this batch, because two workers have died of it."""
        if not self._deaths or self._deaths.get(hashlib.sha256(replayed).digest(), 0) < 2:
            return False
        header, _ = decode_header(replayed)
        log.error("two engine workers died of batch %d of session %d: left out", header.sequence, header.session)
        return True

    def setup(self) -> tuple[Any, ...]:
        """What a new worker is given first."""
        return (self._ruleset, self._lists, self._settings, self._detectors)

    def number_of(self, node: str) -> int:
        """Which worker a node belongs to: the same in every process and at every start."""
        return zlib.crc32(node.encode("utf-8", "surrogateescape")) % self.size

    async def start(self) -> None:
        """Start all workers and rebuild their history."""
        await asyncio.gather(*(worker.start() for worker in self._workers))
        self._watching = asyncio.create_task(self._watch(), name="engine watch")

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(min(HANGS_AFTER_S / 8, 1.0))
            for worker in self._workers:
                worker.end_if_it_hangs()

    async def submit(self, batch: bytes) -> Outcome:
        """Put a framed batch through its node's engine; waits while that worker has too much under way.

        Raises:
            BatchError: the batch is malformed, or killed two workers (reason ``EngineCrashed``).
            EngineError: the engine failed otherwise, or is closed.
        """
        header, _ = decode_header(batch)
        outcome: Outcome = await self._workers[self.number_of(header.node)].ask(BATCH, batch)
        return outcome

    async def replay(self, batches: Iterable[bytes]) -> None:
        """Fill the history with older batches; bad ones are skipped."""
        for batch in batches:
            with contextlib.suppress(BatchError):
                header, _ = decode_header(batch)
                await self._workers[self.number_of(header.node)].ask(REPLAY, bytes(batch))

    async def replace_rules(self, ruleset: RuleSource | None, detectors: Sequence[Unit] = ()) -> None:
        """Swap rules and detectors; batches submitted afterwards are judged by the new ones."""
        self._ruleset, self._detectors = ruleset, tuple(detectors)
        await self._ask_all(RULES, pickle.dumps((ruleset, self._detectors), pickle.HIGHEST_PROTOCOL))

    async def replace_threat_lists(self, lists: ThreatLists) -> None:
        """Swap the threat lists."""
        self._lists = lists
        await self._ask_all(LISTS, pickle.dumps(lists, pickle.HIGHEST_PROTOCOL))

    async def forget(self, node: str) -> None:
        """Drop a node's history."""
        await self._workers[self.number_of(node)].ask(FORGET, node.encode("utf-8", "surrogateescape"))

    async def status(self) -> list[WorkerStatus]:
        """Every worker's process, restarts and histories."""
        nodes = await self._ask_all(STATUS, b"")
        return [
            WorkerStatus(worker.pid, worker.restarts, len(worker.waiting), of)
            for worker, of in zip(self._workers, nodes, strict=True)
        ]

    @property
    def pids(self) -> list[int | None]:
        """Process ids of the workers."""
        return [worker.pid for worker in self._workers]

    async def _ask_all(self, kind: int, payload: bytes) -> list[Any]:
        return list(await asyncio.gather(*(worker.ask(kind, payload) for worker in self._workers)))

    async def close(self) -> None:
        """End all workers; what is under way fails."""
        if self._watching is not None:
            self._watching.cancel()
        await asyncio.gather(*(worker.close() for worker in self._workers))
