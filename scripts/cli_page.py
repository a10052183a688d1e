"""Writes docs/cli.md from the parser of the command line, so that the page says what `--help` says.

    python scripts/cli_page.py [--check]

With `--check` nothing is written; the status is 1 if the page is stale, for which a test looks.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from prefetchd.cli.main import make_parser

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
HEAD = """<!-- Made by scripts/cli_page.py; do not edit. -->
# The command line

Every command with its options, as `--help` prints them.

Options can also stand in a TOML file (`--config`), under the same names; see the [quickstart](quickstart.md). Exit
status: 0 for success, 1 for a failure, which is one line on standard error, 2 for words that make no sense, 130 after
Ctrl-C. `--debug` shows the traceback of a failure.
"""


def cell(text: str) -> str:
    """Return `text` for a cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("%%", "%")


def words_of(action: argparse.Action) -> str:
    """Return how an option or argument is written, as code."""
    value = ""
    if action.choices is not None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    elif action.nargs != 0:
        value = str(action.metavar or action.dest.upper())
    if not action.option_strings:
        return f"`{value}`".replace("|", "\\|")
    names = [name for name in action.option_strings if not name.startswith("--no-")]
    if len(names) < len(action.option_strings):
        return f"`{names[0]}`, `--no-{names[0][2:]}`"
    flags = ", ".join(f"`{name}`" for name in names[:-1])
    last = f"`{names[-1]} {value}`" if value else f"`{names[-1]}`"
    return (f"{flags}, {last}" if flags else last).replace("|", "\\|")


def section(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the lines of one command, and of its own commands if it has any."""
    yield from (f"\n## prefetchd {name}\n", cell(parser.description or ""))
    actions = [action for action in parser._actions if action.help != argparse.SUPPRESS and action.dest != "help"]
    inner = [action for action in actions if isinstance(action, argparse._SubParsersAction)]
    actions = [action for action in actions if action not in inner]
    if actions:
        yield "\n| | |\n|---|---|"
        for action in actions:
            yield f"| {words_of(action)} | {cell(action.help or '')} |"
    if parser.epilog:
        yield "\n" + cell(re.sub(r"\s+", " ", parser.epilog))
    for action in inner:
        for word, command in action.choices.items():
            yield from section(f"{name} {word}", command)


def page() -> str:
    """Return the page as it must be."""
    (commands,) = (each for each in make_parser()._actions if isinstance(each, argparse._SubParsersAction))
    lines = ["\n| command | |\n|---|---|"]
    for choice in commands._choices_actions:
        anchor = f"#prefetchd-{choice.dest}"
        lines.append(f"| [`prefetchd {choice.dest}`]({anchor}) | {cell(choice.help or '')} |")
    for name, parser in commands.choices.items():
        lines += section(name, parser)
    return HEAD + "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether the page is stale")
    if not parser.parse_args().check:
        PAGE.write_text(page())
        return 0
    if not PAGE.exists() or PAGE.read_text() != page():
        print(f"{PAGE} is stale; run python scripts/cli_page.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
