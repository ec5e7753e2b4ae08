"""The command; `gate.py` holds it."""

import sys

from .gate import main

if __name__ == "__main__":
    sys.exit(main())
