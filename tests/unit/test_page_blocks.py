"""Every Python block of every page is Python, and every command one that exists, with options that exist.

`tests/process/test_pages.py` and others run them.
"""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import prefetchd
from prefetchd.batch_options import BatchOptions
from prefetchd.cli.main import make_parser

ROOT = Path(__file__).parents[2]
PAGES = sorted(str(path.relative_to(ROOT)) for path in [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"])
# Keywords that the adapters for frameworks have beside the options of all.
OF_ADAPTERS = {"device", "normalize", "decode", "x", "y"}


def blocks(page: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the code of each Python block; those in lists are indented."""
    text = (ROOT / page).read_text()
    for match in re.finditer(r"^( *)```python[^\n]*\n(.*?)^\1```$", text, re.DOTALL | re.MULTILINE):
        yield text.count("\n", 0, match.start()) + 1, textwrap.dedent(match[2])


def calls(code: str) -> Iterator[ast.Call]:
    """Yield the calls of `prefetchd.batches` and of its adapters."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = ast.unparse(node.func)
            if called in ("prefetchd.batches", "prefetchd.torch.batches", "prefetchd.keras.dataset"):
                yield node


def commands(page: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the words of each command of prefetchd, as one would type it into a shell."""
    text = (ROOT / page).read_text()
    verbs = "|".join(make_parser()._subparsers._group_actions[0].choices)  # type: ignore[union-attr,arg-type]
    typed = re.compile(
        rf"^ {{4,}}(?:- |command: |srun \S+ )?prefetchd ((?:{verbs})\b(?:.*\\\n)*.*)$|`prefetchd ((?:{verbs})\s[^`]+)`",
        re.M,
    )
    for match in typed.finditer(text):
        command = re.sub(r"\s*\\?\n\s*", " ", match[1] or match[2])
        yield text.count("\n", 0, match.start()) + 1, re.split(r" [|>&] ?", command)[0]


@pytest.mark.parametrize("page", sorted(set(PAGES) - {"docs/cli.md"}))  # that one is made from the parser
def test_commands_are_ones_that_exist(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    for line, command in commands(page):
        words = shlex.split(command.removesuffix(" ..."), comments=True)
        datasets = {match[1] for match in map(re.compile(r"--(?:no-)?(\w+)\.").match, words) if match}
        try:
            make_parser(datasets).parse_args(words)
        except SystemExit:
            why = capsys.readouterr().err
            # In a sentence a command may be named without its words.
            assert "arguments are required" in why, f"{page}, line {line}: prefetchd {command}: {why}"


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_python_and_name_options_that_exist(page: str) -> None:
    known = set(inspect.signature(prefetchd.batches).parameters) | OF_ADAPTERS
    for line, code in blocks(page):
        try:
            compile(code, page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        except SyntaxError as error:
            pytest.fail(f"{page}, block at line {line}: {error}")
        for call in calls(code):
            given = {keyword.arg for keyword in call.keywords} - {None}
            assert given <= known, f"{page}, block at line {line}: {ast.unparse(call)}"


def test_the_blocks_are_found() -> None:
    found = [call for page in PAGES for _, code in blocks(page) for call in calls(code)]
    assert len(found) > 60
    assert "batch_size" in BatchOptions.__annotations__
    assert len([command for page in PAGES for command in commands(page)]) > 100
