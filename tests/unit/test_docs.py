"""The documentation says what the program does: the page of the command line is as the parser has it."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from prefetchd.cli import make_parser

ROOT = Path(__file__).parents[2]


def test_page_of_the_command_line_is_not_stale():
    """Mend it with: python scripts/cli_page.py."""
    result = subprocess.run(
        [sys.executable, ROOT / "scripts" / "cli_page.py", "--check"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_help_of_every_command_can_be_printed():
    """A percent sign in an option's text is no format of argparse's."""
    parsers: list[argparse.ArgumentParser] = [make_parser()]
    while parsers:
        parser = parsers.pop()
        assert "usage: prefetchd" in parser.format_help()
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
