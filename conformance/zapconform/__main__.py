"""`python -m zapconform`."""

from __future__ import annotations

import sys

from zapconform.cli import main

if __name__ == "__main__":
    sys.exit(main())
