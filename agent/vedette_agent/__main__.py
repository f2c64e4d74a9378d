"""``python -m vedette_agent``."""

import sys

from vedette_agent.main import main

sys.exit(main())
