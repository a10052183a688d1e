"""The documentation says what the program does: pages, options and modules are all named, and none that is gone."""

from __future__ import annotations

import argparse
import inspect
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import prefetchd
from prefetchd.cli.main import make_parser
from prefetchd.config.options import OPTIONS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


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


def test_every_page_is_in_the_navigation():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert set(re.findall(r"^ +- (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)) == pages
    assert set(re.findall(r"\(docs/([\w-]+\.md)", README)) >= pages - {"index.md"}


def test_readme_names_each_option_once():
    table = README.partition("## Options")[2].partition("## Errors")[0]
    cells = re.findall(r"^\| ([^|]+) \| ", table, re.MULTILINE)
    names = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(names) == sorted(inspect.signature(prefetchd.batches).parameters)
    flags = set(re.findall(r"`--(?:\[no-\])?([\w-]+)`", table)) - {"config"}
    assert flags == {name.replace("_", "-") for name in OPTIONS} - {"source"}


def test_readme_maps_every_module():
    named = re.findall(r"[\w*]+\.py\b|\b[a-z]+/", README.partition("## Map of the files")[2])
    modules = [
        path.name + "/" * path.is_dir()
        for path in (ROOT / "prefetchd").iterdir()
        if not path.name.startswith((".", "__pycache__"))
    ]
    ours = [name for name in modules if name.endswith((".py", "/"))]
    assert [name for name in ours if not any(fnmatch(name, pattern) for pattern in named)] == []
    assert len(named) == len(set(named)), "named twice"
