"""A detector that ends its process when a certain batch is replayed, importable by a worker."""

import os
import signal
from collections.abc import Iterable
from typing import Any

from vedette_detector.engine import Detection
from vedette_detector.engine.engine import Engine


class ReplayKiller:
    id = "replay-killer"
    title = "Replay killer"
    selectors = ()

    def __init__(self, frame: bytes) -> None:
        self.frame = frame

    def confirm(self, event: Any, history: Any, context: Any) -> Iterable[Detection]:
        return ()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # In the worker: from now on it dies of that batch, as it would of a fault in the engine's C code.
        self.__dict__.update(state)
        process_frame = Engine.process_frame

        def dying(engine: Engine, frame: bytes, replay: bool = False) -> Any:
            if replay and frame == self.frame:
                os.kill(os.getpid(), signal.SIGKILL)
            return process_frame(engine, frame, replay)

        Engine.process_frame = dying  # type: ignore[assignment,method-assign]
