"""What the commands' parsers have in common."""

from __future__ import annotations

import argparse
from typing import NoReturn, TypeAlias


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other failure does; the usage is for `--help`."""

    def error(self, message: str) -> NoReturn:
        """End the process with status 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


Subparsers: TypeAlias = "argparse._SubParsersAction[Parser]"
