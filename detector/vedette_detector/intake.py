"""Group commit: batches that wait are processed together, and acknowledged when their effects are durable.

For each group, the journal is written and synced while the engine works; then findings, ledger and outbox are
committed in one transaction; then the senders are answered. Batches of one session are applied in order. What the
engine found is kept while the database refuses a commit, so that a batch that is sent again is not put through the
engine twice.

Nodes take turns in the queue, and one that has much waiting is refused before others are: see `FairQueue` and
`Intake.admit`.

A batch whose findings wait for what is not known yet (their pods) is held back after the engine and the journal, with
the later batches of its session; all others pass it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from vedette_detector import ledger
from vedette_detector.engine.detection import Detection
from vedette_detector.engine.engine import Outcome
from vedette_detector.errors import DetectorError, EngineUnavailableError, OverloadedError
from vedette_detector.fair_queue import FairQueue
from vedette_detector.findings.model import FindingUpdate, collect
from vedette_detector.holdback import HoldBack
from vedette_detector.journal import Journal, SessionKey
from vedette_detector.ledger import Account, Note, NoteKind, Report
from vedette_detector.sessions import Plan, Sessions, key_of
from vedette_detector.store import Applied, Effects, Store
from vedette_detector.text import safe_text
from vedette_events.framing import BatchError, BatchHeader
from vedette_events.schema import SCHEMA_VERSION

log = logging.getLogger(__name__)
T = TypeVar("T")

GROUP_BYTES = 32 << 20
"""A group takes no further batches beyond this size (compressed)."""
GROUP_RAW_BYTES = 256 << 20
"""Nor beyond this size of their records: every other sender waits until the group is done."""
GROUP_BATCHES = 4096
"""Nor beyond this number: a hostile agent may begin a session with each."""
ENGINE_FAILURES = 3
"""A batch on which the engine has failed so often is refused for good: its node must not be blocked for ever."""
STALLED_AFTER_S = 60.0
"""A group takes seconds, and gives up waiting for the database earlier than this."""
_COMPUTED_KEPT = 4096
_REPORTS_KEPT = 4
_FATAL = frozenset({"EngineCrashed", EngineUnavailableError.reason})
_MAX_SIGNED = 2**63 - 1

BatchKey = tuple[str, bytes, int, int]
"""Node, boot id, session, sequence."""


class Pool(Protocol):
    """What the intake needs of the engine's worker pool."""

    async def submit(self, batch: bytes) -> Outcome:
        """Put a framed batch through the engine.

        Raises:
            BatchError: the batch is malformed.
        """
        ...


class RejectedBatchError(DetectorError):
    """A batch that can never be accepted."""

    reason = "BatchRejected"

    def __init__(self, reason: str, message: str, header: BatchHeader | None) -> None:
        super().__init__(message, reason=reason)
        self.header = header


class TooNewError(OverloadedError):
    """A batch of a schema version that only a newer detector reads: the agent keeps it."""

    reason = "UnsupportedVersion"


async def _nothing(found: Sequence[tuple[Detection, BatchHeader]]) -> None:
    """Nothing to prepare."""


def check_header(header: BatchHeader) -> None:
    """Verify what the framing does not.

    Raises:
        RejectedBatchError: a number is larger than any real one.
        TooNewError: the batch was written by a newer agent.
    """
    for name in ("session", "sequence", "created_ns", "first_time", "last_time"):
        if getattr(header, name) > _MAX_SIGNED:
            raise RejectedBatchError("OutOfRange", f"{name} {getattr(header, name)} is not below 2^63", header)
    if header.schema_version > SCHEMA_VERSION:
        raise TooNewError(
            f"schema version {header.schema_version} is newer than this detector's {SCHEMA_VERSION}: upgrade it"
        )


def batch_key(header: BatchHeader) -> BatchKey:
    """What names a batch for ever."""
    return (header.node, header.boot_id, header.session, header.sequence)


def session_key(header: BatchHeader) -> SessionKey:
    """What names a session for ever."""
    return (header.node, header.boot_id, header.session)


@dataclass
class _Waiting:
    header: BatchHeader
    data: bytes
    done: asyncio.Future[None]
    outcome: Outcome | None = None
    journaled: bool = False
    settling: asyncio.Future[None] | None = None


@dataclass
class Statistics:
    """Counted since the start of the process."""

    batches: int = 0
    resent: int = 0
    rejected: int = 0
    refused: int = 0
    events: int = 0
    events_by_type: dict[str, int] = field(default_factory=dict)
    detections: int = 0
    findings_created: int = 0
    findings_updated: int = 0
    unit_errors: int = 0
    groups: int = 0
    group_seconds: float = 0.0
    engine_seconds: float = 0.0


class Intake:
    """Takes batches and makes them durable; one per detector."""

    def __init__(
        self,
        *,
        pool: Pool,
        journal: Journal,
        store: Store,
        to_finding: Callable[[Detection, BatchHeader], FindingUpdate],
        max_waiting_bytes: int,
        occurrences: int,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.pool = pool
        self._journal = journal
        self._store = store
        self._to_finding = to_finding
        self._max_waiting_bytes = max_waiting_bytes
        self._occurrences = occurrences
        self._clock_ns = clock_ns
        self.statistics = Statistics()
        self.waiting_bytes = 0
        self.arriving_bytes = 0
        self.last_error: DetectorError | None = None
        self.on_batch: Callable[[BatchHeader, bytes], None] = lambda header, data: None
        self.settle: Callable[[Sequence[Detection], BatchHeader], Awaitable[None] | None] = lambda found, header: None
        """Given a batch's detections, what to wait for before they become findings; None: nothing."""
        self.prepare: Callable[[Sequence[tuple[Detection, BatchHeader]]], Awaitable[None]] = _nothing
        """Does what would keep the event loop, before detections become findings."""
        self.last_unit_errors: OrderedDict[tuple[str, str], str] = OrderedDict()
        self.sessions = Sessions(store.accounts(), store.folded(), store.totals())
        self.noted: Counter[str] = Counter()
        """Ledger notes written for each node since somebody last looked whether there are too many."""
        self.gaps: Counter[str] = Counter()
        self.gap_seconds: defaultdict[str, float] = defaultdict(float)
        """Times between two agents in one boot of a node in which none watched, since the start of the process."""
        self._reports: dict[str, OrderedDict[tuple[bytes, int], Report]] = {}
        self._failures: OrderedDict[BatchKey, int] = OrderedDict()
        self._pending: dict[BatchKey, _Waiting] = {}
        self._computed: OrderedDict[BatchKey, tuple[Outcome, bool]] = OrderedDict()
        self._queue: FairQueue[_Waiting] = FairQueue()
        self._bytes_of: Counter[str] = Counter()
        self._held: HoldBack[SessionKey, _Waiting] = HoldBack()
        self._journal_thread = ThreadPoolExecutor(1, "journal")
        self._store_thread = ThreadPoolExecutor(1, "store")
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._group_began: float | None = None

    @property
    def stalled_s(self) -> float | None:
        """For how long the group under way has taken, if that is too long; None otherwise."""
        taken = time.perf_counter() - self._group_began if self._group_began is not None else 0.0
        return taken if taken > STALLED_AFTER_S else None

    @property
    def accounts(self) -> dict[SessionKey, Account]:
        """The account of each session that has one; see `Sessions`."""
        return self.sessions.accounts

    @property
    def newest(self) -> dict[str, Account]:
        """Each node's account that changed last."""
        return self.sessions.newest

    @property
    def applied(self) -> dict[SessionKey, int]:
        """Last applied sequence of each session, also of those that have no account any more."""
        return self.sessions.applied()

    def report(self, node: str, boot_id: bytes, heartbeat: Mapping[str, Any]) -> None:
        """Remember what a heartbeat says of its session; of the last sessions of a node."""
        session = heartbeat.get("session")
        if isinstance(session, int) and not isinstance(session, bool):
            reports = self._reports.setdefault(node, OrderedDict())
            reports[boot_id, session] = Report.of(heartbeat)
            reports.move_to_end((boot_id, session))
            while len(reports) > _REPORTS_KEPT:
                reports.popitem(last=False)

    def _report(self, key: SessionKey) -> Report:
        reports = self._reports.get(key[0])
        return reports.get((key[1], key[2]), Report()) if reports is not None else Report()

    def start(self) -> None:
        """Begin to work."""
        self._task = asyncio.create_task(self._run(), name="intake")

    def refuse(self) -> None:
        """Take no new batches from now on; those that wait are finished."""
        self._closing = True

    async def close(self) -> None:
        """Refuse new batches, finish those that wait, stop."""
        self.refuse()
        if self._task is not None:
            while self._pending:
                await asyncio.wait({w.done for w in self._pending.values()})
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._journal_thread.shutdown()
        self._store_thread.shutdown()

    async def in_journal_thread(self, work: Callable[[], T]) -> T:
        """Run ``work`` where nothing else touches the journal."""
        return await asyncio.get_running_loop().run_in_executor(self._journal_thread, work)

    async def in_store_thread(self, work: Callable[[], T]) -> T:
        """Run ``work`` between transactions of the intake."""
        return await asyncio.get_running_loop().run_in_executor(self._store_thread, work)

    async def fold(self, choose: Callable[[], Sequence[Account]]) -> None:
        """Fold the accounts that ``choose`` names into their nodes' sums.

        An account that a batch of the same moment changes stays: it is not old.
        """
        chosen = list(choose())
        busy = {session_key(w.header) for w in self._pending.values()}
        chosen = [a for a in chosen if key_of(a) not in busy]
        if chosen:
            await self.in_store_thread(lambda: self._store.fold(chosen))
            for account in chosen:
                self.sessions.fold(account)

    async def forget(self, node: str) -> bool:
        """Forget a node that is gone: its sums are added to those of the nodes that were forgotten before.

        The last sequence numbers of its sessions stay, should it come back with what it had no answer for. Returns
        False, and does nothing, when batches of the node are under way.
        """
        if any(w.header.node == node for w in self._pending.values()):
            return False
        accounts = self.sessions.of_node(node)
        await self.in_store_thread(lambda: self._store.forget(node, accounts))
        self.sessions.forget(node)
        for counted in (self._reports, self.noted, self.gaps, self.gap_seconds):
            counted.pop(node, None)
        return True

    def _release(self, node: str, size: int) -> None:
        self._bytes_of[node] -= size
        if self._bytes_of[node] <= 0:
            del self._bytes_of[node]

    def admit(self, size: int, node: str | None = None) -> None:
        """Verify that a request of ``size`` bytes may still wait.

        A node may have as much waiting as is free besides: alone it gets half of the room, the second one a third each,
        and there is always room for whoever has nothing there (dynamic thresholds, Choudhury and Hahne, IEEE/ACM
        Transactions on Networking 6(2), 1998, with alpha = 1).

        Args:
            size: bytes of the request's body.
            node: the only node that the sender may speak for; None where it may speak for any.

        Raises:
            OverloadedError: too much waits, or the detector is stopping.
        """
        if self._closing:
            raise OverloadedError("the detector is stopping", reason="Stopping")
        held = self.waiting_bytes + self.arriving_bytes
        if held and held + size > self._max_waiting_bytes:
            self.statistics.refused += 1
            raise OverloadedError(f"{held} bytes of batches wait already")
        mine = self._bytes_of.get(node, 0) if node else 0
        if mine and mine + size > self._max_waiting_bytes - held:
            self.statistics.refused += 1
            raise OverloadedError(f"{mine} bytes of this node's batches wait already; the rest is for the others")

    @contextmanager
    def room_for(self, size: int, node: str | None = None) -> Iterator[None]:
        """Keep room for a request's body while it arrives.

        Raises:
            OverloadedError: as `admit`.
        """
        self.admit(size, node)
        self.arriving_bytes += size
        if node:
            self._bytes_of[node] += size
        try:
            yield
        finally:
            self.arriving_bytes -= size
            if node:
                self._release(node, size)

    async def submit(self, batches: Sequence[tuple[BatchHeader, bytes]]) -> list[DetectorError | None]:
        """Apply batches; returns when each is durable or refused, with the error of each."""
        waiting: list[asyncio.Future[None] | None] = []
        errors: list[DetectorError | None] = []
        for header, data in batches:
            try:
                check_header(header)
            except DetectorError as error:
                waiting.append(None)
                errors.append(error)
                if isinstance(error, RejectedBatchError):
                    self.statistics.rejected += 1
                continue
            errors.append(None)
            waiting.append(self._enqueue(header, data))
        for index, future in enumerate(waiting):
            if future is None:
                continue
            try:
                await asyncio.shield(future)
            except DetectorError as error:
                errors[index] = error
        return errors

    def _enqueue(self, header: BatchHeader, data: bytes) -> asyncio.Future[None] | None:
        """A future for the batch, or None when it is applied already."""
        if header.sequence <= self.sessions.last_sequence(session_key(header)):
            self.statistics.resent += 1
            self._recount(session_key(header), resent=1)
            return None
        key = batch_key(header)
        pending = self._pending.get(key)
        if pending is not None:
            return pending.done
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Whoever waited may be gone (connection closed): then nobody looks at the error.
        done.add_done_callback(lambda f: f.cancelled() or f.exception())
        waiting = _Waiting(header, data, done)
        computed = self._computed.pop(key, None)
        if computed is not None:
            waiting.outcome, waiting.journaled = computed
        self._pending[key] = waiting
        self.waiting_bytes += len(data)
        self._bytes_of[header.node] += len(data)
        self._queue.put(header.node, waiting, header.raw_size + len(data))
        return done

    def _recount(self, key: SessionKey, *, resent: int = 0, rejected: int = 0) -> None:
        """Count what changes nothing else; it is stored with the session's next batch."""
        account = self.accounts.get(key)
        if account is not None:
            counted = replace(account, resent=account.resent + resent, rejected=account.rejected + rejected)
            self.sessions.recount(counted)

    async def _run(self) -> None:
        while True:
            await self._queue.wait()
            # What was held back comes first: it is older than whatever else there is of its sessions.
            group = self._held.released()
            size, raw = sum(len(w.data) for w in group), sum(w.header.raw_size for w in group)
            of_node: Counter[str] = Counter()
            while (
                size < GROUP_BYTES
                and raw < GROUP_RAW_BYTES
                and len(group) < GROUP_BATCHES
                and not self._queue.empty()
                # Whoever comes while the group is under way waits for it: no node may make that long alone.
                and max(of_node.values(), default=0) < GROUP_RAW_BYTES // 4
            ):
                more = self._queue.get()
                group.append(more)
                size, raw = size + len(more.data), raw + more.header.raw_size
                of_node[more.header.node] += more.header.raw_size
            self._let_go([w for w in group if w.done.done()])
            group = [w for w in group if not w.done.done()]
            if not group:
                continue
            began = self._group_began = time.perf_counter()
            try:
                await self._process(group)
            except Exception as error:  # the loop must outlive any fault of one group
                log.exception("a group of %d batches failed", len(group))
                failure = error if isinstance(error, DetectorError) else DetectorError(f"internal error: {error}")
                self._fail(group, failure)
            finally:
                self._group_began = None
                for waiting in group:
                    if not waiting.done.done():
                        waiting.done.set_exception(DetectorError("the detector was stopped", reason="Stopping"))
                self._let_go(group)
                self._fail_followers(group)
            self.statistics.groups += 1
            self.statistics.group_seconds += time.perf_counter() - began

    def _let_go(self, group: Sequence[_Waiting]) -> None:
        """Forget batches that are answered."""
        for waiting in group:
            key = batch_key(waiting.header)
            if self._pending.get(key) is waiting:
                del self._pending[key]
            self.waiting_bytes -= len(waiting.data)
            self._release(waiting.header.node, len(waiting.data))

    def _fail_followers(self, group: Sequence[_Waiting]) -> None:
        """Answer what waits behind a batch that has to come again as that batch was answered.

        Applied, a later batch of the session would take the number of the one before: sent again, that would be
        taken for one that was applied, and its events would be lost. The agent sends all of them again in order.
        """
        failed: dict[SessionKey, BaseException] = {}
        for waiting in group:
            error = waiting.done.exception()
            if error is not None and not isinstance(error, RejectedBatchError):
                failed.setdefault(session_key(waiting.header), error)
        if not failed:
            return
        for waiting in list(self._pending.values()):
            error = failed.get(session_key(waiting.header))
            if error is not None:
                self._keep_outcome(waiting)  # it may have been held back
                waiting.done.set_exception(error)
                # Its place in the queue is skipped; the same batch may be waiting again by then.
                del self._pending[batch_key(waiting.header)]

    def _fail(self, group: Sequence[_Waiting], error: DetectorError) -> None:
        self.last_error = error
        for waiting in group:
            if waiting.done.done():
                continue
            self._keep_outcome(waiting)
            waiting.done.set_exception(error)

    def _keep_outcome(self, waiting: _Waiting) -> None:
        """Keep what the engine made of a batch that will come again; not its bytes, which come with it."""
        if waiting.outcome is None:
            return
        self._computed[batch_key(waiting.header)] = waiting.outcome, waiting.journaled
        while len(self._computed) > _COMPUTED_KEPT:
            self._computed.popitem(last=False)

    async def _process(self, group: list[_Waiting]) -> None:
        to_journal = [w for w in group if not w.journaled]
        journaling = asyncio.ensure_future(
            self.in_journal_thread(lambda: self._journal.append([(w.header, w.data) for w in to_journal]))
        )
        results = await asyncio.gather(
            *(self.pool.submit(w.data) for w in group if w.outcome is None), return_exceptions=True
        )
        failed: dict[int, BaseException] = {}
        for waiting, result in zip([w for w in group if w.outcome is None], results, strict=True):
            if isinstance(result, BaseException):
                failed[id(waiting)] = result
            else:
                waiting.outcome = result
        await journaling
        for waiting in to_journal:
            waiting.journaled = True
        ready = self._hold_back(await self._sort_out(group, failed), group)
        if not ready:
            return
        found = [(d, w.header) for w in ready if w.outcome is not None for d in w.outcome.detections]
        if found:
            await self.prepare(found)
        now = self._clock_ns()
        effects, accounts = self._effects(ready, now)
        applied: Applied = await self.in_store_thread(lambda: self._store.apply(effects, now))
        self._count(ready, applied)
        self.sessions.commit(accounts, Plan(effects.fold, effects.forget))
        for note in effects.notes:
            self.noted[note.node] += 1
            if note.kind is NoteKind.WITHOUT_AGENT and note.from_ns is not None and note.to_ns is not None:
                self.gaps[note.node] += 1
                self.gap_seconds[note.node] += (note.to_ns - note.from_ns) / 1e9
        self.last_error = None
        for waiting in ready:
            self._failures.pop(batch_key(waiting.header), None)
            waiting.done.set_result(None)

    def _hold_back(self, ready: Sequence[_Waiting], group: list[_Waiting]) -> list[_Waiting]:
        """Those of ``ready`` that go on now; the others leave ``group``."""
        held: set[int] = set()
        for waiting in ready:
            key = session_key(waiting.header)
            if self._held.holds(key) or self._must_wait(waiting):
                self._held.hold(key, waiting)
                held.add(id(waiting))
        if held:
            group[:] = [w for w in group if id(w) not in held]
        return [w for w in ready if id(w) not in held]

    def _must_wait(self, waiting: _Waiting) -> bool:
        """Whether a batch's findings wait; begins to wait the first time, so that each batch waits once."""
        if waiting.settling is None and waiting.outcome is not None and waiting.outcome.detections:
            wait = self.settle(waiting.outcome.detections, waiting.header)
            if wait is not None:
                waiting.settling = asyncio.ensure_future(wait)
                waiting.settling.add_done_callback(lambda settled: self._settled(waiting, settled))
        return waiting.settling is not None and not waiting.settling.done()

    def _settled(self, waiting: _Waiting, settled: asyncio.Future[None]) -> None:
        if not settled.cancelled() and settled.exception() is not None:
            log.error("waiting for what findings need failed", exc_info=settled.exception())
        self._held.release(session_key(waiting.header))
        self._queue.wake()

    async def _sort_out(self, group: Sequence[_Waiting], failed: dict[int, BaseException]) -> list[_Waiting]:
        """Answer what cannot be applied; what remains is in order, without holes that could still be filled."""
        ready: list[_Waiting] = []
        stopped: dict[SessionKey, DetectorError] = {}
        rejected: list[tuple[_Waiting, BatchError]] = []
        for waiting in group:
            key, error = session_key(waiting.header), failed.get(id(waiting))
            tried = error is not None and not isinstance(error, BatchError) and key not in stopped
            if tried and self._fails_always(waiting.header):
                message = f"the engine failed on it {ENGINE_FAILURES} times, at last with: {error}"
                error = BatchError(EngineUnavailableError.reason, message, header=waiting.header)
            if isinstance(error, BatchError):
                rejected.append((waiting, error))
            elif key in stopped:
                self._fail([waiting], stopped[key])
            elif error is not None:
                log.error("the engine failed on a batch: %s: %s", type(error).__name__, error)
                stopped[key] = EngineUnavailableError(f"the engine failed: {error}")
                self._fail([waiting], stopped[key])
            else:
                ready.append(waiting)
        if rejected:
            await self._reject(rejected)
        return ready

    def _fails_always(self, header: BatchHeader) -> bool:
        """Count a failure of the engine; whether the batch has had all its tries.

        A failure that is not the batch's fault, for want of memory say, is over by the next try. One that comes again
        each time would keep the node's later batches waiting for ever.
        """
        key = batch_key(header)
        failures = self._failures.pop(key, 0) + 1
        self._failures[key] = failures
        while len(self._failures) > _COMPUTED_KEPT:
            self._failures.popitem(last=False)
        return failures >= ENGINE_FAILURES and not self._closing

    async def _reject(self, rejected: Sequence[tuple[_Waiting, BatchError]]) -> None:
        """Enter batches as refused, then say so to their agents: these give them up and count them as lost.

        Batches of which the engine died or failed are remembered, because they are in the journal: rebuilding history,
        the engine would fail on them again.
        """
        now = self._clock_ns()
        notes, fatal = [], []
        for waiting, error in rejected:
            key, sequence = session_key(waiting.header), waiting.header.sequence
            message = f"batch {sequence} was refused for good: {error.reason}: {safe_text(error.message, 500)}"
            notes.append(Note(NoteKind.BATCH_REJECTED, *key, now, message, None, None, waiting.header.count, 1))
            if error.reason in _FATAL:
                fatal.append((key, sequence))
        await self.in_store_thread(lambda: self._store.refuse(fatal, notes, now))
        self._journal.refused.update(fatal)
        self.noted.update(note.node for note in notes)
        for waiting, error in rejected:
            self.statistics.rejected += 1
            self._recount(session_key(waiting.header), rejected=1)
            self._failures.pop(batch_key(waiting.header), None)
            waiting.done.set_exception(RejectedBatchError(error.reason, error.message, waiting.header))

    def _effects(self, ready: Sequence[_Waiting], now: int) -> tuple[Effects, dict[SessionKey, Account]]:
        accounts: dict[SessionKey, Account] = {}
        ended: dict[SessionKey, Account] = {}
        notes: list[Note] = []
        findings: list[FindingUpdate] = []
        for waiting in ready:
            header = waiting.header
            key = session_key(header)
            account = accounts.get(key) or ended.get(key) or self.accounts.get(key)
            folded = self.sessions.folded(key)
            if account is None and folded is not None:
                if header.sequence <= folded:
                    continue
                account = ledger.resumed(header, folded, now)
            if account is not None and header.sequence <= account.last_sequence:
                continue  # overtaken by a later batch of its session in the same group: its number is taken
            before = self.sessions.before(key, ended | accounts) if account is None else None
            if before is not None and before.boot_id == header.boot_id:
                before, more = ledger.end(before, self._report(key_of(before)), now)
                (accounts if key_of(before) in accounts else ended)[key_of(before)] = before
                notes += more
            account, more = ledger.enter(account, header, now, before, self._report(key))
            accounts[key] = account
            notes += more
            assert waiting.outcome is not None
            for detection in waiting.outcome.detections:
                try:
                    findings.append(self._to_finding(detection, header))
                except Exception:  # one detection that cannot be told must not stop the others
                    log.exception("a detection of %s could not be made a finding", detection.finding_type)
                    self.statistics.unit_errors += 1
        changed = ended | accounts
        plan = self.sessions.plan(changed)
        folded_now = {key_of(account) for account in plan.fold}
        kept = [account for key, account in accounts.items() if key not in folded_now]
        amended = [account for key, account in ended.items() if key not in folded_now and key not in accounts]
        collected = collect(findings, self._occurrences)
        return Effects(kept, notes, collected, plan.fold, plan.forget, amended), changed

    def _count(self, ready: Sequence[_Waiting], applied: Applied) -> None:
        statistics = self.statistics
        statistics.findings_created += applied.created
        statistics.findings_updated += applied.updated
        for waiting in ready:
            outcome = waiting.outcome
            assert outcome is not None
            statistics.batches += 1
            self.on_batch(waiting.header, waiting.data)
            statistics.events += outcome.event_count
            statistics.detections += sum(1 + d.repeats for d in outcome.detections)
            statistics.engine_seconds += outcome.seconds
            for name, count in outcome.by_type.items():
                statistics.events_by_type[name] = statistics.events_by_type.get(name, 0) + count
            for error in outcome.errors:
                statistics.unit_errors += error.count
                self.last_unit_errors[(error.unit, error.event_type)] = error.message
                while len(self.last_unit_errors) > 100:
                    self.last_unit_errors.popitem(last=False)
