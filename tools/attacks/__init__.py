"""Attack behaviours and their ordinary look-alikes, harmless, with what Vedette must say about each.

`catalogue` lists them, `programs` builds the small C programs that some of them use, `perform` carries one out in a
container or on the host. Nothing here leaves the machine: every place has a network namespace of its own.
"""

from tools.attacks.catalogue import CATALOGUE, Behaviour, by_name
from tools.attacks.perform import Performed, open_place, perform
from tools.attacks.programs import ensure_programs

__all__ = ["CATALOGUE", "Behaviour", "Performed", "by_name", "ensure_programs", "open_place", "perform"]
