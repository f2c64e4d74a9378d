"""What can go wrong before anything reaches a cluster; each error names everything that is wrong at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: ``path`` says where (``agent.resources.limits.memory``), ``message`` what to do."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class OperatorError(Exception):
    """Base of this part's errors; ``reason`` is a stable CamelCase word."""

    reason = "OperatorError"


class ProblemsError(OperatorError):
    """Several things are wrong; the message has one line for each."""

    reason = "Invalid"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ValuesError(ProblemsError):
    """The values are not ones that an installation can be made from."""

    reason = "InvalidValues"


class ManifestError(ProblemsError):
    """A template made an object that no API server would take: a defect of the template, not of the values."""

    reason = "InvalidManifest"


class CertificateError(OperatorError):
    """A certificate or key cannot be read or does not fit the others."""

    reason = "InvalidCertificate"
