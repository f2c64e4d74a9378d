"""``python -m tools.attacks [NAME...]``: list the catalogue, or carry out the behaviours named (``all`` for all)."""

from __future__ import annotations

import sys

from tools.attacks.catalogue import CATALOGUE, by_name
from tools.attacks.perform import open_place, perform


def main() -> int:
    """Return 1 when a behaviour had to be killed."""
    if len(sys.argv) == 1:
        for behaviour in CATALOGUE:
            print(
                f"{behaviour.name:32} {behaviour.where:10} {', '.join(behaviour.findings) or '-':45} {behaviour.title}"
            )
        return 0
    chosen = CATALOGUE if sys.argv[1:] == ["all"] else [by_name(name) for name in sys.argv[1:]]
    status = 0
    for behaviour in chosen:
        with open_place(behaviour) as place:
            done = perform(behaviour, place)
        took_ms = (done.ended - done.began) / 1e6
        said = f"{done.output[-300:]!r} far side: {done.conversation[-80:]!r}"
        print(f"{behaviour.name:36} {took_ms:7.0f} ms  status {done.returncode}  {said}", flush=True)
        status |= done.returncode is None
    return status


if __name__ == "__main__":
    sys.exit(main())
