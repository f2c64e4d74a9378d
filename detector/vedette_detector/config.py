"""The detector's settings: one frozen model, read once at start from flags and the environment.

Every field has a flag (``--journal-bytes``) and an environment variable (``VEDETTE_JOURNAL_BYTES``); the flag wins.
"""

# ruff: noqa: RUF009 - `_field` is dataclasses.field with the metadata that every setting must have.
from __future__ import annotations

import argparse
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vedette_detector.errors import ConfigError

DEFAULT_REDACTION: tuple[str, ...] = (
    r"(?i)(?:password|passwd|pwd|secret|token|api[_-]?key|access[_-]?key|credential)s?[\"']?\s*[=:]\s*[\"']?([^\s\"'&;,]+)",
    r"(?i)authorization:\s*(?:basic|bearer|token)?\s*([^\s\"']+)",
    r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s/:@]*:([^\s/@]+)@",
    r"\b((?:AKIA|ASIA)[A-Z0-9]{16})\b",
    r"\b(gh[pousr]_[A-Za-z0-9]{20,})",
    r"\b(eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*)",
)
"""RE2 patterns; the first group of a match (or the whole match) is replaced. RE2 runs in linear time, so an argument
vector made by an attacker cannot make a pattern run away."""

DEFAULT_REDACTED_OPTIONS: tuple[str, ...] = (
    "--password",
    "--passwd",
    "--pass",
    "--token",
    "--secret",
    "--api-key",
    "--access-key",
    "--secret-key",
    "--auth-token",
)
"""Options whose value is the next argument."""


def _field(default: Any, doc: str, unit: str = "") -> Any:
    return dataclasses.field(default=default, metadata={"doc": doc, "unit": unit})


@dataclass(frozen=True)
class Settings:
    """Settings of one detector process. Units are in each field's metadata and in ``--help``."""

    data_dir: Path = _field(Path("/var/lib/vedette/detector"), "Directory of the database and the journal.")
    listen: tuple[str, ...] = _field(
        ("unix:///run/vedette/detector.sock",),
        "Where agents connect: unix:///path or https://host:port; may be given several times.",
    )
    tls_cert: Path | None = _field(None, "Certificate chain (PEM) for https listeners.")
    tls_key: Path | None = _field(None, "Private key (PEM) for https listeners.")
    tls_reload_s: float = _field(10.0, "How often certificate and key are looked at for changes.", "s")
    token_file: Path | None = _field(
        None, "For https listeners: file with one 'node token' pair per line; read again when it changes."
    )
    token_review: bool = _field(
        False, "For https listeners, in place of a token file: ask the Kubernetes API server whose token it is."
    )
    token_audience: str = _field("vedette", "Audience that reviewed tokens must be meant for.")
    token_cache_s: float = _field(60.0, "How long a reviewed token is admitted without asking again.", "s")
    token_grace_s: float = _field(
        3600.0,
        "While the API server is away: how long after its last review a token is admitted, at most until it expires.",
        "s",
    )
    agent_service_account: str = _field(
        "vedette-system:vedette-agent", "Service account of the agents, as namespace:name."
    )
    admin_service_account: tuple[str, ...] = _field(
        ("vedette-system:vedette-operator",), "Service accounts that may read status and coverage, as namespace:name."
    )
    kubernetes: str = _field(
        "off", "Watch pods and nodes: off, in-cluster, or the path of a kubeconfig. It is used for token reviews too."
    )
    agent_uid: int = _field(60700, "User id of the agent, admitted to the unix socket beside root.")
    socket_mode: int = _field(0o660, "Mode of the unix socket, octal; its group becomes the agent's.", "mode")
    store_url: str = _field("", "SQLAlchemy URL of the database; empty: SQLite file findings.db in the data directory.")
    store_timeout_s: float = _field(20.0, "How long a locked or unreachable database is tried again.", "s")
    rules: tuple[Path, ...] = _field((), "Directories of Sigma rules beside the built-in ones.")
    builtin_rules: bool = _field(True, "Load the rules that ship with Vedette.")
    threat_lists: tuple[Path, ...] = _field((), "Directories of threat lists.")
    reload_s: float = _field(2.0, "How often rules and threat lists are looked at for changes.", "s")
    workers: int = _field(0, "Engine processes; 0: one for each core this process may use.")
    history_window_s: float = _field(600.0, "How far back the engine can look.", "s")
    journal_bytes: int = _field(4 << 30, "Most that the raw event journal keeps.", "bytes")
    journal_s: float = _field(7 * 86400.0, "How long the raw event journal keeps events.", "s")
    journal_segment_bytes: int = _field(64 << 20, "Size at which a journal segment is closed.", "bytes")
    finding_retention_s: float = _field(90 * 86400.0, "How long a finding is kept after it was last seen.", "s")
    occurrences: int = _field(20, "Occurrences kept in full for each finding.")
    findings_per_hour: int = _field(
        5000, "Different findings of one type and resource within an hour; further ones are counted in one."
    )
    max_body_bytes: int = _field(64 << 20, "Largest request body.", "bytes")
    max_waiting_bytes: int = _field(128 << 20, "Batches waiting beyond this are refused with 503.", "bytes")
    silent_after_s: float = _field(30.0, "Time without a heartbeat after which a node counts as silent.", "s")
    node_forget_s: float = _field(
        7 * 86400.0, "Time without any sign after which a node is not listed any more; 0: never.", "s"
    )
    redaction: tuple[str, ...] = _field(DEFAULT_REDACTION, "RE2 patterns of secrets in arguments.")
    redacted_options: tuple[str, ...] = _field(DEFAULT_REDACTED_OPTIONS, "Options whose next argument is a secret.")
    account_id: str = _field("000000000000", "accountId of findings.")
    region: str = _field("local", "region of findings.")
    partition: str = _field("aws", "partition of findings and their ARNs.")
    cluster: str = _field("", "Name of the cluster that this detector watches; empty: none.")
    cluster_arn: str = _field("", "ARN of that cluster for findings; empty: made of region, account and name.")
    detector_id: str = _field("", "detectorId of findings, 32 hex; empty: made once and kept in the database.")
    log_level: str = _field("info", "debug, info, warning or error.")

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL, the default filled in."""
        return self.store_url or f"sqlite:///{self.data_dir / 'findings.db'}"

    @property
    def journal_dir(self) -> Path:
        """Directory of the journal's segments."""
        return self.data_dir / "journal"

    def check(self) -> None:
        """Verify what the types cannot say.

        Raises:
            ConfigError: naming every setting that is wrong.
        """
        problems = []
        problems += self._listener_problems()
        if not re.fullmatch(r"\d{12}", self.account_id):
            problems.append(f"account_id: {self.account_id!r} is not twelve digits")
        if self.detector_id and not re.fullmatch(r"[0-9a-f]{32}", self.detector_id):
            problems.append(f"detector_id: {self.detector_id!r} is not 32 lower-case hex digits")
        for name in (
            "journal_bytes",
            "journal_segment_bytes",
            "max_body_bytes",
            "max_waiting_bytes",
            "occurrences",
            "findings_per_hour",
        ):
            if getattr(self, name) < 1:
                problems.append(f"{name}: must be at least 1, is {getattr(self, name)}")
        for name in (
            "journal_s",
            "finding_retention_s",
            "history_window_s",
            "store_timeout_s",
            "reload_s",
            "tls_reload_s",
            "token_cache_s",
        ):
            if not 0 < getattr(self, name) < float("inf"):
                problems.append(f"{name}: must be greater than 0, is {getattr(self, name)}")
        if self.token_grace_s < 0:
            problems.append(f"token_grace_s: must not be negative, is {self.token_grace_s}")
        if self.cluster_arn and not re.fullmatch(r"arn:aws[a-z-]*:eks:[a-z0-9-]+:\d{12}:cluster/\S+", self.cluster_arn):
            problems.append(f"cluster_arn: {self.cluster_arn!r} is not arn:aws:eks:<region>:<account>:cluster/<name>")
        if self.workers < 0:
            problems.append(f"workers: must not be negative, is {self.workers}")
        if problems:
            raise ConfigError("; ".join(problems))

    def _listener_problems(self) -> list[str]:
        problems = []
        if not self.listen:
            problems.append("listen: at least one address is needed")
        for address in self.listen:
            if not re.fullmatch(r"unix:///.+|https://(\[[0-9a-fA-F:]+\]|[^:/]+):\d{1,5}", address):
                problems.append(f"listen: {address!r} is neither unix:///path nor https://host:port")
        if any(address.startswith("https:") for address in self.listen):
            for name in ("tls_cert", "tls_key"):
                if getattr(self, name) is None:
                    problems.append(f"{name}: an https listener needs it")
            if self.token_file is None and not self.token_review:
                problems.append("token_file: an https listener needs it, or token_review")
        if self.token_file is not None and self.token_review:
            problems.append("token_file: it and token_review exclude each other")
        if not self.token_audience:
            problems.append("token_audience: must not be empty")
        for name, accounts in (
            ("agent_service_account", (self.agent_service_account,)),
            ("admin_service_account", self.admin_service_account),
        ):
            for account in accounts:
                if not re.fullmatch(r"[a-z0-9-]+:[a-z0-9.-]+", account):
                    problems.append(f"{name}: {account!r} is not namespace:name")
        if self.agent_service_account in self.admin_service_account:
            problems.append("admin_service_account: the agents' account must not be an administrator's")
        return problems


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _convert(name: str, kind: str, text: str) -> Any:
    try:
        if name == "socket_mode":
            return int(text, 8)
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text)
        if kind == "bool":
            if text.lower() in ("1", "true", "yes", "on"):
                return True
            if text.lower() in ("0", "false", "no", "off"):
                return False
            raise ValueError(text)
    except ValueError:
        raise ConfigError(f"{name}: {text!r} is not of type {kind}") from None
    if kind.startswith("Path"):
        return Path(text)
    return text


def parse(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Settings:
    """Make the settings of ``arguments`` (without the program's name) and ``environment``.

    A setting that holds several values is given by repeating its flag, or separated by newlines in the environment.

    Raises:
        ConfigError: a value is not of its type or out of range.
        SystemExit: ``--help``, or a flag that does not exist.
    """
    environment = os.environ if environment is None else environment
    parser = argparse.ArgumentParser(
        prog="python -m vedette_detector",
        description="Vedette's detector: takes batches of events from agents and turns them into findings.",
    )
    fields = dataclasses.fields(Settings)
    for field in fields:
        shown: Any = field.default
        if field.name in ("redaction", "redacted_options"):
            shown = "built in"
        elif field.name == "socket_mode":
            shown = oct(shown)
        elif isinstance(shown, tuple):
            shown = " ".join(map(str, shown))
        unit = f" [{field.metadata['unit']}]" if field.metadata["unit"] else ""
        shown = "none" if shown in (None, "") else shown
        text = f"{field.metadata['doc']}{unit} Default: {shown}".replace("%", "%%")
        action = "append" if str(field.type).startswith("tuple") else "store"
        parser.add_argument(_flag(field.name), dest=field.name, action=action, help=text)
    given = vars(parser.parse_args(list(arguments)))
    values: dict[str, Any] = {}
    for field in fields:
        kind = str(field.type)
        raw = given[field.name]
        if raw is None:
            variable = environment.get("VEDETTE_" + field.name.upper())
            if variable is None:
                continue
            raw = [line for line in variable.split("\n") if line] if kind.startswith("tuple") else variable
        if kind.startswith("tuple"):
            values[field.name] = tuple(_convert(field.name, kind[6:].split(",")[0], item) for item in raw)
        else:
            values[field.name] = _convert(field.name, kind, raw)
    settings = Settings(**values)
    settings.check()
    return settings
