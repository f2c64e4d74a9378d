"""``python -m tools.images``: see `tools.images.build`."""

import sys

from tools.images.build import main

sys.exit(main())
