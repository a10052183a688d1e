"""`python -m prefetchd`: the command line."""

import os
import sys

# `-m` puts the working directory first, where a file of the user's could stand for a module of the standard library.
if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]

from prefetchd.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
