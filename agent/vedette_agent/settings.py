"""The agent's settings: one typed model; the command line's options are made from it."""

# ruff: noqa: RUF009 - `_option` is dataclasses.field with the help text that every setting must have.

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vedette_agent import __version__
from vedette_agent.errors import SettingsError
from vedette_agent.sender import Endpoint

_SIZE = re.compile(r"(\d+)\s*(|[KMG]i?B?)\Z", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_size(text: str) -> int:
    """Bytes of ``64MiB``, ``64M`` or ``67108864``; units are powers of 1024.

    Raises:
        ValueError: no such size.
    """
    match = _SIZE.match(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; expected for example 256MiB")
    return int(match[1]) * _UNITS[match[2][:1].upper()]


def _option(default: Any, text: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": text, **metadata})


@dataclass(frozen=True)
class Settings:
    """What the agent is started with. Each field is the option of the same name, with dashes."""

    node: str = _option("", "Name of this node; by default the host's name.")
    endpoint: str = _option(
        "unix:///run/vedette/detector.sock", "Where the detector listens: unix:///path or https://host:port."
    )
    token_file: Path | None = _option(None, "Bearer token for https; read again when it changes.")
    ca_file: Path | None = _option(None, "Certificates to trust for https, in place of the system's.")
    spool_dir: Path = _option(Path("/var/lib/vedette/agent/spool"), "Where batches wait for the detector.")
    spool_limit: int = _option(256 << 20, "Greatest size of the spool; the oldest batches go beyond it.", size=True)
    pin_dir: Path | None = _option(
        Path("/run/vedette/bpf"),
        "A bpffs in which programs and ring outlive the agent; mounted there when started by root. Empty: no pins.",
    )
    cgroup_root: Path | None = _option(
        None, "Where the host's cgroups are mounted; by default /host/cgroup, else wherever they are."
    )
    object: Path = _option(Path(__file__).parent / "bpf" / "vedette.bpf.o", "The compiled BPF programs.")
    uid: int = _option(60700, "User and group to become when started by root; best one that nothing else uses.")
    ring_bytes: int = _option(8 << 20, "Size of the ring buffer, a power of two.", size=True)
    poll_ms: int = _option(20, "Time between two looks into the ring, in ms; twice as long when nothing happens.")
    batch_ms: int = _option(40, "Least time between two batches, in ms, unless 1 MiB is pending.")
    hash_mib_per_s: int = _option(32, "Most MiB of new executables to hash in a second; 0: hash nothing.")
    nice: int = _option(-5, "Scheduling priority to take when started by root (nice value).")
    keep_attached: bool = _option(False, "When stopped, leave the programs attached for the next agent to take over.")
    ec2_metadata: bool = _option(True, "On EC2, ask the instance metadata service which instance this is.")
    log_format: str = _option("text", "Form of log lines.", choices=("text", "json"))
    log_level: str = _option("info", "Least level of log lines.", choices=("debug", "info", "warning", "error"))

    def check(self) -> Settings:
        """Return the settings with defaults filled in.

        Raises:
            SettingsError: naming everything that is wrong.
        """
        problems = []
        try:
            Endpoint.parse(self.endpoint)
        except SettingsError as error:
            problems.append(str(error))
        if self.ring_bytes < 4096 or self.ring_bytes & (self.ring_bytes - 1):
            problems.append(f"--ring-bytes {self.ring_bytes}: not a power of two of at least 4096")
        if self.spool_limit < 1 << 20:
            problems.append(f"--spool-limit {self.spool_limit}: less than 1 MiB")
        if not 1 <= self.poll_ms <= 1000 or not 1 <= self.batch_ms <= 10_000:
            problems.append("--poll-ms must lie between 1 and 1000, --batch-ms between 1 and 10000")
        if self.uid <= 0:
            problems.append(f"--uid {self.uid}: the agent never stays root")
        node = self.node or os.uname().nodename
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?", node):
            problems.append(f"--node {node!r}: not a host name")
        if problems:
            raise SettingsError("; ".join(problems))
        return Settings(**{**{f.name: getattr(self, f.name) for f in fields(self)}, "node": node})


def parser() -> argparse.ArgumentParser:
    """The command line, made from `Settings`."""
    made = argparse.ArgumentParser(
        prog="vedette-agent",
        description="Watches this host through eBPF and sends what it sees to the detector.",
    )
    made.add_argument("--version", action="version", version=f"vedette-agent {__version__}")
    for option in fields(Settings):
        flag = "--" + option.name.replace("_", "-")
        text = option.metadata["help"]
        if isinstance(option.default, bool):
            made.add_argument(flag, action=argparse.BooleanOptionalAction, default=option.default, help=text)
            continue
        kind: Any = str
        if option.metadata.get("size"):
            kind = _size_argument
        elif isinstance(option.default, int):
            kind = int
        elif isinstance(option.default, Path) or option.default is None:
            kind = _path_argument
        shown = "" if option.default in (None, "") else f" Default: {option.default}."
        made.add_argument(
            flag, type=kind, default=option.default, choices=option.metadata.get("choices"), help=text + shown
        )
    return made


def parse(arguments: Sequence[str] | None = None) -> Settings:
    """Settings from the command line; exits as argparse does on malformed options.

    Raises:
        SettingsError: values that no agent can run with.
    """
    return Settings(**vars(parser().parse_args(arguments))).check()


def _size_argument(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _path_argument(text: str) -> Path | None:
    return Path(text) if text else None
