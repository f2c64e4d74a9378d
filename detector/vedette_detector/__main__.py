"""``python -m vedette_detector``."""

from vedette_detector.main import main

if __name__ == "__main__":
    main()
