"""The agent's process: start order, the draining loop, and the end.

as root      spool directory and bpffs are prepared, the snapshot's child is forked
then         privileges are dropped; nothing below needs root
load         the BPF programs, or take over the ones that an earlier agent left pinned
resume       put the ring where the spool's last batch ends
loop         ring → spool; snapshot and hashes between; the sender moves spool → detector in its own thread
SIGTERM      detach (unless told to keep), drain, mark the end, send for at most two seconds
"""

from __future__ import annotations

import codecs
import dataclasses
import importlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vedette_agent import (
    __version__,
    bpf_build,
    cgroups,
    filters,
    host,
    loader,
    prepare,
    privileges,
    settings,
    start_times,
)
from vedette_agent.drain import Batches, Drain, KernelCounters, resume
from vedette_agent.errors import AgentError, SpoolBusyError
from vedette_agent.hashing import Executable, Hasher
from vedette_agent.log import Log
from vedette_agent.own_records import OwnRecords
from vedette_agent.sender import BACKOFF_LAST_LOCAL_S, BACKOFF_LAST_S, Client, Endpoint, Sender
from vedette_agent.settings import Settings
from vedette_agent.snapshot import Snapshotter
from vedette_agent.spool import Spool
from vedette_events._native import Ring
from vedette_events.framing import BatchFlags

FINAL_SEND_S = 2.0
FINAL_DRAIN_S = 2.0
_SPOOL_WAIT_S = 5.0


class Agent:
    """One agent, from its start to its end. Made while still root; see the module's docstring."""

    def __init__(self, options: Settings, log: Log) -> None:
        self._options = options
        self._log = log
        # A plain flag: an Event's lock could be held by the very thread that the signal handler interrupts.
        self._stopping = False
        self._started_ns = time.time_ns()
        self._boot_id = host.boot_id()
        self._base: Path | None = None
        self._ec2: host.Ec2Identity | None = None
        self._host = host.describe()

    def stop(self, *_: object) -> None:
        """Ask the agent to end (signal handler)."""
        self._stopping = True

    def run(self) -> None:
        """Run until stopped.

        Raises:
            AgentError: it cannot start.
        """
        options = self._options
        preload(options)
        self._prepare()
        self._look_around()
        snapshotter = Snapshotter(options.uid, options.uid, options.cgroup_root)
        try:
            self._drop()
            self._spool = self._open_spool()
            self._filters = filters.FilterSlot(options.spool_dir / "filters.json")
            self._load()
        except BaseException:
            snapshotter.cancel()
            raise
        self._start_threads()
        self._take_snapshot(snapshotter)
        self._log(
            "info",
            "watching",
            session=self._programs.session,
            taken_over=self._programs.reused,
            sequence=self._batches.sequence,
            endpoint=options.endpoint,
            start_s=round((time.time_ns() - self._started_ns) / 1e9, 3),
        )
        self._loop(snapshotter)
        self._end(snapshotter)

    # ---- start ---------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        if os.geteuid() != 0:
            return
        options = self._options
        prepare.own_directory(options.spool_dir, options.uid)
        if options.pin_dir is not None:
            try:
                prepare.mount_bpffs(options.pin_dir, options.uid)
            except prepare.PrepareError as error:
                self._log("warning", "no bpffs: what is in the ring is lost when the agent is killed", why=error)
        prepare.raise_limits(options.nice)
        if options.object == bpf_build.OBJECT:
            bpf_build.ensure()
        # The tree may lie where only root may look, below /root for one.
        base = bpf_build.base_of(options.object)
        self._base = prepare.in_memory(base) if base.exists() else None
        self._options = dataclasses.replace(options, object=prepare.in_memory(options.object))

    def _look_around(self) -> None:
        """Say what of the host a container hides."""
        for hierarchy, what in ((2, "DNS answers of other containers"), (loader.memory_hierarchy(), "their cgroups")):
            mount = cgroups.find(hierarchy, self._options.cgroup_root)
            if mount is not None and not cgroups.shows_all(mount):
                self._log(
                    "warning",
                    "only a part of the host's cgroups is mounted; mount its /sys/fs/cgroup at /host/cgroup",
                    mount=os.fsdecode(mount.path),
                    not_seen=what,
                )
        if not host.in_host_pid_namespace():
            self._log("warning", "not in the host's pid namespace: processes cannot be looked up (hostPID: true)")

    def _drop(self) -> None:
        left = privileges.drop(self._options.uid, self._options.uid)
        absent = privileges.missing(left)
        if absent:
            self._log("warning", "capabilities are missing", missing=", ".join(absent))

    def _open_spool(self) -> Spool:
        deadline = time.monotonic() + _SPOOL_WAIT_S
        while True:
            try:
                return Spool(self._options.spool_dir, self._options.spool_limit, warn=self._warn_spool)
            except SpoolBusyError:
                # An agent that is being replaced needs a moment to end.
                if time.monotonic() > deadline or self._stopping:
                    raise
                time.sleep(0.1)

    def _warn_spool(self, reason: str, details: dict[str, Any]) -> None:
        self._log.repeated("warning", f"spool: {reason}", every_s=10.0, **details)

    def _load(self) -> None:
        options = self._options
        pin_dir = options.pin_dir
        if pin_dir is not None and not prepare.is_bpffs(pin_dir):
            pin_dir = None
        self._programs = loader.load(options.object, pin_dir, self._config(), base=self._base)
        self._ring = Ring(self._programs.ring_fd, self._programs.ring_size)
        known = self._spool.position(self._boot_id, self._programs.session) is not None
        if self._programs.reused and not known and self._ring.consumer > 0:
            # The spool was lost while the programs stayed. Counting from 1 again in the same session would make the
            # detector take new batches for old ones, so a new session is begun.
            self._log("warning", "the spool does not know the session that was taken over; loading anew")
            self._ring.close()
            self._programs.detach(unpin=True)
            self._programs.close()
            self._programs = loader.load(options.object, pin_dir, self._config(), base=self._base)
            self._ring = Ring(self._programs.ring_fd, self._programs.ring_size)
        for generation in self._programs.stale:
            self._finish_generation(generation)
        self._batches = self._batches_of(self._programs)
        behind = resume(self._ring, self._batches)
        if behind:
            self._log("info", "the last batch was already in the spool", bytes=behind)
        self._drain = Drain(
            self._ring,
            self._batches,
            ring_bytes=self._programs.ring_size,
            poll_s=options.poll_ms / 1000,
            batch_s=options.batch_ms / 1000,
            unhurried=lambda: not self._sender.healthy,
        )
        if not self._programs.reused:
            self._drain.drained_ns = self._programs.session  # a new ring: nothing older can be in it
        for hook in self._programs.hooks:
            if hook.state != "loaded":
                self._log("warning", "hook not available", event=hook.event, hook=hook.hook, why=hook.reason)
        remembered = self._filters.remembered()
        if remembered is not None:
            self._apply(remembered)

    def _finish_generation(self, generation: loader.Generation) -> None:
        """Drain the ring of programs that these have replaced, and remove what is left of them."""
        ring = Ring(generation.ring_fd, generation.ring_size)
        batches = self._batches_of(generation)
        if batches.sequence or not ring.consumer:
            resume(ring, batches)
            drain = Drain(ring, batches, ring_bytes=generation.ring_size)
            drained = drain.finish(FINAL_DRAIN_S, BatchFlags.FINAL)
            self._log("info", "drained the programs before", session=generation.session, events=drain.events)
        else:
            drained = False  # the spool that numbered its batches is gone, see _load
        if not drained:
            self._log("warning", "events of the programs before are lost", session=generation.session)
        ring.close()
        generation.remove()

    def _batches_of(self, generation: loader.Generation) -> Batches:
        return Batches(
            self._spool,
            node=self._options.node,
            boot_id=self._boot_id,
            session=generation.session,
            counters=lambda: KernelCounters(**generation.counters()),
        )

    def _config(self) -> loader.Config:
        root = self._options.cgroup_root
        return loader.Config(ring_bytes=self._options.ring_bytes, cgroup_root=str(root) if root else "")

    def _start_threads(self) -> None:
        options = self._options
        endpoint = Endpoint.parse(options.endpoint)
        client = Client(endpoint, options.token_file, options.ca_file)
        self._sender = Sender(
            self._spool,
            client,
            heartbeat=self._heartbeat,
            filters_version=lambda: self._filters.version,
            on_filters=self._receive_filters,
            log=self._log,
            backoff_last_s=BACKOFF_LAST_LOCAL_S if endpoint.path else BACKOFF_LAST_S,
        )
        self._hasher = Hasher(options.hash_mib_per_s << 20) if options.hash_mib_per_s > 0 else None
        if self._hasher is not None:
            self._hasher.start()
        self._sender.start()
        if options.ec2_metadata and host.is_ec2():
            self._ec2 = host.Ec2Identity()
            self._ec2.start()

    def _take_snapshot(self, snapshotter: Snapshotter) -> None:
        """Begin the snapshot, unless this session has one already."""
        if self._programs.reused and self._spool.note("snapshot") == self._programs.session:
            snapshotter.cancel()
            return
        starts = b""
        try:
            starts = start_times.read()
        except OSError as error:
            self._log("warning", "start times of running processes are only known roughly", why=error)
        snapshotter.start(loader.memory_hierarchy(), starts)

    # ---- loop ----------------------------------------------------------------------------------------------------

    def _loop(self, snapshotter: Snapshotter) -> None:
        drain, hasher = self._drain, self._hasher
        self._own = OwnRecords(self._batches)
        self._snapshot_moved = snapshotter.finished
        next_hashes = 0.0
        while not self._stopping:
            now = time.monotonic()
            wait = drain.step(now)
            if drain.spool_full:
                self._log.repeated("error", "no room for the spool; events stay in the ring", every_s=10.0)
            new_filters = self._filters.take()
            if new_filters is not None:
                self._apply(new_filters)
            if not self._snapshot_moved:
                self._move_snapshot(snapshotter)
            if hasher is not None:
                executables = self._ring.drain_new_executables()
                if executables:
                    hasher.put(Executable(*entry) for entry in executables)
                if now >= next_hashes:
                    next_hashes = now + 0.25
                    self._move_hashes(hasher)
            if wait > 0:
                time.sleep(wait)

    def _move_snapshot(self, snapshotter: Snapshotter) -> None:
        # No more is taken from the child while there is no room for what it has given: it waits for us.
        if not self._flush_own():
            return
        for count, records in snapshotter.poll():
            self._own.put(records, count, BatchFlags.SNAPSHOT)
        if self._flush_own() and snapshotter.finished:
            self._snapshot_moved = True
            if snapshotter.failed:
                self._log("error", "the snapshot of running processes failed")
            else:
                self._spool.set_note("snapshot", self._programs.session)

    def _move_hashes(self, hasher: Hasher) -> None:
        if not self._flush_own():
            return
        records = hasher.take()
        if records:
            self._own.put(b"".join(records), len(records))
            self._flush_own()

    def _flush_own(self) -> bool:
        if self._own.flush():
            return True
        self._log.repeated("error", "no room in the spool for the snapshot or file hashes; they wait", every_s=10.0)
        return False

    def _receive_filters(self, document: dict[str, Any]) -> None:
        parsed, problems = filters.parse(document)
        for problem in problems:
            self._log.repeated("warning", "filters of the detector", problem=problem)
        if parsed.version:
            self._filters.put(parsed)

    def _apply(self, wanted: filters.Filters) -> None:
        try:
            self._programs.set_filters(wanted.as_dict())
        except (loader.LoaderError, OSError) as error:
            self._log.repeated("error", "filters cannot be put into force", why=error)
            return
        try:
            self._filters.in_force(wanted)
        except OSError as error:
            self._log.repeated("warning", "filters are not remembered", why=error)
        self._log("info", "filters in force", version=wanted.version, open_names=len(wanted.open_names))

    def _heartbeat(self) -> dict[str, Any]:
        """The heartbeat's document (sender's thread)."""
        spool = self._spool.stats()
        about = dict(self._host)
        if self._ec2 is not None and self._ec2.document is not None:
            about["ec2"] = self._ec2.document
        loss = self._spool.loss(self._boot_id, self._programs.session)
        document: dict[str, Any] = {
            "node": self._options.node,
            "boot_id": self._boot_id.hex(),
            "session": self._programs.session,
            "agent_version": __version__,
            "pid": os.getpid(),
            "started_at": self._started_ns,
            "host": about,
            "hooks": [
                {"event": hook.event, "hook": hook.hook, "state": hook.state, "reason": hook.reason}
                for hook in self._programs.check_hooks()
            ],
            "spool": {
                "bytes": spool.bytes,
                "batches": spool.batches,
                "limit_bytes": spool.limit_bytes,
                "lost_by_reason": self._spool.reasons(),
            },
            "counters": {
                **self._programs.counters(),
                "spool_lost_batches": loss.batches,
                "spool_lost_events": loss.events,
            },
            "filters_version": self._filters.version,
            "rss_bytes": host.private_rss_bytes(),
            "cpu_seconds": host.cpu_seconds(),
            "host_pid_ns": host.host_namespace("pid"),
            "host_mnt_ns": host.host_namespace("mnt"),
            "events": self._drain.events,
            "sequence": self._batches.sequence,
            "drained_ns": self._drain.drained_ns,
            "attached_ns": self._programs.attached_ns,
            "pinned": self._programs.pinned,
        }
        if self._hasher is not None:
            document["hashes"] = self._hasher.describe()
        return document

    # ---- end -----------------------------------------------------------------------------------------------------

    def _end(self, snapshotter: Snapshotter) -> None:
        if not snapshotter.finished:
            snapshotter.cancel()
        self._own.flush()
        if self._options.keep_attached:
            drained = self._drain.finish(FINAL_DRAIN_S)
        else:
            # The maps stay pinned until they are empty: killed in between, the next agent drains the rest.
            stopped_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            self._programs.detach(unpin=False)
            drained = self._drain.finish(FINAL_DRAIN_S, BatchFlags.FINAL, stopped_ns)
            self._programs.detach(unpin=True)
        self._sender.stop(FINAL_SEND_S)
        left = self._spool.stats().batches
        self._log(
            "info" if drained else "error",
            "stopped" if drained else "stopped; not everything could be moved out of the ring",
            events=self._drain.events,
            batches_left=left,
            cpu_s=round(host.cpu_seconds(), 2),
        )
        self._ring.close()
        self._programs.close()
        self._spool.close()


def preload(options: Settings) -> None:
    """Import now what the standard library imports when it is first used.

    Python itself may be installed where only root may read, and the agent is not root for long.
    """
    for codec in ("ascii", "latin-1", "unicode_escape"):
        codecs.lookup(codec)
    if options.hash_mib_per_s:
        importlib.import_module("hashlib")
    if options.endpoint.startswith("https:"):
        codecs.lookup("idna")
        importlib.import_module("ssl")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the agent; returns the exit code."""
    log = Log()
    try:
        options = settings.parse(arguments)
        log = Log(options.log_format, options.log_level)  # type: ignore[arg-type]
        agent = Agent(options, log)
        signal.signal(signal.SIGTERM, agent.stop)
        signal.signal(signal.SIGINT, agent.stop)
        agent.run()
    except AgentError as error:
        log("error", str(error), reason=error.reason)
        return error.exit_code
    except (loader.LoaderError, bpf_build.BuildError) as error:
        log("error", str(error), reason=error.reason)
        return 5
    return 0


if __name__ == "__main__":
    sys.exit(main())
