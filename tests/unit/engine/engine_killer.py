"""A detector that ends its process, importable by a worker."""

import os
import signal
from collections.abc import Iterable
from typing import Any

from vedette_detector.engine import AnyLiteral, Detection, Selector


class Killer:
    id = "killer"
    title = "Killer"
    selectors = (Selector("exec", literals=(AnyLiteral(("path",), frozenset({b"kill-the-worker"})),)),)

    def confirm(self, event: Any, history: Any, context: Any) -> Iterable[Detection]:
        os.kill(os.getpid(), signal.SIGKILL)
        return ()
