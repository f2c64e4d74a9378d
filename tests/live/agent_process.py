"""Runs the real agent against the stub detector: started, killed, started again, stopped."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests" / "unit" / "agent"))

from stub_detector import StubDetector, serve_unix  # noqa: E402 (needs the path)

from vedette_events.encode import decode_event  # noqa: E402
from vedette_events.schema import BY_NAME, HEADER_SIZE  # noqa: E402

_CONNECT = BY_NAME["connect"].code


class AgentWorld:
    """Directories, a stub detector and at most one agent process at a time.

    The directory is not pytest's: the agent, as another user, has to reach it.
    """

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="vedette-agent-"))
        self.directory.chmod(0o755)
        self.log = self.directory / "agent.log"
        self.detector = StubDetector(keep_records=True)
        self.listen()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def spool(self) -> Path:
        return self.directory / "spool"

    @property
    def pins(self) -> Path:
        return self.directory / "bpf"

    @property
    def socket(self) -> Path:
        return self.directory / "detector.sock"

    def listen(self) -> None:
        serve_unix(self.detector, self.socket)
        self.socket.chmod(0o777)

    def start(self, *options: str, entry: tuple[str, ...] = ("-m", "vedette_agent")) -> None:
        """Start an agent and wait for its heartbeat."""
        beats = len(self.detector.heartbeats)
        self.launch(*options, entry=entry)
        self.detector.wait_for(lambda: len(self.detector.heartbeats) > beats)

    def launch(self, *options: str, entry: tuple[str, ...] = ("-m", "vedette_agent")) -> None:
        """Start an agent without waiting."""
        assert self.process is None
        command = [sys.executable, *entry, "--node", "live", "--endpoint", f"unix://{self.socket}"]
        command += ["--spool-dir", str(self.spool), "--pin-dir", str(self.pins), *options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = None

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(20)
        self.process = None
        return code

    def close(self) -> None:
        if self.process is not None:
            self.kill()
        self.detector.stop()
        for mounted in (self.pins, self.spool):
            while subprocess.run(["umount", str(mounted)], capture_output=True).returncode == 0:
                pass
        shutil.rmtree(self.directory)

    # ---- what arrived ----------------------------------------------------------------------------------------------

    def events(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every event that arrived, decoded one by one (for small amounts)."""
        for records in self.detector.records:
            yield from self.decode(records)

    def decode(self, records: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events of one batch."""
        at = 0
        while at < len(records):
            (size,) = struct.unpack_from("<I", records, at)
            yield decode_event(records[at : at + size])
            at += size

    def storm_numbers(self, pid: int) -> Counter[int]:
        """How often each numbered event of the `agent_load storm` with this process id arrived."""
        found: Counter[int] = Counter()
        for records in self.detector.records:
            at = 0
            while at < len(records):
                size, code = struct.unpack_from("<IH", records, at)
                if code == _CONNECT and struct.unpack_from("<I", records, at + 32) == (pid,):
                    # family, sock_type, protocol, lport, rport, fd, pad, laddr, raddr: see SOCK in the schema
                    (rport,) = struct.unpack_from("<H", records, at + HEADER_SIZE + 8)
                    raddr = records[at + HEADER_SIZE + 32 : at + HEADER_SIZE + 48]
                    if raddr[12] == 127:
                        found[int.from_bytes(raddr[13:16], "big") | (rport - 1) << 24] += 1
                at += size
        return found


def compile_load(directory: Path) -> Path:
    """The load generator, built."""
    target = directory / "agent_load"
    source = REPOSITORY / "benchmarks" / "agent_load.c"
    subprocess.run(["cc", "-O2", "-Wall", "-o", str(target), str(source)], check=True)
    os.chmod(target, 0o755)
    return target
