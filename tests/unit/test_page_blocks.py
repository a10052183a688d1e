"""Every Python block of every page is Python, every command and configuration one that prefetchd takes, YAML is YAML.

`tests/process/test_pages.py` and others run them.
"""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import prefetchd
from prefetchd.batch_options import BatchOptions
from prefetchd.cli.arguments import configs_of
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


def fenced(page: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in PAGES if fenced(page, "toml")])
def test_configurations_are_ones_that_serve_takes(page: str, tmp_path: Path) -> None:
    for text in fenced(page, "toml"):
        (tmp_path / "some.toml").write_text(text)
        configs = configs_of(make_parser().parse_args(["serve", "--config", str(tmp_path / "some.toml")]))
        assert all(config.source or config.mix for config in configs.values())


def documents(page: str) -> Iterator[Any]:
    """Yield what the blocks of YAML hold; those of Kubernetes are indented ones."""
    yaml = pytest.importorskip("yaml")
    indented = re.findall(
        r"^ {4}(?:apiVersion|workerGroupSpecs):.*\n(?:(?: {4}.*)?\n)*", (ROOT / page).read_text(), re.MULTILINE
    )
    for text in (*fenced(page, "yaml"), *map(textwrap.dedent, indented)):
        yield yaml.safe_load(text)


def commands_in(document: Any) -> Iterator[list[str]]:
    """Yield the commands of containers."""
    if isinstance(document, dict):
        if "command" in document:
            yield document["command"]
        document = list(document.values())
    for part in document if isinstance(document, list) else ():
        yield from commands_in(part)


def test_yaml_of_containers_runs_commands_that_exist() -> None:
    ran = []
    for page in PAGES:
        for document in documents(page):
            assert isinstance(document, dict), page
            for command in commands_in(document):
                # The image of docs/deploy.md begins with these two.
                words = command[1:] if command[0] == "prefetchd" else ["serve", *command]
                make_parser().parse_args(words)
                ran.append(words[0])
    assert sorted(ran) == ["agent", "serve"]


def test_script_for_slurm_is_one_of_bash() -> None:
    page = (ROOT / "docs" / "many-machines.md").read_text().partition("## Slurm\n")[2]
    script = textwrap.dedent(re.findall(r"\n((?: {4}.*\n)+)", page)[0])
    assert script.startswith("#!/bin/bash\n#SBATCH")
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_blocks_are_found() -> None:
    found = [call for page in PAGES for _, code in blocks(page) for call in calls(code)]
    assert len(found) > 60
    assert "batch_size" in BatchOptions.__annotations__
    assert len([command for page in PAGES for command in commands(page)]) > 100
