"""``python -m vedette_detector``: runs the detector until SIGTERM or SIGINT.

Asked to stop, it takes no more batches (503, the agents keep them), answers those under way when they are durable, and
ends; a pod's 30 s of grace are enough. A second signal, or one while it starts, ends it at once: whatever was not
acknowledged comes again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence

from vedette_detector.config import Settings, parse
from vedette_detector.errors import ConfigError, DetectorError
from vedette_detector.orphans import Orphans
from vedette_detector.service import Service
from vedette_detector.text import safe_text

log = logging.getLogger(__name__)

ORPHANS_S = 10.0
EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h: restarting does not help
EXIT_FAILED = 1


class _SafeFormatter(logging.Formatter):
    """One line per record, nothing in it that could steer a terminal; tracebacks keep their lines."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        return "\n".join(safe_text(line, 8192) for line in super().format(record).split("\n"))


def set_up_logging(level: str) -> None:
    """Log to standard error.

    Raises:
        ConfigError: no such level.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ConfigError(f"log_level: {level!r} is none of debug, info, warning, error")
    handler = logging.StreamHandler()
    handler.setFormatter(_SafeFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=number, handlers=[handler], force=True)


async def run(settings: Settings) -> None:
    """Run one detector until a signal asks to stop.

    Raises:
        DetectorError: it cannot start.
    """
    service = Service(settings)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if stopping.is_set():
            log.warning("asked to stop a second time: ending at once")
            logging.shutdown()
            os._exit(EXIT_FAILED)  # the engine's workers end with the connection to this process
        log.info("stopping")
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    asked = asyncio.create_task(stopping.wait(), name="stop")
    starting = asyncio.create_task(service.start(), name="start")
    reaping = asyncio.create_task(_collect_orphans(), name="orphans")
    try:
        # Rebuilding history may take long; whoever is asked to stop meanwhile does not finish that first.
        await asyncio.wait((asked, starting), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            print(f"ready {' '.join(settings.listen)}", flush=True)
            await asked
    finally:
        for task in (asked, starting, reaping):
            task.cancel()
        await asyncio.gather(asked, starting, reaping, return_exceptions=True)
        await service.stop()


async def _collect_orphans() -> None:
    orphans = Orphans()
    while True:
        await asyncio.sleep(ORPHANS_S)
        orphans.collect()


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; ends the process with an exit code."""
    try:
        settings = parse(sys.argv[1:] if arguments is None else arguments)
        set_up_logging(settings.log_level)
        asyncio.run(run(settings))
    except DetectorError as error:
        print(f"vedette_detector: {error.reason}: {safe_text(error.message)}", file=sys.stderr)
        sys.exit(EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_FAILED)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    main()
