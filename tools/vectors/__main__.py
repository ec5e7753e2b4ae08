"""The command; `freeze.py` holds it."""

import sys

from .freeze import main

if __name__ == "__main__":
    sys.exit(main())
