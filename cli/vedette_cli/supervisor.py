"""Keep the detector and the agent running on this host, and stop them together.

The two are separate processes so that the one that faces the kernel needs no more rights than that, and so that
either may die without the other losing anything: the agent's ring and spool and the detector's database carry what is
under way. The supervisor only starts them again, with growing pauses.

A supervisor that is itself killed leaves both running, watching on; the next one finds them in ``run.json`` and
replaces them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from vedette_cli.errors import CommandError
from vedette_cli.location import Location
from vedette_cli.text import safe

AGENT_UID = 60700
"""Used by nothing else: from a range that neither distributions nor systemd hand out (https://systemd.io/UIDS-GIDS).
Not 65534, which other programs run as: they could remove the pins, change the filters, kill the agent, speak for it."""

FIRST_PAUSE_S = 0.2
"""Pause before the first restart: short, because a crash under attack must not blind the host for long."""

LONGEST_PAUSE_S = 30.0

HEALTHY_AFTER_S = 5.0
"""A process that ran this long starts again with the shortest pause."""

GIVE_UP_AFTER = 5
"""Failures in a row after which a process that never worked is not tried again."""

STOP_TIMEOUT_S = 15.0
"""Time for a process to finish after SIGTERM; then it is killed."""

READY_TIMEOUT_S = 60.0
"""Time for the detector to listen. Loading rules takes about a second; rebuilding history after a crash longer."""

EXIT_WRONG_SETTINGS = frozenset({2, 78})
"""Exit codes by which a part says that its settings are wrong, so that no restart helps: argparse's, and EX_CONFIG."""


def restart_pause(failures: int) -> float:
    """Return the seconds to wait before restart number ``failures`` (1 is the first): doubled each time, bounded."""
    return float(min(FIRST_PAUSE_S * 2 ** max(failures - 1, 0), LONGEST_PAUSE_S))


def start_ticks(pid: int) -> int | None:
    """Return when process ``pid`` started, in clock ticks since boot: with the pid it names the process for good."""
    try:
        content = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in parentheses may hold anything, so fields are counted from the last parenthesis.
    return int(content.rpartition(")")[2].split()[19])


def check_host(*, uid: int | None = None, btf: Path = Path("/sys/kernel/btf/vmlinux")) -> None:
    """Verify what the agent needs of this host.

    Raises:
        CommandError: naming everything that is missing, with what to do.
    """
    problems: list[tuple[str, str]] = []
    if (os.geteuid() if uid is None else uid) != 0:
        problems.append(("not root", "Loading BPF programs needs root: sudo vedette run"))
    if not btf.exists():
        problems.append(
            (
                f"this kernel ({os.uname().release}) has no type information ({btf} is missing)",
                "Vedette needs a kernel built with CONFIG_DEBUG_INFO_BTF=y: those of Debian 11, Ubuntu 20.10, "
                "Amazon Linux 2023, RHEL 8.2 and later are.",
            )
        )
    if problems:
        what = "; ".join(problem for problem, _ in problems)
        raise CommandError("HostUnsuitable", f"cannot watch this host: {what}", "\n".join(hint for _, hint in problems))


@contextlib.contextmanager
def locked(location: Location) -> Iterator[None]:
    """Hold the locks that make this the only Vedette on its run and data directory.

    Raises:
        CommandError: AlreadyRunning.
    """
    with contextlib.ExitStack() as stack:
        for directory in (location.run_dir, location.data_dir):
            try:
                lock = stack.enter_context((directory / "lock").open("a+"))
            except OSError as error:
                raise _unusable(directory, error) from None
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                owner = lock.read(32).strip() or "?"
                raise CommandError(
                    "AlreadyRunning",
                    f"Vedette already runs here (process {owner} holds {directory}/lock)",
                    "See it with: vedette status\nStop it first, or give another --data-dir and --run-dir.",
                ) from None
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
        yield


def _unusable(directory: Path, error: OSError) -> CommandError:
    hint = "Choose another with --data-dir or --run-dir."
    return CommandError("DirectoryUnusable", f"cannot use {directory}: {error.strerror}", hint)


def make_directories(location: Location) -> None:
    """Create the directories with the rights that each part needs.

    Raises:
        CommandError: DirectoryUnusable.
    """
    # The agent enters the data directory without being root, and may read nothing but its own part of it.
    wanted = (
        (location.run_dir, 0o755, 0),
        (location.data_dir, 0o711, 0),
        (location.detector_dir, 0o700, 0),
        (location.agent_dir, 0o700, AGENT_UID),
    )
    for directory, mode, uid in wanted:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(mode)
            if os.geteuid() == 0:
                os.chown(directory, uid, uid)
        except OSError as error:
            raise _unusable(directory, error) from None


@dataclass
class Part:
    """One supervised process.

    Attributes:
        name: ``detector`` or ``agent``.
        command: its argument vector.
        environment: variables beside those of the supervisor.
        failures: ends in a row without having run for `HEALTHY_AFTER_S`.
        worked: whether it ever ran that long, or was found ready.
        due: when to start it (monotonic seconds), or None while it runs.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    worked: bool = False
    restarts: int = 0
    due: float | None = 0.0
    relay: threading.Thread | None = None
    tail: list[str] = field(default_factory=list)


class Supervisor:
    """Starts, restarts and stops the parts; one per host.

    Args:
        location: where they keep their things.
        detector: the detector's argument vector.
        agent: the agent's argument vector.
        log: takes one line (already safe) about what happens.
    """

    def __init__(
        self, location: Location, detector: Sequence[str], agent: Sequence[str], log: Callable[[str], None]
    ) -> None:
        self.location = location
        # By the environment, because a URL may hold a password and everybody may read argument vectors.
        store = {"VEDETTE_STORE_URL": location.store_url} if location.store_url else {}
        self.detector = Part("detector", detector, store)
        self.agent = Part("agent", agent)
        self.log = log
        self.stopping = False
        self._signals = 0
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)

    def run(self, tick: Callable[[], None] | None = None) -> int:
        """Run until a signal or until a part cannot be run; returns the exit code.

        Args:
            tick: called about ten times a second, on this thread.
        """
        previous = {
            s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)
        }
        previous_fd = signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        selector = selectors.DefaultSelector()
        selector.register(self._wake_read, selectors.EVENT_READ)
        code = 0
        try:
            self._end_leftovers()
            while not self.stopping:
                failed = self._step()
                if failed is not None:
                    code = 1
                    break
                if tick:
                    tick()
                if selector.select(timeout=0.1):
                    with contextlib.suppress(BlockingIOError):
                        while self._wake_read.recv(512):
                            pass
        finally:
            self._stop_all()
            signal.set_wakeup_fd(previous_fd)
            for number, handler in previous.items():
                signal.signal(number, handler)
            selector.close()
            self._wake_read.close()
            self._wake_write.close()
            for left in (self.location.record, self.location.socket):
                left.unlink(missing_ok=True)
        return code

    def _on_signal(self, number: int, frame: object) -> None:
        if number != signal.SIGCHLD:
            self.stopping = True
            self._signals += 1

    def _step(self) -> Part | None:
        """Start what is due, notice what ended; returns a part that cannot be run."""
        for part in (self.detector, self.agent):
            if part.process is not None and part.process.poll() is not None and self._ended(part):
                return part
        now = time.monotonic()
        detector = self.detector
        if detector.process is None and detector.due is not None and now >= detector.due:
            self._start(detector)
        if detector.process is not None and not detector.worked:
            if self._listens():
                detector.worked = True
            elif now - detector.started > READY_TIMEOUT_S:
                self.log(f"the detector did not listen at {self.location.socket} within {READY_TIMEOUT_S:.0f} s")
                return detector
        # The agent starts once the detector has listened for the first time, so that a wrong setting ends the command
        # before anything is loaded into the kernel. Later it stays while the detector restarts: it has its spool.
        agent = self.agent
        if detector.worked and agent.process is None and agent.due is not None and now >= agent.due:
            self._start(agent)
        for part in (detector, agent):
            if part.process is not None and now - part.started > HEALTHY_AFTER_S:
                part.failures = 0
                # A detector has worked when it has listened; on a busy machine it may load for longer than this.
                part.worked = part.worked or part is agent
        return None

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(self.location.socket))
            except OSError:
                return False
        return True

    def _start(self, part: Part) -> None:
        # A session of its own: Ctrl-C in a terminal goes to the supervisor alone, which then stops the parts in order.
        own = ("VEDETTE_DATA_DIR", "VEDETTE_RUN_DIR", "VEDETTE_STORE")
        environment = {k: v for k, v in os.environ.items() if k not in own} | dict(part.environment)
        part.process = subprocess.Popen(
            part.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
        part.started = time.monotonic()
        part.due = None
        part.tail = []
        if part.process.stdout is not None:
            part.relay = threading.Thread(target=self._relay, args=(part, part.process.stdout), daemon=True)
            part.relay.start()
        self._write_record()

    def _relay(self, part: Part, stream: IO[bytes]) -> None:
        for raw in stream:
            if raw.startswith(b"ready "):  # for programs that start a detector by themselves
                continue
            line = safe(raw.rstrip(b"\n").decode("utf-8", "surrogateescape"), limit=2000)
            part.tail = [*part.tail[-19:], line]
            self.log(f"{part.name}: {line}")
        stream.close()

    def _ended(self, part: Part) -> bool:
        """Take note of a part's end; returns whether it is hopeless."""
        assert part.process is not None
        code = part.process.returncode
        if part.relay is not None:
            part.relay.join(timeout=2)
        part.process = None
        part.failures += 1
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if code in EXIT_WRONG_SETTINGS and not part.worked:
            self.log(f"the {part.name} {how}: its settings are wrong, the lines above say which")
            return True
        if part.failures >= GIVE_UP_AFTER and not part.worked:
            self.log(f"the {part.name} {how}, {part.failures} times in a row; giving up")
            return True
        pause = restart_pause(part.failures)
        part.due = time.monotonic() + pause
        part.restarts += 1
        self.log(f"the {part.name} {how}; starting it again in {pause:.1f} s")
        return False

    def _write_record(self) -> None:
        parts = {
            part.name: {
                "pid": part.process.pid,
                "start_ticks": start_ticks(part.process.pid),
                "restarts": part.restarts,
            }
            for part in (self.detector, self.agent)
            if part.process is not None
        }
        content: dict[str, Any] = {
            "pid": os.getpid(),
            "data_dir": str(self.location.data_dir),
            "run_dir": str(self.location.run_dir),
            # A URL may hold a password, and the record is for everybody.
            "store_url": self.location.store_url if "@" not in self.location.store_url else "",
            "parts": parts,
        }
        temporary = self.location.record.with_suffix(".new")
        temporary.write_text(json.dumps(content, indent=2) + "\n")
        temporary.replace(self.location.record)

    def _end_leftovers(self) -> None:
        """Stop the parts of a supervisor that died without stopping them."""
        try:
            parts = json.loads(self.location.record.read_text())["parts"]
            left = [(str(name), int(p["pid"]), int(p["start_ticks"])) for name, p in parts.items()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return
        # The agent first: it hands what it has to the detector.
        for name, pid, ticks in sorted(left):
            if start_ticks(pid) != ticks:
                continue
            self.log(f"stopping the {name} (process {pid}) that an earlier Vedette left behind")
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + STOP_TIMEOUT_S
            while start_ticks(pid) == ticks and time.monotonic() < deadline:
                time.sleep(0.05)
            if start_ticks(pid) == ticks:
                os.kill(pid, signal.SIGKILL)

    def _stop_all(self) -> None:
        # The agent first: on SIGTERM it sends what it has, for which the detector must still be there.
        for part in (self.agent, self.detector):
            process = part.process
            if process is None:
                continue
            signals = self._signals
            if process.poll() is None:
                process.terminate()
            deadline = time.monotonic() + STOP_TIMEOUT_S
            while process.poll() is None and time.monotonic() < deadline and self._signals <= signals + 1:
                time.sleep(0.02)
            if process.poll() is None:
                self.log(f"the {part.name} did not stop in time; killing it")
                process.kill()
                process.wait()
            elif process.returncode not in (0, -signal.SIGTERM):
                self.log(f"the {part.name} ended with exit code {process.returncode} when stopped")
            if part.relay is not None:
                part.relay.join(timeout=2)
            part.process = None


def detector_command(
    location: Location,
    *,
    rules: Sequence[Path] = (),
    threat_lists: Sequence[Path] = (),
    workers: int = 0,
    log_level: str = "warning",
) -> list[str]:
    """Return the argument vector of the detector."""
    command = [
        sys.executable,
        "-m",
        "vedette_detector",
        "--data-dir",
        str(location.detector_dir),
        "--listen",
        f"unix://{location.socket}",
        "--agent-uid",
        str(AGENT_UID),
        "--workers",
        str(workers),
        "--log-level",
        log_level,
    ]
    for directory in rules:
        command += ["--rules", str(directory)]
    for directory in threat_lists:
        command += ["--threat-lists", str(directory)]
    return command


def agent_command(location: Location, *, node: str, log_level: str = "warning") -> list[str]:
    """Return the argument vector of the agent."""
    return [
        sys.executable,
        "-m",
        "vedette_agent",
        "--node",
        node,
        "--endpoint",
        f"unix://{location.socket}",
        "--spool-dir",
        str(location.agent_dir / "spool"),
        "--pin-dir",
        str(location.run_dir / "bpf"),
        "--uid",
        str(AGENT_UID),
        "--log-level",
        log_level,
    ]
