"""The operator's process."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from typing import Any

import kopf

from vedette_operator import __version__
from vedette_operator.handlers import registry
from vedette_operator.settings import Settings


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        line: dict[str, Any] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    settings = Settings.from_environment(os.environ)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=os.environ.get("VEDETTE_LOG_LEVEL", "info").upper(), handlers=[handler])
    # Every retry of a deletion and every handler would be a line.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("vedette.operator").info("vedette-operator %s in namespace %s", __version__, settings.namespace)
    asyncio.run(_run(settings))


async def _run(settings: Settings) -> None:
    # kopf names itself after the user, and the image has no entry for ours.
    os.environ.setdefault("LOGNAME", "vedette")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await kopf.operator(
        registry=registry,
        standalone=True,
        namespaces=[settings.namespace],
        liveness_endpoint=settings.health,
        memo=kopf.Memo(settings=settings),
        stop_flag=stop,
    )
