"""Ask the running detector over its unix socket."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from vedette_cli.errors import CommandError

TIMEOUT_S = 10.0
MAX_ANSWER = 64 * 1024 * 1024
"""Bytes read of one answer."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket's path instead of a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(str(self._path))


def get(socket_path: Path, target: str) -> Any:
    """Return the JSON answer to ``GET target``.

    Raises:
        CommandError: NotRunning (nothing listens), NotAllowed, or BadAnswer.
    """
    return _ask(socket_path, "GET", target, None)


def post(socket_path: Path, target: str, document: dict[str, Any]) -> Any:
    """Return the JSON answer to ``POST target`` with a JSON body.

    Raises:
        CommandError: as `get`.
    """
    return _ask(socket_path, "POST", target, json.dumps(document).encode())


def _ask(socket_path: Path, method: str, target: str, body_sent: bytes | None) -> Any:
    connection = _UnixConnection(socket_path)
    try:
        headers = {"Content-Type": "application/json"} if body_sent is not None else {}
        connection.request(method, target, body_sent, headers)
        answer = connection.getresponse()
        body = answer.read(MAX_ANSWER)
    except PermissionError:
        raise CommandError(
            "NotAllowed", f"no permission to connect to {socket_path}", "Run as root: sudo vedette ..."
        ) from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise CommandError(
            "NotRunning",
            f"no detector listens at {socket_path}",
            "Start it with: sudo vedette run\nIf it runs with another --run-dir, give the same (or VEDETTE_RUN_DIR).",
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise CommandError("BadAnswer", f"the detector at {socket_path} did not answer: {error}") from None
    finally:
        connection.close()
    try:
        content = json.loads(body)
    except ValueError:
        raise CommandError("BadAnswer", f"the detector answered no JSON ({answer.status})") from None
    if answer.status != 200:
        message = content.get("message", "") if isinstance(content, dict) else ""
        raise CommandError("BadAnswer", f"the detector answered {answer.status}: {message}")
    return content
