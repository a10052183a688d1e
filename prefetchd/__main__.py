"""`python -m prefetchd`: the command line."""

import sys

from prefetchd.cli import main

if __name__ == "__main__":
    sys.exit(main())
