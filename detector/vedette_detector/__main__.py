"""``python -m vedette_detector``."""

import signal
import sys
from types import FrameType


def _stop(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    # In a container this process is number 1, for which the kernel leaves out every signal's default action: asked to
    # stop while it still loads, it would not hear it, and be killed at the end of the pod's grace period.
    signal.signal(signal.SIGTERM, _stop)
    from vedette_detector.main import main

    main()
