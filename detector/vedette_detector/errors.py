"""Errors of the detector: each has a stable ``reason`` in CamelCase and says what a person can do.

`http_status` maps them to HTTP, in one place.
"""

from __future__ import annotations


class DetectorError(Exception):
    """Anything that the detector reports to whoever called it."""

    reason = "InternalError"

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if reason is not None:
            self.reason = reason


class ConfigError(DetectorError):
    """A setting is wrong; the detector does not start."""

    reason = "InvalidConfiguration"


class StoreError(DetectorError):
    """The database could not do what was asked; nothing of the transaction is kept."""

    reason = "StoreUnavailable"


class StoreBusyError(StoreError):
    """Another process holds the database; it was asked again until the time allowed was over."""

    reason = "StoreBusy"


class StorageFullError(StoreError):
    """No space is left for the database or the journal."""

    reason = "StorageFull"


class StoreVersionError(StoreError):
    """The database was written by a newer Vedette."""

    reason = "StoreTooNew"


class JournalError(DetectorError):
    """The journal could not be written; nothing of the write is kept."""

    reason = "JournalUnavailable"


class EngineUnavailableError(DetectorError):
    """The engine failed in a way that is not the batch's fault."""

    reason = "EngineFailed"


class OverloadedError(DetectorError):
    """More waits than the configured bound."""

    reason = "Overloaded"


class AuthenticationError(DetectorError):
    """Who asks is not known."""

    reason = "Unauthenticated"


class AuthorizationError(DetectorError):
    """Who asks is known and may not do this."""

    reason = "Forbidden"


class IdentityUnavailableError(DetectorError):
    """Who asks cannot be found out now; whoever it is keeps everything and comes again."""

    reason = "IdentityUnavailable"


class QueryError(DetectorError):
    """A question about events or findings cannot be answered as asked."""

    reason = "InvalidQuery"


_STATUS: tuple[tuple[type[DetectorError], int], ...] = (
    (AuthenticationError, 401),
    (AuthorizationError, 403),
    (IdentityUnavailableError, 503),
    (OverloadedError, 503),
    (StorageFullError, 503),
    (StoreError, 503),
    (JournalError, 503),
    (EngineUnavailableError, 503),
    (QueryError, 400),
)


def http_status(error: DetectorError) -> int:
    """Status that answers ``error``; 503 tells an agent to keep its batches and try again."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
