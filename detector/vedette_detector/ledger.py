"""The ledger: what each node's kernel saw, what arrived, and what was lost where. Pure accounting.

Per session (one load of the agent's programs; `vedette_events.framing`) the agent's batch headers carry cumulative
counters from the node, and the detector counts what it received:

    emitted = received + outstanding + spool_lost + ring_lost      (events from the kernel's ring)

``outstanding`` are events on the way: in the ring, in the spool, in transit. It is zero when the session is at rest.
``ring_lost`` were in the ring of an agent that was killed and whose ring went with it.
Events that the agent makes itself (snapshots, file hashes; ``ring_from == ring_to``) never were in the ring and are
counted apart. ``deduplicated`` and ``dropped`` events did not enter the ring at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any

from vedette_events.framing import BatchFlags, BatchHeader

FORGOTTEN = ""
"""Under this name the ledger keeps the sums of nodes that were forgotten; no node is called so."""
CLOCK_STEP_NS = 2_000_000_000
"""A wall clock that moved by more than this against the boot clock between two batches was set, not slewed."""


class NoteKind(StrEnum):
    """What a note in the ledger tells of."""

    SESSION_STARTED = "SessionStarted"
    SESSION_ENDED = "SessionEnded"
    WITHOUT_AGENT = "WithoutAgent"
    NODE_RESTARTED = "NodeRestarted"
    BATCHES_MISSING = "BatchesMissing"
    SPOOL_LOSS = "SpoolLoss"
    KERNEL_DROPS = "KernelDrops"
    CLOCK_STEP = "ClockStep"
    BATCH_REJECTED = "BatchRejected"
    COUNTERS_WENT_BACK = "CountersWentBack"
    AGENT_SILENT = "AgentSilent"
    OUT_OF_BALANCE = "OutOfBalance"
    RING_LOST = "RingLost"


LOSS_KINDS = frozenset(
    {
        NoteKind.BATCHES_MISSING,
        NoteKind.SPOOL_LOSS,
        NoteKind.KERNEL_DROPS,
        NoteKind.BATCH_REJECTED,
        NoteKind.COUNTERS_WENT_BACK,
        NoteKind.OUT_OF_BALANCE,
        NoteKind.RING_LOST,
    }
)
"""Notes that tell of events lost, or of an account that cannot be right. They are kept apart from the others, so that
an agent that starts again and again does not push them out."""


@dataclass(frozen=True)
class Note:
    """Something a person should know about a node's delivery. Times are ns since the epoch."""

    kind: NoteKind
    node: str
    boot_id: bytes
    session: int
    at_ns: int
    message: str
    from_ns: int | None = None
    to_ns: int | None = None
    events: int = 0
    batches: int = 0


@dataclass(frozen=True)
class Account:
    """One session of one node. Times are ns since boot, except ``*_at_ns`` (detector's clock, since the epoch)."""

    node: str
    boot_id: bytes
    session: int
    last_sequence: int = 0
    batches: int = 0
    received: int = 0
    received_other: int = 0
    missing_batches: int = 0
    resent: int = 0
    rejected: int = 0
    emitted: int = 0
    deduplicated: int = 0
    dropped: int = 0
    spool_lost_batches: int = 0
    spool_lost_events: int = 0
    first_time: int = 0
    last_time: int = 0
    created: int = 0
    wall_offset: int = 0
    first_at_ns: int = 0
    last_at_ns: int = 0
    final: bool = False
    agent_version: str = ""
    drained: int = 0
    """Up to then everything that the kernel reported is in the session's batches."""
    ring_lost_events: int = 0

    @property
    def outstanding(self) -> int:
        """Events emitted by the kernel that neither arrived nor are known to be lost; negative: more than emitted."""
        return self.emitted - self.received - self.spool_lost_events - self.ring_lost_events

    @property
    def unexplained_batches(self) -> int:
        """Sequence numbers that never came and that the agent has not (yet) reported as lost."""
        return max(0, self.missing_batches - self.spool_lost_batches)

    @property
    def at_odds(self) -> bool:
        """Whether the numbers contradict each other, missing batches aside."""
        return self.outstanding < 0 or (self.final and self.outstanding > 0)

    @property
    def balance(self) -> str:
        """``balanced``; ``outstanding``: events are on the way; ``lost``: a loss is known; ``unbalanced``: a fault."""
        if self.at_odds or self.unexplained_batches:
            return "unbalanced"
        if self.dropped or self.spool_lost_events or self.spool_lost_batches or self.ring_lost_events:
            return "lost"
        return "outstanding" if self.outstanding else "balanced"

    def as_dict(self) -> dict[str, Any]:
        """JSON form, as ``/v1/status`` shows it."""
        return {
            "boot_id": self.boot_id.hex(),
            "session": self.session,
            "last_sequence": self.last_sequence,
            "batches": self.batches,
            "emitted": self.emitted,
            "received": self.received,
            "received_other": self.received_other,
            "outstanding": self.outstanding,
            "deduplicated": self.deduplicated,
            "dropped": self.dropped,
            "spool_lost_batches": self.spool_lost_batches,
            "spool_lost_events": self.spool_lost_events,
            "ring_lost_events": self.ring_lost_events,
            "missing_batches": self.missing_batches,
            "unexplained_batches": self.unexplained_batches,
            "resent_batches": self.resent,
            "rejected_batches": self.rejected,
            "balance": self.balance,
            "final": self.final,
            "agent_version": self.agent_version,
            "first_event_ns": self.first_time + self.wall_offset if self.first_time else None,
            "last_event_ns": self.last_time + self.wall_offset if self.last_time else None,
            "first_batch_at_ns": self.first_at_ns,
            "last_batch_at_ns": self.last_at_ns,
        }


@dataclass(frozen=True)
class Report:
    """What heartbeats say of a session that its batches may not: an idle node sends none. Times are ns since boot."""

    drained: int = 0
    """Up to then everything that the kernel reported was in the spool."""
    attached: int = 0
    """When all programs were attached; 0: not known."""
    emitted: int = 0

    @classmethod
    def of(cls, heartbeat: Mapping[str, Any]) -> Report:
        """Read a heartbeat; what is not a number that a clock or counter has counts as not said."""
        counters = heartbeat.get("counters")

        def number(value: Any) -> int:
            return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else 0

        return cls(
            number(heartbeat.get("drained_ns")),
            number(heartbeat.get("attached_ns")),
            number(counters.get("emitted")) if isinstance(counters, dict) else 0,
        )


_NO_REPORT = Report()


@dataclass(frozen=True)
class Totals:
    """The sums of a node's sessions that have no account of their own any more. Times are ns since the epoch."""

    node: str
    sessions: int = 0
    batches: int = 0
    emitted: int = 0
    received: int = 0
    received_other: int = 0
    outstanding: int = 0
    deduplicated: int = 0
    dropped: int = 0
    spool_lost_batches: int = 0
    spool_lost_events: int = 0
    missing_batches: int = 0
    unexplained_batches: int = 0
    resent: int = 0
    rejected: int = 0
    first_at_ns: int = 0
    last_at_ns: int = 0
    ring_lost_events: int = 0

    def plus(self, other: Account | Totals) -> Totals:
        """The sums with one more session, or with those of another node."""
        sums = {name: getattr(self, name) + getattr(other, name) for name in _SUMMED}
        return Totals(
            self.node,
            sessions=self.sessions + (other.sessions if isinstance(other, Totals) else 1),
            first_at_ns=min(filter(None, (self.first_at_ns, other.first_at_ns)), default=0),
            last_at_ns=max(self.last_at_ns, other.last_at_ns),
            **sums,
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON form, as ``/v1/status`` shows it."""
        return {k: v for k, v in vars(self).items() if k != "node"}


_SUMMED = tuple(f.name for f in fields(Totals) if f.name not in ("node", "sessions", "first_at_ns", "last_at_ns"))


def resumed(header: BatchHeader, last_sequence: int, now_ns: int) -> Account:
    """An account for a session that goes on although it was folded into the sums before.

    Only an agent that began hundreds of sessions since, or one that lies, comes here. What it had counted is in the
    sums already, so the new account begins where the batch says that it stands.
    """
    counters = header.counters
    mine = header.count if header.ring_to > header.ring_from else 0
    return Account(
        header.node,
        header.boot_id,
        header.session,
        last_sequence=last_sequence,
        received=max(0, counters.emitted - mine - counters.spool_lost_events),
        emitted=counters.emitted,
        deduplicated=counters.deduplicated,
        dropped=counters.dropped,
        spool_lost_batches=counters.spool_lost_batches,
        spool_lost_events=counters.spool_lost_events,
        first_at_ns=now_ns,
    )


def end(account: Account, report: Report, now_ns: int) -> tuple[Account, list[Note]]:
    """End a session whose node has begun another one in the same boot.

    An agent that ends in order says so in its last batch, and a next agent delivers what it left in the spool before
    anything of its own. So what is outstanding now was in the ring of an agent that was killed, and went with it.
    """
    emitted = max(account.emitted, report.emitted)
    lost = emitted - account.received - account.spool_lost_events - account.ring_lost_events
    if account.final or lost <= 0:
        return replace(account, drained=_watched_until(account, report)), []
    message = f"the agent was killed: {lost} events in its ring are lost"
    from_ns = _watched_until(account, report) + account.wall_offset
    note = Note(
        NoteKind.RING_LOST, account.node, account.boot_id, account.session, now_ns, message, from_ns, None, lost
    )
    ended = replace(
        account,
        drained=_watched_until(account, report),
        emitted=emitted,
        ring_lost_events=account.ring_lost_events + lost,
    )
    return ended, [note]


def _watched_until(account: Account, report: Report) -> int:
    """The last time, ns since boot, up to which a session is known to have delivered everything."""
    if account.final and account.drained:
        return account.drained
    return max(account.drained, report.drained) or account.created


def enter(
    account: Account | None,
    header: BatchHeader,
    now_ns: int,
    previous: Account | None = None,
    report: Report = _NO_REPORT,
) -> tuple[Account, list[Note]]:
    """Enter an applied batch.

    Args:
        account: the session's account so far; None for its first batch.
        header: of the batch; its sequence is greater than the account's last.
        now_ns: the detector's clock, ns since the epoch.
        previous: when ``account`` is None, the session before it: the one of the same boot, which has been ended
            (`end`), else the node's newest of another boot.
        report: what heartbeats say of this session.

    Returns:
        The new account and what is to be told.
    """
    if account is not None:
        assert header.sequence > account.last_sequence
    notes: list[Note] = []

    def note(kind: NoteKind, message: str, **more: Any) -> None:
        notes.append(Note(kind, header.node, header.boot_id, header.session, now_ns, message, **more))

    if account is None:
        account = Account(header.node, header.boot_id, header.session, first_at_ns=now_ns)
        _note_start(header, previous, report, note)
    skipped = header.sequence - account.last_sequence - 1
    counters, old = header.counters, account
    lost_events = counters.spool_lost_events - old.spool_lost_events
    lost_batches = counters.spool_lost_batches - old.spool_lost_batches
    if skipped:
        note(
            NoteKind.BATCHES_MISSING,
            f"batches {old.last_sequence + 1} to {header.sequence - 1} never arrived",
            batches=skipped,
            from_ns=old.last_time + old.wall_offset if old.last_time else None,
            to_ns=header.first_time + header.wall_offset_ns if header.first_time else None,
        )
    if lost_events > 0 or lost_batches > 0:
        message = f"the agent gave up {lost_batches} batches with {lost_events} events (spool full or batch refused)"
        note(NoteKind.SPOOL_LOSS, message, events=max(0, lost_events), batches=max(0, lost_batches))
    drops = counters.dropped - old.dropped
    if drops > 0:
        note(
            NoteKind.KERNEL_DROPS,
            f"the kernel's ring was full: {drops} events dropped",
            events=drops,
            from_ns=old.created + old.wall_offset if old.created else None,
            to_ns=header.created_ns + header.wall_offset_ns,
        )
    step = header.wall_offset_ns - old.wall_offset
    if old.batches and abs(step) > CLOCK_STEP_NS:
        direction = "forward" if step > 0 else "back"
        note(
            NoteKind.CLOCK_STEP,
            f"the node's wall clock was set {direction} by {abs(step) / 1e9:.3f} s",
            from_ns=header.created_ns + old.wall_offset,
            to_ns=header.created_ns + header.wall_offset_ns,
        )
    if old.batches and (counters.emitted < old.emitted or counters.dropped < old.dropped):
        note(
            NoteKind.COUNTERS_WENT_BACK,
            f"emitted {old.emitted} -> {counters.emitted}, dropped {old.dropped} -> {counters.dropped}",
        )
    from_ring = header.ring_to > header.ring_from
    final = old.final or bool(header.flags & BatchFlags.FINAL)
    if final and not old.final:
        note(NoteKind.SESSION_ENDED, "the agent ended the session in order")
    new = replace(
        old,
        last_sequence=header.sequence,
        batches=old.batches + 1,
        received=old.received + (header.count if from_ring else 0),
        received_other=old.received_other + (0 if from_ring else header.count),
        missing_batches=old.missing_batches + skipped,
        emitted=max(old.emitted, counters.emitted),
        deduplicated=max(old.deduplicated, counters.deduplicated),
        dropped=max(old.dropped, counters.dropped),
        spool_lost_batches=max(old.spool_lost_batches, counters.spool_lost_batches),
        spool_lost_events=max(old.spool_lost_events, counters.spool_lost_events),
        first_time=min(filter(None, (old.first_time, header.first_time)), default=0),
        last_time=max(old.last_time, header.last_time),
        created=header.created_ns,
        wall_offset=header.wall_offset_ns,
        last_at_ns=now_ns,
        final=final,
        agent_version=header.agent_version,
        drained=_drained(old, header),
    )
    if new.ring_lost_events and new.outstanding < 0:
        # What was taken for lost comes after all.
        new = replace(new, ring_lost_events=max(0, new.ring_lost_events + new.outstanding))
    if new.at_odds and not old.at_odds:
        note(
            NoteKind.OUT_OF_BALANCE,
            f"{-new.outstanding} events more arrived than the kernel emitted"
            if new.outstanding < 0
            else f"the session ended, and {new.outstanding} events neither arrived nor are known to be lost",
            events=abs(new.outstanding),
        )
    return new, notes


def _drained(account: Account, header: BatchHeader) -> int:
    """Up to when the ring is in the session's batches; `vedette_agent.drain` says what ``created_ns`` means."""
    if header.flags & BatchFlags.FINAL:
        return header.created_ns  # when the programs were detached; batches before it may have been made later
    if account.final or header.ring_to == header.ring_from:
        return account.drained
    return max(account.drained, header.created_ns)


def _note_start(header: BatchHeader, previous: Account | None, report: Report, note: Any) -> None:
    """Tell of a new session, and of the time before it that nobody watched."""
    note(
        NoteKind.SESSION_STARTED, f"agent {header.agent_version or 'of unknown version'} began session {header.session}"
    )
    if previous is None:
        return
    until = previous.drained or previous.created
    # A session is named after the boot time of its load; its last program is attached a moment later.
    loaded = report.attached if header.session <= report.attached <= header.created_ns else header.session
    to_ns = loaded + header.wall_offset_ns
    if previous.boot_id != header.boot_id:
        from_ns = until + previous.wall_offset
        note(NoteKind.NODE_RESTARTED, "the node was restarted", from_ns=from_ns, to_ns=to_ns)
    elif header.session > until:
        # Both are times of one boot, so that a clock that was set in between does not change the length.
        how = "" if previous.final else ", the agent before was killed"
        message = f"no agent watched for {(loaded - until) / 1e9:.3f} s{how}"
        note(NoteKind.WITHOUT_AGENT, message, from_ns=until + header.wall_offset_ns, to_ns=to_ns)
