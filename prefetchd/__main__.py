"""`python -m prefetchd`, and the command `prefetchd`: run the command line, on a system that can."""

import os
import sys


def _is_working_directory(folder: str) -> bool:
    try:
        return folder in ("", os.getcwd())
    except OSError:  # it was removed
        return False


# `-m` puts the working directory first, where a file of the user's could stand for a module of the standard library.
if not sys.flags.safe_path and sys.path and _is_working_directory(sys.path[0]):
    del sys.path[0]


def main() -> int:
    """Run the command of `sys.argv`; return its exit status."""
    from prefetchd.errors import PrefetchdError

    try:
        try:
            from prefetchd.cli.main import main as run
        except PrefetchdError as error:  # not Linux, or too old
            print(f"prefetchd: {error}", file=sys.stderr)
            return 1
        return run()
    except KeyboardInterrupt:  # while modules are loaded, or arguments read
        return 130


if __name__ == "__main__":
    sys.exit(main())
