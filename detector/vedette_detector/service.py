"""The detector: puts the parts together, keeps them going, and stops them in order."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vedette_detector import filters, ingest, metrics
from vedette_detector.cluster import measures
from vedette_detector.cluster.api import IN_CLUSTER, KubernetesApi
from vedette_detector.cluster.context import KubernetesContext
from vedette_detector.cluster.nodes import NodeInfo
from vedette_detector.cluster.token_review import TokenReviews
from vedette_detector.config import Settings
from vedette_detector.coverage_report import CoverageReport
from vedette_detector.detectors import ALL_DETECTORS, Detector
from vedette_detector.engine.context import EngineSettings
from vedette_detector.engine.detection import Detection
from vedette_detector.engine.history import HistorySettings
from vedette_detector.engine.pool import WorkerPool
from vedette_detector.errors import ConfigError, DetectorError
from vedette_detector.findings.build import Identity, build
from vedette_detector.findings.flood import OVERFLOW_KEY, FloodGate, Verdict
from vedette_detector.findings.model import FindingUpdate, iso
from vedette_detector.findings.resource import ContainerStates, Host
from vedette_detector.findings.workload import Cluster
from vedette_detector.intake import Intake
from vedette_detector.journal import Journal, SessionKey
from vedette_detector.ledger import FORGOTTEN, LOSS_KINDS, Note, NoteKind, Totals
from vedette_detector.listeners import Listeners
from vedette_detector.liveness import Liveness
from vedette_detector.places import Places
from vedette_detector.sigma.loader import Ruleset, load_rules, rules_directory
from vedette_detector.store import NOTES_KEPT, Losses, Store
from vedette_detector.text import Redactor, safe_text
from vedette_detector.threat_lists import ThreatLists, signature
from vedette_events.framing import BatchHeader

log = logging.getLogger(__name__)

HOUSEKEEPING_S = 10.0
RETAIN_S = 3600.0
SHOWN_NOTES = 50
SHOWN_SESSIONS = 16
"""Sessions of a node that the status shows one by one; it sums up the others."""
FIRST_LIST_S = 5.0
"""How long a detector that starts waits for the cluster's pods before it takes batches."""
GAP_TOLERATED_S = 30.0
"""An agent that is replaced leaves its node unwatched for some seconds: it has 15 s to end, and its successor starts. A
longer gap is a problem."""
GAPS_TOLERATED_S = 300.0
"""So are gaps that come to more within `RECENT_S`: an agent that starts again and again."""
FORGET_GRACE_S = 600.0
"""No node is forgotten before the detector has run for so long: only then has each had the time to be heard of."""
RECENT_S = 86400.0
"""Losses that are as recent count as a problem now; older ones are shown and are none."""


def rules_signature(folders: Sequence[Path]) -> tuple[tuple[str, int, int], ...]:
    """(path, mtime in ns, size) of every rule file; changes when any does."""
    result = []
    for folder in folders:
        for path in sorted(folder.rglob("*.y*ml")):
            with contextlib.suppress(OSError):
                status = path.stat()
                result.append((str(path), status.st_mtime_ns, status.st_size))
    return tuple(result)


class Rates:
    """Events of each node in the last minute, in steps of five seconds."""

    STEP_S, STEPS = 5.0, 12

    def __init__(self) -> None:
        self._counts: dict[str, dict[int, list[int]]] = {}

    def add(self, node: str, events: int, size: int, now: float) -> None:
        """Count a batch."""
        steps = self._counts.setdefault(node, {})
        step = int(now / self.STEP_S)
        count = steps.setdefault(step, [0, 0, 0])
        count[0] += events
        count[1] += 1
        count[2] += size
        for old in [s for s in steps if s <= step - self.STEPS]:
            del steps[old]

    def forget(self, node: str) -> None:
        """Remove a node."""
        self._counts.pop(node, None)

    def of(self, node: str, now: float) -> dict[str, float]:
        """Per second, over the last minute."""
        first = int(now / self.STEP_S) - self.STEPS
        counts = [c for s, c in self._counts.get(node, {}).items() if s > first]
        span = self.STEP_S * self.STEPS
        events, batches, size = (sum(c[i] for c in counts) / span for i in range(3))
        return {"events_per_second": events, "batches_per_second": batches, "bytes_per_second": size}


class Service:
    """One detector."""

    def __init__(self, settings: Settings) -> None:
        """Open the store and the journal, load rules and lists.

        Raises:
            DetectorError: something is not usable; the message says what.
        """
        self.settings = settings
        self.started = time.time()
        self._lock_fd = -1
        try:
            settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock_fd = os.open(settings.data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another detector uses {settings.data_dir}", reason="AlreadyRunning") from None
        except OSError as error:
            raise ConfigError(f"data directory {settings.data_dir}: {error}") from None
        try:
            self._redactor = Redactor(settings.redaction, settings.redacted_options)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        self.store = Store(settings.database_url, occurrences=settings.occurrences, timeout_s=settings.store_timeout_s)
        self.journal = Journal(
            settings.journal_dir, settings.journal_segment_bytes, settings.journal_bytes, settings.journal_s
        )
        self.journal.refused = self.store.refused()
        self.recovery = self.journal.open(self.store.applied())
        self._identity = Identity(
            settings.account_id,
            settings.region,
            settings.partition,
            settings.detector_id or self.store.detector_id(),
            settings.cluster,
        )
        self._places = Places(ContainerStates(), Cluster(settings.cluster, self._cluster_arn()))
        self._flood = FloodGate(settings.findings_per_hour)
        self.liveness = Liveness(
            settings.silent_after_s,
            self.store.heartbeats(),
            {a.node: a.last_at_ns for a in sorted(self.store.accounts(), key=lambda a: a.last_at_ns)},
        )
        self._unsaved: set[str] = set()
        self._pending_notes: list[Note] = []
        self.rates = Rates()
        self._rules_signature: tuple[tuple[str, int, int], ...] = ()
        self.ruleset = Ruleset()
        self.detectors: list[Detector] = []
        self.threat_lists = ThreatLists()
        self._filters: dict[str, Any] = filters.derive(())
        self.reload_error: str | None = None
        self._load_rules()
        self._load_threats()
        self.pool: WorkerPool
        self.intake: Intake
        self.coverage_report: CoverageReport
        self._tasks: list[asyncio.Task[None]] = []
        self.kubernetes: KubernetesApi | None = None
        self.reviews: TokenReviews | None = None
        self.listeners: Listeners | None = None
        self._last_retained = 0.0

    def _cluster_arn(self) -> str:
        settings = self.settings
        if settings.cluster_arn or not settings.cluster:
            return settings.cluster_arn
        return f"arn:{settings.partition}:eks:{settings.region}:{settings.account_id}:cluster/{settings.cluster}"

    # Rules and lists

    def _rule_folders(self) -> list[Path]:
        builtin = [rules_directory()] if self.settings.builtin_rules else []
        return [*builtin, *self.settings.rules]

    def _load_rules(self) -> None:
        folders = self._rule_folders()
        self._rules_signature = rules_signature(folders)
        self.ruleset = load_rules(folders)
        self.detectors = list(ALL_DETECTORS) if self.settings.builtin_rules else []
        for error in self.ruleset.errors:
            log.error("rule not loaded: %s", error)
        self._filters = filters.derive([*self.ruleset.rules, *self.detectors])

    def _load_threats(self) -> None:
        self.threat_lists = ThreatLists.load(*self.settings.threat_lists)
        for error in self.threat_lists.errors:
            log.error("threat list: %s", error)

    async def _reload(self) -> None:
        """Load what has changed and hand it to the workers; a failure leaves what is in force."""
        if rules_signature(self._rule_folders()) != self._rules_signature:
            await asyncio.to_thread(self._load_rules)
            await self.pool.replace_rules(self.ruleset, self.detectors)
            log.info("rules reloaded: %d, %d errors", len(self.ruleset.rules), len(self.ruleset.errors))
        if signature(*self.settings.threat_lists) != self.threat_lists.signature:
            await asyncio.to_thread(self._load_threats)
            await self.pool.replace_threat_lists(self.threat_lists)
            log.info("threat lists reloaded: %d", len(self.threat_lists.lists))

    # What the HTTP side asks for (`vedette_detector.ingest.Backend`)

    def filters(self) -> dict[str, Any]:
        """The filters document for agents."""
        return self._filters

    async def heartbeat(self, node: str, boot_id: bytes, document: dict[str, Any]) -> None:
        """Take a heartbeat, and say so in the ledger when none came for long."""
        seconds = self.liveness.heartbeat(node, document)
        self.intake.report(node, boot_id, document)
        if seconds is not None:
            now = time.time_ns()
            before_start = self.liveness.before_start(seconds)
            away = " (the detector itself was started within that time)" if before_start else ""
            session = document.get("session")
            self._pending_notes.append(
                Note(
                    NoteKind.AGENT_SILENT,
                    node,
                    boot_id,
                    session if isinstance(session, int) and 0 <= session < 2**63 else 0,
                    now,
                    f"no heartbeat came for {seconds:.0f} s{away}",
                    now - int(seconds * 1e9),
                    now,
                )
            )
        self._unsaved.add(node)

    async def forget(self, node: str) -> bool:
        """Forget a node that is gone, its history in the engine included; findings stay.

        Returns False when there is no such node, or when it is not gone: batches of it are under way.
        """
        if node not in self.intake.newest and self.liveness.heard(node) is None:
            return False
        if not await self.intake.forget(node):
            return False
        self._unsaved.discard(node)
        self._pending_notes = [note for note in self._pending_notes if note.node != node]
        self.liveness.forget(node)
        self.rates.forget(node)
        self._flood.forget(node)
        await self.pool.forget(node)
        log.info("node %s is forgotten", safe_text(node, 253))
        return True

    async def _forget_gone(self) -> None:
        """Forget nodes that have given no sign for long."""
        limit = self.settings.node_forget_s
        if limit <= 0 or self.liveness.running_s < FORGET_GRACE_S:
            return
        for node in self.liveness.nodes:
            age = self.liveness.sign_age_s(node)
            if age is not None and age > limit:
                await self.forget(node)

    def health(self) -> tuple[bool, str]:
        """Whether the last group of batches could be made durable, and the one under way goes on."""
        stalled = self.intake.stalled_s
        if stalled is not None:
            return False, f"Stalled: batches have been under way for {stalled:.0f} s"
        error = self.intake.last_error
        return (True, "ok") if error is None else (False, f"{error.reason}: {error.message}")

    async def status(self) -> dict[str, Any]:
        """What ``vedette status`` shows."""
        now = time.monotonic()
        statistics = self.intake.statistics
        healthy, health = self.health()
        since = time.time_ns() - int(RECENT_S * 1e9)
        losses = await self.intake.in_store_thread(lambda: self.store.losses(since))
        forgotten = self.intake.sessions.totals.get(FORGOTTEN)
        nodes = []
        for node in sorted({*self.intake.newest, *self.liveness.nodes}):
            notes = await self.intake.in_store_thread(lambda node=node: self.store.notes(node, SHOWN_NOTES))  # type: ignore[misc]
            nodes.append(
                {**self._node_document(node, losses.get(node, {}), now), "notes": list(map(_note_document, notes))}
            )
        return {
            "detector": {
                "version": version("vedette-detector"),
                "pid": os.getpid(),
                "started_at": iso(int(self.started * 1e9)),
                "healthy": healthy,
                "health": health,
                "workers": self.pool.size,
                "store": self.store.shown_url,
                "data_dir": str(self.settings.data_dir),
                "rules": {
                    "loaded": len(self.ruleset.rules),
                    "detectors": len(self.detectors),
                    "errors": [_problem(e) for e in self.ruleset.errors],
                    "failing": [
                        {"unit": unit, "event": event, "message": message}
                        for (unit, event), message in self.intake.last_unit_errors.items()
                    ],
                },
                "threat_lists": self._threat_list_documents(),
                "reload_error": self.reload_error,
                "kubernetes": self._places.context.state() if self._places.context is not None else None,
                "filters_version": self._filters["version"],
                "journal": {
                    "bytes": self.journal.size,
                    "limit_bytes": self.settings.journal_bytes,
                    "limit_s": self.settings.journal_s,
                    "recovery": {
                        "batches": self.recovery.batches,
                        "cut_bytes": self.recovery.cut_bytes,
                        "dropped_batches": self.recovery.dropped,
                    },
                },
                "access": self.listeners.describe() if self.listeners is not None else None,
                "waiting_bytes": self.intake.waiting_bytes,
                "since_start": {
                    "batches": statistics.batches,
                    "resent_batches": statistics.resent,
                    "rejected_batches": statistics.rejected,
                    "refused_requests": statistics.refused,
                    "events": statistics.events,
                    "events_by_type": statistics.events_by_type,
                    "detections": statistics.detections,
                    "findings_created": statistics.findings_created,
                    "findings_updated": statistics.findings_updated,
                    "unit_errors": statistics.unit_errors,
                    "engine_seconds": statistics.engine_seconds,
                },
            },
            "findings": await self.intake.in_store_thread(self.store.counts),
            "nodes": nodes,
            "forgotten": forgotten.as_dict() if forgotten is not None else None,
        }

    def _node_document(self, node: str, recent: Mapping[NoteKind, Losses], now: float) -> dict[str, Any]:
        """One node of the status, its notes left out; ``recent`` is what they tell of in all within `RECENT_S`."""
        heard = self.liveness.heard(node)
        newest = self.intake.newest.get(node)
        accounts = self.intake.sessions.of_node(node)
        shown, rest = accounts[-SHOWN_SESSIONS:], accounts[:-SHOWN_SESSIONS]
        folded = self.intake.sessions.totals.get(node, Totals(node))
        for account in rest:
            folded = folded.plus(account)
        everything = folded
        for account in shown:
            everything = everything.plus(account)
        return {
            **(heard.heartbeat if heard is not None else {}),
            "node": node,
            "heartbeat_at": iso(heard.at_ns) if heard is not None else None,
            "heartbeat_age_s": self.liveness.age_s(node),
            "agent_age_s": self.liveness.agent_age_s(node),
            "silent": self.liveness.silent(node),
            "ledger": [a.as_dict() for a in sorted(shown, key=lambda a: a.first_at_ns)],
            "ledger_before": folded.as_dict() if folded.sessions else None,
            "losses": losses_document(recent, everything),
            "gaps": gaps_document(recent),
            "last_batch_at": iso(newest.last_at_ns) if newest is not None else None,
            "last_batch_age_s": self.liveness.batch_age_s(node),
            "rates": self.rates.of(node, now),
        }

    def _threat_list_documents(self) -> list[dict[str, Any]]:
        """Each list, and each file that gave none, with its errors."""
        documents: dict[str, dict[str, Any]] = {
            entry.file: {
                "name": entry.name,
                "file": entry.file,
                "entries": entry.entries,
                "trusted": entry.trusted,
                "errors": [],
            }
            for entry in self.threat_lists.lists
        }
        for error in self.threat_lists.errors:
            empty = {"name": Path(error.file).stem, "file": error.file, "entries": 0, "trusted": False, "errors": []}
            documents.setdefault(error.file, empty)["errors"].append(_problem(error))
        return list(documents.values())

    async def metrics(self) -> str:
        """Prometheus text."""
        rendered = metrics.render(self.intake, self.journal.size, self.liveness)
        access = self.listeners.metrics() if self.listeners is not None else ""
        watches = measures.render(self.cluster) if self.cluster is not None else ""
        return rendered + await self.coverage_report.metrics() + access + watches

    async def coverage(self) -> dict[str, Any]:
        """What the operator asks: which nodes are covered, and why others are not."""
        return await self.coverage_report.document()

    @property
    def cluster(self) -> KubernetesContext | None:
        """What is known of the cluster; None where the detector does not watch one."""
        return self._places.context

    def cluster_nodes(self) -> list[NodeInfo] | None:
        """The cluster's nodes; None where the detector does not watch them, or has not read them yet."""
        return self.cluster.nodes() if self.cluster is not None and self.cluster.synced else None

    # From detections to findings

    def to_finding(self, detection: Detection, header: BatchHeader) -> FindingUpdate:
        """Make a detection a finding of its pod's workload, its container or its host."""
        heard = self.liveness.heard(header.node)
        host = replace(
            Host.of(header.node, header.boot_id, heard.heartbeat if heard is not None else None),
            agent_version=safe_text(header.agent_version, 64),
        )
        resource = self._places.resource(detection, host)
        update = build(detection, resource, host, self._identity, self._redactor)
        verdict = self._flood.judge(header.node, update.type, resource.scope, update.id, confirmed=resource.confirmed)
        if verdict is not Verdict.ADMITTED:
            overflow = replace(detection, key=OVERFLOW_KEY, notes=[self._flood.note(verdict), *detection.notes])
            if verdict is Verdict.NODE_FULL:
                overflow = replace(overflow, container=None)
                resource = self._places.resource(overflow, host)
            update = build(overflow, resource, host, self._identity, self._redactor)
        return update

    # Life

    def history(self, wanted: Callable[[str], bool]) -> Iterator[bytes]:
        """Batches that rebuild a worker's history; called by the pool."""
        return self.journal.history(self.intake.applied, self.settings.history_window_s, wanted)

    async def start(self) -> None:
        """Start the workers, rebuild history, listen.

        Raises:
            DetectorError: the address cannot be listened on.
        """
        settings = self.settings
        workers = settings.workers or len(os.sched_getaffinity(0))
        history = HistorySettings(window_s=settings.history_window_s)
        self.pool = WorkerPool(
            workers, self.ruleset, self.threat_lists, EngineSettings(history), self.detectors, self.history
        )
        self.intake = Intake(
            pool=self.pool,
            journal=self.journal,
            store=self.store,
            to_finding=self.to_finding,
            max_waiting_bytes=settings.max_waiting_bytes,
            occurrences=settings.occurrences,
        )
        self.coverage_report = CoverageReport(
            self.liveness, self.intake, self.store, self.cluster_nodes, watched=settings.kubernetes != "off"
        )
        self.intake.on_batch = self._count_batch
        for node, (_, heartbeat) in self.liveness.known.items():
            self.intake.report(node, bytes.fromhex(str(heartbeat.get("boot_id", ""))), heartbeat)
        self.intake.settle, self.intake.prepare = self._places.settle, self._places.prepare
        await self.pool.start()
        self.intake.start()
        await self._start_kubernetes()
        self.listeners = Listeners(
            settings,
            lambda authenticator: ingest.make_app(self, authenticator, max_body_bytes=settings.max_body_bytes),
            self.reviews,
        )
        await self.listeners.start()
        self._tasks = [
            asyncio.create_task(self._periodically(settings.reload_s, self._reload), name="reload"),
            asyncio.create_task(self._periodically(HOUSEKEEPING_S, self._keep_house), name="housekeeping"),
            asyncio.create_task(self._periodically(settings.tls_reload_s, self.listeners.reload), name="certificate"),
        ]
        log.info(
            "detector listens on %s with %d workers and %d rules",
            " ".join(settings.listen),
            workers,
            len(self.ruleset.rules),
        )

    async def _start_kubernetes(self) -> None:
        """Open what talks to the Kubernetes API server, where the settings ask for it.

        Raises:
            ConfigError: its configuration cannot be used. An API server that is away is no error.
        """
        settings = self.settings
        if settings.kubernetes == "off" and not settings.token_review:
            return
        self.kubernetes = KubernetesApi(IN_CLUSTER if settings.kubernetes == "off" else settings.kubernetes)
        await self.kubernetes.open()
        if settings.kubernetes != "off":
            self._places.context = KubernetesContext(self.kubernetes)
            await self._places.context.start(FIRST_LIST_S)
        if settings.token_review:
            self.reviews = TokenReviews(
                self.kubernetes,
                audience=settings.token_audience,
                agents=settings.agent_service_account,
                admins=settings.admin_service_account,
                cache_s=settings.token_cache_s,
                grace_s=settings.token_grace_s,
            )

    def _count_batch(self, header: BatchHeader, data: bytes) -> None:
        self.liveness.batch(header.node)
        self.rates.add(header.node, header.count, len(data), time.monotonic())

    async def stop(self) -> None:
        """Take no more batches, answer those that wait, then close everything."""
        if hasattr(self, "intake"):
            self.intake.refuse()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.listeners is not None:
            await self.listeners.stop()
        if self.reviews is not None:
            await self.reviews.close()
        if self._places.context is not None:
            await self._places.context.stop()
        if self.kubernetes is not None:
            await self.kubernetes.close()
        if hasattr(self, "intake"):
            with contextlib.suppress(DetectorError):
                await self._keep_house()
            await self.intake.close()
        if hasattr(self, "pool"):
            await self.pool.close()
        self.close()

    def close(self) -> None:
        """Close files; after `stop`, or where `start` was never called."""
        self.journal.close()
        self.store.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    async def _periodically(self, period_s: float, work: Callable[[], Any]) -> None:
        while True:
            await asyncio.sleep(period_s)
            try:
                await work()
                self.reload_error = None if work == self._reload else self.reload_error
            except Exception as error:  # whatever is wrong now may be right in the next round
                if work == self._reload:
                    self.reload_error = str(error)
                log.exception("%s failed", getattr(work, "__name__", "work"))

    async def _keep_house(self) -> None:
        """Save heartbeats and notes, hold the bounds."""
        await self.intake.in_journal_thread(self.journal.enforce)
        nodes, self._unsaved = self._unsaved, set()
        notes, self._pending_notes = self._pending_notes, []
        # Notes of a node are trimmed when many have been written, whoever wrote them.
        noisy = [node for node, count in self.intake.noted.items() if count >= NOTES_KEPT // 4]
        for node in noisy:
            del self.intake.noted[node]

        def save() -> None:
            for node in nodes:
                heard = self.liveness.heard(node)
                if heard is not None:
                    boot_id = str(heard.heartbeat.get("boot_id", ""))
                    self.store.put_heartbeat(node, boot_id, heard.heartbeat, heard.at_ns)
            if notes:
                self.store.add_notes(notes)
            if noisy:
                self.store.trim_notes(noisy)

        try:
            await self.intake.in_store_thread(save)
        except DetectorError:
            self._unsaved |= nodes
            self._pending_notes = [*notes, *self._pending_notes][-1000:]
            raise
        if time.monotonic() - self._last_retained > RETAIN_S or not self._last_retained:
            self._last_retained = time.monotonic()
            await self._retain()
        await self._forget_gone()

    async def _retain(self) -> None:
        """Remove what is older than the retention; fold the sessions that are."""
        now, retention = time.time_ns(), self.settings.finding_retention_s
        sessions = self.intake.sessions

        def work() -> tuple[int, dict[SessionKey, int]]:
            removed = self.store.retain(now, retention, self.journal.begins_ns)
            return removed, self.store.folded()

        await self.intake.fold(lambda: sessions.older_than(now - int(retention * 1e9)))
        removed, folded = await self.intake.in_store_thread(work)
        sessions.remember_only(folded)
        if removed:
            log.info("removed %d findings older than the retention", removed)


def losses_document(recent: Mapping[NoteKind, Losses], everything: Totals) -> dict[str, Any]:
    """What a node has lost, recently and before. Pure.

    Args:
        recent: what the ledger's notes within `RECENT_S` tell of in all.
        everything: the sums over all sessions of the node.
    """

    def of(kind: NoteKind) -> Losses:
        return recent.get(kind, Losses(0, 0, 0, 0))

    told = {
        "dropped_events": of(NoteKind.KERNEL_DROPS).events,
        "spool_lost_events": of(NoteKind.SPOOL_LOSS).events,
        "spool_lost_batches": of(NoteKind.SPOOL_LOSS).batches,
        # What the agent has reported since is no more unexplained, whenever the gap was seen.
        "unexplained_batches": min(of(NoteKind.BATCHES_MISSING).batches, everything.unexplained_batches),
        "ring_lost_events": of(NoteKind.RING_LOST).events,
        "refused_batches": of(NoteKind.BATCH_REJECTED).batches,
        "contradictions": of(NoteKind.OUT_OF_BALANCE).notes + of(NoteKind.COUNTERS_WENT_BACK).notes,
    }
    total = {
        "dropped_events": everything.dropped,
        "spool_lost_events": everything.spool_lost_events,
        "spool_lost_batches": everything.spool_lost_batches,
        "unexplained_batches": everything.unexplained_batches,
        "ring_lost_events": everything.ring_lost_events,
        "refused_batches": everything.rejected,
    }
    last = max((recent[kind].last_at_ns for kind in LOSS_KINDS & recent.keys()), default=None)
    return {
        "period_s": RECENT_S,
        "recent": told,
        "earlier": {name: max(0, count - told[name]) for name, count in total.items()},
        "last_at": iso(last) if last is not None else None,
    }


def gaps_document(recent: Mapping[NoteKind, Losses]) -> dict[str, Any]:
    """How long no agent watched a node that was running, within `RECENT_S`. Pure."""
    gaps = recent.get(NoteKind.WITHOUT_AGENT, Losses(0, 0, 0, 0))
    return {
        "period_s": RECENT_S,
        "count": gaps.notes,
        "seconds": round(gaps.span_ns / 1e9, 3),
        "longest_s": round(gaps.longest_ns / 1e9, 3),
        "last_at": iso(gaps.last_at_ns) if gaps.notes else None,
        "too_long": gaps.longest_ns > GAP_TOLERATED_S * 1e9 or gaps.span_ns > GAPS_TOLERATED_S * 1e9,
    }


def _problem(error: Any) -> dict[str, Any]:
    return {"file": error.file, "line": error.line, "reason": error.reason, "message": error.message}


def _note_document(note: Note) -> dict[str, Any]:
    return {
        "kind": note.kind.value,
        "at": iso(note.at_ns),
        "session": note.session,
        "message": note.message,
        "from": iso(note.from_ns) if note.from_ns is not None else None,
        "to": iso(note.to_ns) if note.to_ns is not None else None,
        "events": note.events,
        "batches": note.batches,
    }
