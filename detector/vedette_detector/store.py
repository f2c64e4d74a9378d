"""The store: findings, their occurrences, the ledger and the outbox, in SQLite or PostgreSQL.

One transaction holds everything that a group of batches brought about: findings, occurrences, outbox entries, the
ledger and thereby the sequence numbers up to which each session is applied. A batch is acknowledged after its commit,
so that a detector killed at any moment neither loses nor repeats a finding.

Times are integers, ns since the epoch, so that both databases order them alike. Every change of a finding takes the
next *revision*, a number that rises in the order of commits (its row is locked until then): the cursor of
`Store.since`.
"""

from __future__ import annotations

import json
import random
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

from vedette_detector.errors import QueryError, StorageFullError, StoreBusyError, StoreError, StoreVersionError
from vedette_detector.findings.model import FindingUpdate, fold_document
from vedette_detector.journal import SessionKey
from vedette_detector.ledger import FORGOTTEN, LOSS_KINDS, Account, Note, NoteKind, Totals

T = TypeVar("T")

metadata = sa.MetaData()
_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

_COLUMN_TYPES: dict[str, Any] = {"bool": sa.Boolean(), "str": sa.String(64)}

settings_table = sa.Table(
    "settings",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
counters_table = sa.Table(
    "counters", metadata, sa.Column("name", sa.String(64), primary_key=True), sa.Column("value", _BIG, nullable=False)
)
findings_table = sa.Table(
    "findings",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("revision", _BIG, nullable=False, unique=True),
    sa.Column("type", sa.String(128), nullable=False, index=True),
    sa.Column("severity", sa.Float, nullable=False),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("node", sa.String(256), nullable=False, index=True),
    sa.Column("resource_type", sa.String(32), nullable=False),
    sa.Column("resource_id", sa.String(512), nullable=False, index=True),
    sa.Column("count", _BIG, nullable=False),
    sa.Column("archived", sa.Boolean, nullable=False),
    sa.Column("first_seen", _BIG, nullable=False),
    sa.Column("last_seen", _BIG, nullable=False, index=True),
    sa.Column("created_at", _BIG, nullable=False),
    sa.Column("updated_at", _BIG, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
)
occurrences_table = sa.Table(
    "occurrences",
    metadata,
    sa.Column("id", _BIG, primary_key=True, autoincrement=True),
    sa.Column("finding_id", sa.String(32), sa.ForeignKey("findings.id", ondelete="CASCADE"), nullable=False),
    sa.Column("number", _BIG, nullable=False),
    sa.Column("seen_at", _BIG, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.UniqueConstraint("finding_id", "number"),
)
ledger_table = sa.Table(
    "ledger",
    metadata,
    sa.Column("node", sa.String(256), primary_key=True),
    sa.Column("boot_id", sa.String(32), primary_key=True),
    sa.Column("session", _BIG, primary_key=True),
    *(
        sa.Column(f.name, _COLUMN_TYPES.get(str(f.type), _BIG), nullable=False)
        for f in fields(Account)
        if f.name not in ("node", "boot_id", "session")
    ),
)
notes_table = sa.Table(
    "ledger_notes",
    metadata,
    sa.Column("id", _BIG, primary_key=True, autoincrement=True),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("node", sa.String(256), nullable=False, index=True),
    sa.Column("boot_id", sa.String(32), nullable=False),
    sa.Column("session", _BIG, nullable=False),
    sa.Column("at_ns", _BIG, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("from_ns", _BIG),
    sa.Column("to_ns", _BIG),
    sa.Column("events", _BIG, nullable=False),
    sa.Column("batches", _BIG, nullable=False),
    sa.Index("ix_ledger_notes_at_ns", "at_ns"),
)
folded_table = sa.Table(
    "ledger_folded",
    metadata,
    sa.Column("node", sa.String(256), primary_key=True),
    sa.Column("boot_id", sa.String(32), primary_key=True),
    sa.Column("session", _BIG, primary_key=True),
    sa.Column("last_sequence", _BIG, nullable=False),
    sa.Column("last_at_ns", _BIG, nullable=False, index=True),
)
"""Sessions that have no account any more: up to where each was applied."""
totals_table = sa.Table(
    "ledger_totals",
    metadata,
    *(
        sa.Column(f.name, sa.String(256) if f.name == "node" else _BIG, primary_key=f.name == "node", nullable=False)
        for f in fields(Totals)
    ),
)
"""Each node's sums of the sessions that have no account any more; node ``""``: of nodes that were forgotten."""
refused_table = sa.Table(
    "refused_batches",
    metadata,
    sa.Column("node", sa.String(256), primary_key=True),
    sa.Column("boot_id", sa.String(32), primary_key=True),
    sa.Column("session", _BIG, primary_key=True),
    sa.Column("sequence", _BIG, primary_key=True),
    sa.Column("at_ns", _BIG, nullable=False, index=True),
)
"""Batches that are in the journal and that the engine cannot take: history is rebuilt without them."""
nodes_table = sa.Table(
    "nodes",
    metadata,
    sa.Column("node", sa.String(256), primary_key=True),
    sa.Column("boot_id", sa.String(32), nullable=False),
    sa.Column("heartbeat_at", _BIG, nullable=False),
    sa.Column("heartbeat", sa.Text, nullable=False),
)
outbox_table = sa.Table(
    "outbox",
    metadata,
    sa.Column("finding_id", sa.String(32), sa.ForeignKey("findings.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),  # created | updated
    sa.Column("revision", _BIG, nullable=False, index=True),
    sa.Column("queued_at", _BIG, nullable=False),
)
"""What a sink has not fetched yet: one row for each finding, however often it repeats, so that the table is bounded by
the number of findings."""

Migration = Callable[[Connection], None]


def _create_all(connection: Connection) -> None:
    metadata.create_all(connection)
    connection.execute(counters_table.insert(), {"name": "revision", "value": 0})
    connection.execute(settings_table.insert(), {"name": "detector_id", "value": secrets.token_hex(16)})


def _bound_the_ledger(connection: Connection) -> None:
    """Version 2: sessions can be folded into sums, and refused batches are remembered.

    Written out, so that it stays what it is when `metadata` goes on. A new database has all of it already, because
    `_create_all` makes the newest state.
    """
    big = "INTEGER" if connection.dialect.name == "sqlite" else "BIGINT"
    session_key = f"node VARCHAR(256) NOT NULL, boot_id VARCHAR(32) NOT NULL, session {big} NOT NULL"
    sums = (
        "sessions batches emitted received received_other outstanding deduplicated dropped spool_lost_batches "
        "spool_lost_events missing_batches unexplained_batches resent rejected first_at_ns last_at_ns"
    )
    columns = ", ".join(f"{name} {big} NOT NULL" for name in sums.split())
    for statement in (
        f"CREATE TABLE IF NOT EXISTS ledger_folded ({session_key}, last_sequence {big} NOT NULL, "
        f"last_at_ns {big} NOT NULL, PRIMARY KEY (node, boot_id, session))",
        "CREATE INDEX IF NOT EXISTS ix_ledger_folded_last_at_ns ON ledger_folded (last_at_ns)",
        f"CREATE TABLE IF NOT EXISTS ledger_totals (node VARCHAR(256) NOT NULL PRIMARY KEY, {columns})",
        f"CREATE TABLE IF NOT EXISTS refused_batches ({session_key}, sequence {big} NOT NULL, at_ns {big} NOT NULL, "
        "PRIMARY KEY (node, boot_id, session, sequence))",
        "CREATE INDEX IF NOT EXISTS ix_refused_batches_at_ns ON refused_batches (at_ns)",
        "CREATE INDEX IF NOT EXISTS ix_ledger_notes_at_ns ON ledger_notes (at_ns)",
    ):
        connection.exec_driver_sql(statement)


def _account_for_rings(connection: Connection) -> None:
    """Version 3: up to when a session's ring was drained, and what was lost with it."""
    big = "INTEGER" if connection.dialect.name == "sqlite" else "BIGINT"
    for table, column in (("ledger", "drained"), ("ledger", "ring_lost_events"), ("ledger_totals", "ring_lost_events")):
        if column not in {c["name"] for c in sa.inspect(connection).get_columns(table)}:
            connection.exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN {column} {big} NOT NULL DEFAULT 0")


MIGRATIONS: tuple[Migration, ...] = (_create_all, _bound_the_ledger, _account_for_rings)
"""The n-th brings a database from version n to n+1. A later one must not use `metadata`, which is the newest state, and
must tolerate what `_create_all` has made of it already."""

NOTES_KEPT = 2000
"""Ledger notes kept for each node: as many that tell of losses, and as many others."""
REFUSED_KEPT = 10_000
"""Refused batches that are remembered, of all nodes."""


@dataclass(frozen=True)
class Filters:
    """Which findings to list; a field left as it is does not restrict. Times are ns since the epoch."""

    types: tuple[str, ...] = ()
    """Finding types; ``*`` stands for any text."""
    min_severity: float | None = None
    since_ns: int | None = None
    until_ns: int | None = None
    archived: bool | None = False
    node: str | None = None
    resource_type: str | None = None
    resource: str | None = None
    """Beginning of the container id or instance."""
    ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """A stored finding: the columns that lists need, and the whole document (GuardDuty JSON with our additions)."""

    id: str
    revision: int
    type: str
    severity: float
    title: str
    node: str
    resource_type: str
    resource_id: str
    count: int
    archived: bool
    first_seen_ns: int
    last_seen_ns: int
    created_at_ns: int
    updated_at_ns: int
    document: dict[str, Any]


@dataclass(frozen=True)
class Occurrence:
    """One repeat of a finding: the document as that occurrence alone would have made it."""

    finding_id: str
    number: int
    seen_at_ns: int
    document: dict[str, Any]


@dataclass(frozen=True)
class OutboxEntry:
    """A finding whose newest state a sink has not got yet; ``kind`` is ``created`` or ``updated``."""

    finding_id: str
    kind: str
    revision: int
    document: dict[str, Any]


@dataclass(frozen=True)
class Effects:
    """Everything that a group of batches brings about."""

    accounts: Sequence[Account] = ()
    notes: Sequence[Note] = ()
    findings: Sequence[FindingUpdate] = ()
    fold: Sequence[Account] = ()
    """Accounts to be folded into their node's sums; they are in their newest state and not among ``accounts``."""
    forget: Sequence[SessionKey] = ()
    """Folded sessions whose last sequence number is not kept any longer."""
    amended: Sequence[Account] = ()
    """Accounts that change although no batch of theirs is applied."""


@dataclass(frozen=True)
class Losses:
    """What the ledger's notes of one kind and node tell of together, within some time."""

    notes: int
    events: int
    batches: int
    last_at_ns: int
    span_ns: int = 0
    """Length of the times that they name, from the beginning to the end of each, added up."""
    longest_ns: int = 0


@dataclass(frozen=True)
class Applied:
    """What `Store.apply` changed."""

    created: int
    updated: int
    revision: int


class Store:
    """Access to the database; safe to use from several threads.

    Opening it brings the schema up to date, unless ``read_only``.
    """

    def __init__(self, url: str, *, occurrences: int = 20, timeout_s: float = 20.0, read_only: bool = False) -> None:
        """Open the database at ``url``.

        Args:
            url: SQLAlchemy URL. ``postgresql://`` means psycopg (version 3).
            occurrences: occurrences kept in full for each finding.
            timeout_s: how long a locked or unreachable database is tried again.
            read_only: do not create or migrate anything.

        Raises:
            StoreVersionError: written by a newer Vedette.
            StoreError: cannot be opened.
        """
        self.occurrences_kept = occurrences
        self.timeout_s = timeout_s
        try:
            parsed = make_url(url)
        except SQLAlchemyError as error:
            raise StoreError(f"store URL {url!r} is not an SQLAlchemy URL: {error}") from None
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        self.sqlite = parsed.get_backend_name() == "sqlite"
        self.shown_url = parsed.render_as_string(hide_password=True)
        self._writer = self._engine(parsed, write=True)
        self._reader = self._engine(parsed, write=False) if self.sqlite else self._writer
        try:
            self._migrate(read_only)
        except StoreError:
            self.close()
            raise

    def _engine(self, url: sa.URL, *, write: bool) -> Engine:
        if not self.sqlite:
            return sa.create_engine(url, pool_pre_ping=True, pool_size=4, isolation_level="READ COMMITTED")
        # The driver must wait briefly only: the retry in `_retry` bounds the whole wait and tells what happened.
        engine = sa.create_engine(url, connect_args={"timeout": 1.0, "check_same_thread": False})

        @event.listens_for(engine, "connect")
        def connected(connection: Any, _: Any) -> None:
            # The driver's own transaction handling would begin a write transaction late, after reads: then a
            # competing writer makes it fail in the middle instead of wait at the start.
            connection.isolation_level = None
            cursor = connection.cursor()
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute("PRAGMA synchronous=FULL")
            cursor.execute("PRAGMA foreign_keys=ON")
            cursor.close()

        @event.listens_for(engine, "begin")
        def begun(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

        return engine

    def close(self) -> None:
        """Close all connections."""
        self._writer.dispose()
        self._reader.dispose()

    # Transactions

    def _retry(self, engine: Engine, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in a transaction; again from the start while the database is locked or out of reach."""
        deadline = time.monotonic() + self.timeout_s
        attempt = 0
        while True:
            try:
                with engine.begin() as connection:
                    return work(connection)
            except DBAPIError as error:
                translated, again = _translate(error, self.shown_url)
                pause = min(0.02 * 2**attempt, 0.5) * (0.5 + random.random())  # noqa: S311 - jitter, not a secret
                if not again or time.monotonic() + pause > deadline:
                    raise translated from error
                attempt += 1
                time.sleep(pause)

    def _write(self, work: Callable[[Connection], T]) -> T:
        return self._retry(self._writer, work)

    def _read(self, work: Callable[[Connection], T]) -> T:
        return self._retry(self._reader, work)

    @contextmanager
    def exclusive(self) -> Iterator[Connection]:
        """A write transaction for callers of their own kind; commits at the end."""
        with self._writer.begin() as connection:
            yield connection

    def _migrate(self, read_only: bool) -> None:
        def version_of(connection: Connection) -> int:
            if not sa.inspect(connection).has_table("settings"):
                return 0
            found = connection.execute(
                sa.select(settings_table.c.value).where(settings_table.c.name == "version")
            ).scalar_one_or_none()
            return int(found) if found is not None else 0

        def check(version: int) -> None:
            if version > len(MIGRATIONS):
                raise StoreVersionError(
                    f"{self.shown_url} has version {version}; this Vedette knows up to {len(MIGRATIONS)}: upgrade it"
                )

        if read_only:
            version = self._read(version_of)
            check(version)
            if version < len(MIGRATIONS):
                raise StoreError(
                    f"{self.shown_url} has version {version}, not {len(MIGRATIONS)}: start the detector to bring it "
                    "up to date"
                )
            return

        def migrate(connection: Connection) -> None:
            if not self.sqlite:
                # Two detectors that start together must not migrate together.
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(815318)")
            version = version_of(connection)
            check(version)
            for number in range(version, len(MIGRATIONS)):
                MIGRATIONS[number](connection)
            if version < len(MIGRATIONS):
                connection.execute(settings_table.delete().where(settings_table.c.name == "version"))
                connection.execute(settings_table.insert(), {"name": "version", "value": str(len(MIGRATIONS))})

        self._write(migrate)

    # Writing

    def apply(self, effects: Effects, now_ns: int) -> Applied:
        """Make the effects durable, all of them or, with an error, none.

        Raises:
            StoreBusyError: locked by another process for longer than the timeout.
            StorageFullError: no space left.
            StoreError: otherwise not possible.
        """
        return self._write(lambda connection: self._apply(connection, effects, now_ns))

    def _apply(self, connection: Connection, effects: Effects, now_ns: int) -> Applied:
        if effects.accounts and self._is_applied(connection, effects.accounts):
            return Applied(0, 0, 0)
        for account in (*effects.accounts, *effects.amended):
            self._put_account(connection, account)
        self._fold(connection, effects.fold, effects.forget)
        if effects.notes:
            connection.execute(notes_table.insert(), [_note_row(n) for n in effects.notes])
        if not effects.findings:
            return Applied(0, 0, 0)
        revision = self._take_revisions(connection, len(effects.findings))
        known = {
            row.id: row
            for chunk in _chunks([u.id for u in effects.findings], 500)
            for row in connection.execute(
                sa.select(findings_table).where(findings_table.c.id.in_(chunk)).with_for_update()
            )
        }
        created = updated = 0
        for update in effects.findings:
            row = known.get(update.id)
            self._put_finding(connection, update, _finding(row) if row is not None else None, revision, now_ns)
            created, updated = created + (row is None), updated + (row is not None)
            revision += 1
        return Applied(created, updated, revision - 1)

    def _is_applied(self, connection: Connection, accounts: Sequence[Account]) -> bool:
        """Whether the transaction was committed before: a connection can be lost after the commit, before its answer.

        Raises:
            StoreError: somebody else has written these sessions.
        """
        done = 0
        for account in accounts:
            stored = connection.execute(
                sa.select(ledger_table.c.last_sequence).where(
                    ledger_table.c.node == account.node,
                    ledger_table.c.boot_id == account.boot_id.hex(),
                    ledger_table.c.session == account.session,
                )
            ).scalar_one_or_none()
            done += stored is not None and stored >= account.last_sequence
        if done not in (0, len(accounts)):
            raise StoreError(f"{self.shown_url}: another detector writes the same nodes; run only one for a database")
        return done > 0

    def _take_revisions(self, connection: Connection, count: int) -> int:
        """First of ``count`` new revisions; the row stays locked until the commit, so commits are in their order."""
        table = counters_table
        last = connection.execute(
            table.update()
            .where(table.c.name == "revision")
            .values(value=table.c.value + count)
            .returning(table.c.value)
        ).scalar_one()
        return int(last) - count + 1

    def _put_account(self, connection: Connection, account: Account) -> None:
        values = {f.name: getattr(account, f.name) for f in fields(Account)}
        values["boot_id"] = account.boot_id.hex()
        values["agent_version"] = account.agent_version[:64]
        # Unsigned 64-bit counters of a hostile agent must not stop everybody's transaction.
        values = {k: _clamp(v) if isinstance(v, int) and not isinstance(v, bool) else v for k, v in values.items()}
        key = {k: values[k] for k in ("node", "boot_id", "session")}
        condition = sa.and_(*(ledger_table.c[k] == v for k, v in key.items()))
        done = connection.execute(ledger_table.update().where(condition).values(values))
        if done.rowcount == 0:
            connection.execute(ledger_table.insert(), values)
            connection.execute(folded_table.delete().where(*_is_session(folded_table, _key(account))))

    def _fold(self, connection: Connection, accounts: Sequence[Account], forget: Sequence[SessionKey]) -> None:
        sums: dict[str, Totals] = {}
        for account in accounts:
            connection.execute(ledger_table.delete().where(*_is_session(ledger_table, _key(account))))
            connection.execute(folded_table.delete().where(*_is_session(folded_table, _key(account))))
            row = {
                "node": account.node,
                "boot_id": account.boot_id.hex(),
                "session": account.session,
                "last_sequence": account.last_sequence,
                "last_at_ns": account.last_at_ns,
            }
            connection.execute(folded_table.insert(), row)
            sums[account.node] = sums.get(account.node, Totals(account.node)).plus(account)
        for more in sums.values():
            self._add_totals(connection, more)
        for key in forget:
            connection.execute(folded_table.delete().where(*_is_session(folded_table, key)))

    def _add_totals(self, connection: Connection, more: Totals) -> None:
        mine = totals_table.c.node == more.node
        row = connection.execute(sa.select(totals_table).where(mine)).one_or_none()
        known = Totals(**row._mapping) if row is not None else Totals(more.node)
        values = {k: _clamp(v) if isinstance(v, int) else v for k, v in vars(known.plus(more)).items()}
        if row is None:
            connection.execute(totals_table.insert(), values)
        else:
            connection.execute(totals_table.update().where(mine), values)

    def _put_finding(
        self, connection: Connection, update: FindingUpdate, known: Finding | None, revision: int, now_ns: int
    ) -> None:
        first_number = known.count if known else 0
        document = fold_document(known.document if known else None, update, now_ns)
        service = document["service"]
        row = {
            "id": update.id,
            "revision": revision,
            "type": update.type,
            "severity": document["severity"],
            "title": document["title"],
            "node": update.node,
            "resource_type": update.resource_type,
            "resource_id": update.resource_id[:512],
            "count": service["count"],
            "archived": service["archived"],
            "first_seen": min(update.first_seen_ns, known.first_seen_ns) if known else update.first_seen_ns,
            "last_seen": max(update.last_seen_ns, known.last_seen_ns) if known else update.last_seen_ns,
            "created_at": known.created_at_ns if known else now_ns,
            "updated_at": now_ns,
            "document": _dump(document),
        }
        if known is None:
            connection.execute(findings_table.insert(), row)
        else:
            connection.execute(findings_table.update().where(findings_table.c.id == update.id), row)
        number = first_number + update.count
        kept = list(update.occurrences)[-self.occurrences_kept :]
        connection.execute(
            occurrences_table.insert(),
            [
                {
                    "finding_id": update.id,
                    "number": number - (len(kept) - 1 - index),
                    "seen_at": seen_at,
                    "document": _dump(occurrence),
                }
                for index, (seen_at, occurrence) in enumerate(kept)
            ],
        )
        connection.execute(
            occurrences_table.delete().where(
                occurrences_table.c.finding_id == update.id,
                occurrences_table.c.id.not_in(
                    sa.select(occurrences_table.c.id)
                    .where(occurrences_table.c.finding_id == update.id)
                    .order_by(occurrences_table.c.number.desc())
                    .limit(self.occurrences_kept)
                ),
            )
        )
        waiting = connection.execute(
            outbox_table.update().where(outbox_table.c.finding_id == update.id).values(revision=revision)
        )
        if waiting.rowcount == 0:
            kind = "created" if known is None else "updated"
            entry = {"finding_id": update.id, "kind": kind, "revision": revision, "queued_at": now_ns}
            connection.execute(outbox_table.insert(), entry)

    def put_heartbeat(self, node: str, boot_id: str, heartbeat: Mapping[str, Any], now_ns: int) -> None:
        """Keep the newest heartbeat of a node."""

        def work(connection: Connection) -> None:
            values = {"boot_id": boot_id, "heartbeat_at": now_ns, "heartbeat": _dump(heartbeat)}
            done = connection.execute(nodes_table.update().where(nodes_table.c.node == node).values(values))
            if done.rowcount == 0:
                connection.execute(nodes_table.insert(), {"node": node, **values})

        self._write(work)

    def add_notes(self, notes: Sequence[Note]) -> None:
        """Enter notes that belong to no applied batch."""
        self._write(lambda connection: connection.execute(notes_table.insert(), [_note_row(n) for n in notes]))

    def refuse(self, batches: Sequence[tuple[SessionKey, int]], notes: Sequence[Note], now_ns: int) -> None:
        """Remember batches, by session and sequence, that history is to be rebuilt without."""

        def work(connection: Connection) -> None:
            for key, sequence in batches:
                mine = (*_is_session(refused_table, key), refused_table.c.sequence == sequence)
                connection.execute(refused_table.delete().where(*mine))
                row = {"node": key[0], "boot_id": key[1].hex(), "session": key[2], "sequence": sequence}
                connection.execute(refused_table.insert(), {**row, "at_ns": now_ns})
            if notes:
                connection.execute(notes_table.insert(), [_note_row(n) for n in notes])

        self._write(work)

    def fold(self, accounts: Sequence[Account]) -> None:
        """Fold accounts into their nodes' sums."""
        self._write(lambda connection: self._fold(connection, accounts, ()))

    def forget(self, node: str, accounts: Sequence[Account]) -> None:
        """Remove a node: heartbeat and notes go; ``accounts``, all that it has, go into the sums of `FORGOTTEN`."""

        def work(connection: Connection) -> None:
            self._fold(connection, accounts, ())
            row = connection.execute(sa.select(totals_table).where(totals_table.c.node == node)).one_or_none()
            if row is not None:
                self._add_totals(connection, Totals(FORGOTTEN).plus(Totals(**row._mapping)))
            for table in (totals_table, notes_table, nodes_table):
                connection.execute(table.delete().where(table.c.node == node))

        self._write(work)

    def archive(self, ids: Sequence[str], archived: bool, now_ns: int) -> int:
        """Archive findings or take them back; returns how many changed."""

        def work(connection: Connection) -> int:
            rows = connection.execute(
                sa.select(findings_table)
                .where(findings_table.c.id.in_(ids), findings_table.c.archived != archived)
                .with_for_update()
            ).all()
            if not rows:
                return 0
            revision = self._take_revisions(connection, len(rows))
            for offset, row in enumerate(rows):
                document = json.loads(row.document)
                document["service"]["archived"] = archived
                connection.execute(
                    findings_table.update().where(findings_table.c.id == row.id),
                    {
                        "archived": archived,
                        "revision": revision + offset,
                        "updated_at": now_ns,
                        "document": _dump(document),
                    },
                )
            return len(rows)

        return self._write(work)

    def retain(self, now_ns: int, retention_s: float, journal_begins_ns: int | None = None) -> int:
        """Remove what is older than the retention; returns the number of findings.

        Args:
            now_ns: the detector's clock.
            retention_s: findings that have not changed for longer go.
            journal_begins_ns: nothing in the journal is older. The last sequence number of a folded session goes when
                it is older than this and than the retention, a refused batch when it is older than this. None: they
                stay.
        """
        before = now_ns - int(retention_s * 1e9)

        def work(connection: Connection) -> int:
            old = sa.select(findings_table.c.id).where(findings_table.c.updated_at < before)
            for table in (occurrences_table, outbox_table):
                connection.execute(table.delete().where(table.c.finding_id.in_(old)))
            gone = connection.execute(findings_table.delete().where(findings_table.c.updated_at < before)).rowcount
            nodes = connection.execute(sa.select(notes_table.c.node).distinct()).scalars().all()
            self._trim_notes(connection, nodes)
            if journal_begins_ns is not None:
                for table, time in ((folded_table, folded_table.c.last_at_ns), (refused_table, refused_table.c.at_ns)):
                    limit = min(before, journal_begins_ns) if table is folded_table else journal_begins_ns
                    connection.execute(table.delete().where(time < limit))
            last = sa.select(refused_table.c.at_ns).order_by(refused_table.c.at_ns.desc()).offset(REFUSED_KEPT).limit(1)
            connection.execute(refused_table.delete().where(refused_table.c.at_ns <= last.scalar_subquery()))
            return int(gone)

        return self._write(work)

    def trim_notes(self, nodes: Sequence[str]) -> None:
        """Remove the oldest notes of nodes that have too many."""
        self._write(lambda connection: self._trim_notes(connection, nodes))

    @staticmethod
    def _trim_notes(connection: Connection, nodes: Sequence[str]) -> None:
        losses = notes_table.c.kind.in_([kind.value for kind in LOSS_KINDS])
        for node in nodes:
            for condition in (losses, sa.not_(losses)):
                mine = (notes_table.c.node == node, condition)
                last = sa.select(notes_table.c.id).where(*mine).order_by(notes_table.c.id.desc()).offset(NOTES_KEPT)
                connection.execute(
                    notes_table.delete().where(*mine, notes_table.c.id <= last.limit(1).scalar_subquery())
                )

    # Reading

    def detector_id(self) -> str:
        """The detector's id, made when the database was."""

        def work(connection: Connection) -> str:
            query = sa.select(settings_table.c.value).where(settings_table.c.name == "detector_id")
            return str(connection.execute(query).scalar_one())

        return self._read(work)

    def accounts(self) -> list[Account]:
        """The ledger, by node and in order of arrival."""

        def work(connection: Connection) -> list[Account]:
            query = sa.select(ledger_table).order_by(ledger_table.c.node, ledger_table.c.first_at_ns)
            return [_account(row) for row in connection.execute(query)]

        return self._read(work)

    def folded(self) -> dict[SessionKey, int]:
        """Last applied sequence of each session that has no account any more, those heard of longest ago first."""
        table = folded_table
        query = sa.select(table).order_by(table.c.last_at_ns)

        def work(connection: Connection) -> dict[SessionKey, int]:
            rows = connection.execute(query)
            return {(r.node, bytes.fromhex(r.boot_id), int(r.session)): int(r.last_sequence) for r in rows}

        return self._read(work)

    def totals(self) -> dict[str, Totals]:
        """Each node's sums of the sessions that have no account any more; under `FORGOTTEN` of nodes forgotten."""

        def work(connection: Connection) -> dict[str, Totals]:
            return {row.node: Totals(**row._mapping) for row in connection.execute(sa.select(totals_table))}

        return self._read(work)

    def applied(self) -> dict[SessionKey, int]:
        """Last applied sequence of each session, also of those that have no account any more."""
        return self.folded() | {_key(a): a.last_sequence for a in self.accounts()}

    def refused(self) -> set[tuple[SessionKey, int]]:
        """Batches, by session and sequence, that history is to be rebuilt without."""

        def work(connection: Connection) -> set[tuple[SessionKey, int]]:
            rows = connection.execute(sa.select(refused_table))
            return {((r.node, bytes.fromhex(r.boot_id), int(r.session)), int(r.sequence)) for r in rows}

        return self._read(work)

    def losses(self, since_ns: int) -> dict[str, dict[NoteKind, Losses]]:
        """What the notes since ``since_ns`` (detector's clock) tell of in all, by node and kind."""
        table = notes_table.c

        def total(column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
            # SQLite's sum of integers is an error beyond 64 bits, and the numbers are a node's to choose.
            return sa.func.sum(sa.cast(column, sa.Float))

        # The bounds of 64 bits hold for the ends, not for their difference.
        span = sa.cast(table.to_ns, sa.Float) - sa.cast(table.from_ns, sa.Float)
        query = (
            sa.select(
                table.node,
                table.kind,
                sa.func.count().label("notes"),
                total(table.events).label("events"),
                total(table.batches).label("batches"),
                sa.func.max(table.at_ns).label("last_at_ns"),
                sa.func.coalesce(sa.func.sum(span), 0.0).label("span_ns"),
                sa.func.coalesce(sa.func.max(span), 0.0).label("longest_ns"),
            )
            .where(table.at_ns >= since_ns)
            .group_by(table.node, table.kind)
        )

        def work(connection: Connection) -> dict[str, dict[NoteKind, Losses]]:
            result: dict[str, dict[NoteKind, Losses]] = {}
            for row in connection.execute(query):
                counts = (int(row.notes), int(row.events), int(row.batches), int(row.last_at_ns))
                spans = (int(row.span_ns), int(row.longest_ns))
                result.setdefault(row.node, {})[NoteKind(row.kind)] = Losses(*counts, *spans)
            return result

        return self._read(work)

    def notes(self, node: str | None = None, limit: int = 100) -> list[Note]:
        """Ledger notes, newest first."""

        def work(connection: Connection) -> list[Note]:
            query = sa.select(notes_table).order_by(notes_table.c.id.desc()).limit(limit)
            if node is not None:
                query = query.where(notes_table.c.node == node)
            return [_note(row) for row in connection.execute(query)]

        return self._read(work)

    def heartbeats(self) -> dict[str, tuple[int, dict[str, Any]]]:
        """Newest heartbeat of each node, with when it came (ns since the epoch)."""

        def work(connection: Connection) -> dict[str, tuple[int, dict[str, Any]]]:
            rows = connection.execute(sa.select(nodes_table))
            return {row.node: (int(row.heartbeat_at), json.loads(row.heartbeat)) for row in rows}

        return self._read(work)

    def get(self, finding_id: str) -> Finding | None:
        """One finding by its id, or by a unique beginning of it of at least four digits.

        Raises:
            QueryError: several findings begin so.
        """
        wanted = finding_id.lower()
        if not wanted or len(wanted) < 4 or not set(wanted) <= set("0123456789abcdef"):
            return None
        query = sa.select(findings_table).where(findings_table.c.id.startswith(wanted)).limit(2)
        found = self._read(lambda connection: [_finding(row) for row in connection.execute(query)])
        if len(found) > 1:
            raise QueryError(f"several findings begin with {wanted}: give more digits", reason="AmbiguousFindingId")
        return found[0] if found else None

    def occurrences(self, finding_id: str) -> list[Occurrence]:
        """The kept occurrences of a finding, oldest first."""
        table = occurrences_table
        query = sa.select(table).where(table.c.finding_id == finding_id).order_by(table.c.number)

        def work(connection: Connection) -> list[Occurrence]:
            return [
                Occurrence(row.finding_id, int(row.number), int(row.seen_at), json.loads(row.document))
                for row in connection.execute(query)
            ]

        return self._read(work)

    def since(self, cursor: int, filters: Filters | None = None, *, limit: int = 500) -> tuple[list[Finding], int]:
        """Findings created or updated after ``cursor``, in order of change, and the new cursor.

        ``cursor`` 0 begins with the oldest change, `cursor` gives the present end.
        """
        query = (
            sa.select(findings_table)
            .where(findings_table.c.revision > cursor, *_conditions(filters or Filters()))
            .order_by(findings_table.c.revision)
            .limit(limit)
        )
        found = self._read(lambda connection: [_finding(row) for row in connection.execute(query)])
        return found, found[-1].revision if found else cursor

    def cursor(self) -> int:
        """The newest revision."""
        query = sa.select(counters_table.c.value).where(counters_table.c.name == "revision")
        return self._read(lambda connection: int(connection.execute(query).scalar_one()))

    def outbox(self, limit: int = 100) -> list[OutboxEntry]:
        """What waits for a sink, in order of change."""
        query = (
            sa.select(outbox_table, findings_table.c.document)
            .join(findings_table, findings_table.c.id == outbox_table.c.finding_id)
            .order_by(outbox_table.c.revision)
            .limit(limit)
        )

        def work(connection: Connection) -> list[OutboxEntry]:
            return [
                OutboxEntry(row.finding_id, row.kind, int(row.revision), json.loads(row.document))
                for row in connection.execute(query)
            ]

        return self._read(work)

    def settle(self, entries: Sequence[OutboxEntry]) -> None:
        """Remove delivered entries; one whose finding has changed in the meantime stays, as an update."""

        def work(connection: Connection) -> None:
            for entry in entries:
                mine = outbox_table.c.finding_id == entry.finding_id
                connection.execute(outbox_table.delete().where(mine, outbox_table.c.revision == entry.revision))
                connection.execute(outbox_table.update().where(mine).values(kind="updated"))

        self._write(work)

    def counts(self) -> dict[str, int]:
        """Findings by severity band, archived ones left out."""
        query = sa.select(findings_table.c.severity).where(findings_table.c.archived.is_(False))

        def work(connection: Connection) -> dict[str, int]:
            result = {"low": 0, "medium": 0, "high": 0, "critical": 0}
            for (severity,) in connection.execute(query):
                result[severity_band(severity)] += 1
            return result

        return self._read(work)

    def list(self, filters: Filters | None = None, *, limit: int = 1000, offset: int = 0) -> list[Finding]:
        """Findings that pass the filters, the ones last seen most recently first."""
        query = sa.select(findings_table).where(*_conditions(filters or Filters()))
        query = query.order_by(findings_table.c.last_seen.desc(), findings_table.c.id).limit(limit).offset(offset)
        return self._read(lambda connection: [_finding(row) for row in connection.execute(query)])


def severity_band(severity: float) -> str:
    """GuardDuty's name of a severity: low 1.0-3.9, medium 4.0-6.9, high 7.0-8.9, critical 9.0-10.0."""
    if severity >= 9:
        return "critical"
    if severity >= 7:
        return "high"
    return "medium" if severity >= 4 else "low"


def _conditions(filters: Filters) -> list[sa.ColumnElement[bool]]:
    table = findings_table.c
    conditions: list[sa.ColumnElement[bool]] = []
    if filters.types:
        conditions.append(sa.or_(*(table.type.like(_pattern(t), escape="\\") for t in filters.types)))
    if filters.min_severity is not None:
        conditions.append(table.severity >= filters.min_severity)
    if filters.since_ns is not None:
        conditions.append(table.last_seen >= filters.since_ns)
    if filters.until_ns is not None:
        conditions.append(table.first_seen <= filters.until_ns)
    if filters.archived is not None:
        conditions.append(table.archived.is_(filters.archived))
    if filters.node is not None:
        conditions.append(table.node == filters.node)
    if filters.resource_type is not None:
        conditions.append(table.resource_type == filters.resource_type)
    if filters.resource is not None:
        conditions.append(table.resource_id.startswith(filters.resource, autoescape=True))
    if filters.ids:
        conditions.append(table.id.in_(filters.ids))
    return conditions


def _pattern(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%")


def _chunks(values: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _dump(document: Mapping[str, Any]) -> str:
    # PostgreSQL's text cannot hold NUL; JSON escapes it, and every text was made safe before.
    return json.dumps(document, separators=(",", ":"), ensure_ascii=True, allow_nan=False, default=str)


def _finding(row: Any) -> Finding:
    return Finding(
        id=row.id,
        revision=int(row.revision),
        type=row.type,
        severity=float(row.severity),
        title=row.title,
        node=row.node,
        resource_type=row.resource_type,
        resource_id=row.resource_id,
        count=int(row.count),
        archived=bool(row.archived),
        first_seen_ns=int(row.first_seen),
        last_seen_ns=int(row.last_seen),
        created_at_ns=int(row.created_at),
        updated_at_ns=int(row.updated_at),
        document=json.loads(row.document),
    )


def _key(account: Account) -> SessionKey:
    return (account.node, account.boot_id, account.session)


def _is_session(table: sa.Table, key: SessionKey) -> tuple[sa.ColumnElement[bool], ...]:
    return (table.c.node == key[0], table.c.boot_id == key[1].hex(), table.c.session == key[2])


def _account(row: Any) -> Account:
    values = {f.name: getattr(row, f.name) for f in fields(Account)}
    values["boot_id"] = bytes.fromhex(row.boot_id)
    return Account(**values)


def _clamp(value: int) -> int:
    return max(-(2**63), min(value, 2**63 - 1))


def _note_row(note: Note) -> dict[str, Any]:
    return {
        "kind": note.kind.value,
        "node": note.node,
        "boot_id": note.boot_id.hex(),
        "session": _clamp(note.session),
        "at_ns": note.at_ns,
        "message": note.message,
        "from_ns": None if note.from_ns is None else _clamp(note.from_ns),
        "to_ns": None if note.to_ns is None else _clamp(note.to_ns),
        "events": _clamp(note.events),
        "batches": _clamp(note.batches),
    }


def _note(row: Any) -> Note:
    return Note(
        NoteKind(row.kind),
        row.node,
        bytes.fromhex(row.boot_id),
        int(row.session),
        int(row.at_ns),
        row.message,
        row.from_ns,
        row.to_ns,
        int(row.events),
        int(row.batches),
    )


def _translate(error: DBAPIError, where: str) -> tuple[StoreError, bool]:
    """What a driver's error means, and whether trying again can help."""
    origin = error.orig
    text = str(origin)
    if isinstance(origin, sqlite3.Error):
        code = (origin.sqlite_errorcode if hasattr(origin, "sqlite_errorcode") else 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StoreBusyError(f"{where} is locked by another process"), True
        if code == sqlite3.SQLITE_FULL:
            return StorageFullError(f"{where}: no space left on the disk"), False
        if code == sqlite3.SQLITE_CANTOPEN:
            return StoreError(f"{where} cannot be opened: does the directory exist, with write permission?"), False
        if code == sqlite3.SQLITE_IOERR:
            # A full disk shows as an I/O error too, where WAL's shared memory cannot grow.
            return StoreError(f"{where}: {text} (disk full or failing?)"), False
        return StoreError(f"{where}: {text}"), False
    state = getattr(origin, "sqlstate", None) or ""
    if state in ("53100",):
        return StorageFullError(f"{where}: no space left on the database server"), False
    # Serialization, deadlock, lock timeout, shutdown and connection errors (class 08, 57P0x) pass.
    passing = state[:2] in ("08", "40") or state in ("55P03", "57P01", "57P02", "57P03", "53300")
    if isinstance(error, OperationalError) and (passing or error.connection_invalidated or not state):
        return StoreBusyError(f"{where} cannot be used right now: {text.strip()}"), True
    return StoreError(f"{where}: {text.strip()}"), False
