"""``python -m vedette_operator``."""

from vedette_operator.main import main

main()
