"""Figures of docs/performance.md and docs/many-machines.md have commands that scripts take and small runs test."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.process.test_bench_scripts import MORE, SCRIPTS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "performance.md").read_text()
AGENTS_PAGE = (ROOT / "docs" / "many-machines.md").read_text()
COMMANDS = list(
    dict.fromkeys(
        re.findall(r"^    (?:\w+=\S+ )*python scripts/bench/(\w+)\.py *(.*)$", f"{PAGE}\n{AGENTS_PAGE}", re.MULTILINE)
    )
)
# They say how much is run, for how long or of what, and choose no other way through the script.
QUANTITIES = {
    *("batch-size", "batches", "consumers", "datasets", "docs", "epochs", "images", "memory-budget", "only", "readers"),
    *("ready", "repeat", "results", "rounds", "rows", "samples", "seconds", "size", "sizes", "trainers", "workers"),
}

PARSES = """
import argparse, json, runpy, sys

folder, commands = sys.argv[1], json.loads(sys.argv[2])
sys.path.insert(0, folder)
parse = argparse.ArgumentParser.parse_args


def parse_and_end(self, *words, **more):
    parse(self, *words, **more)
    raise SystemExit("parsed")


argparse.ArgumentParser.parse_args = parse_and_end
for name, *words in commands:
    sys.argv = [f"{name}.py", *words]
    try:
        runpy.run_path(f"{folder}/{name}.py", run_name="__main__")
    except SystemExit as end:
        assert end.code == "parsed", (name, words)
    else:
        raise AssertionError(f"{name} parses nothing")
"""


def sections() -> dict[str, str]:
    """The text of each section that has a table, by its title."""
    parts = re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)[1:]
    return {title: text for title, text in zip(parts[::2], parts[1::2], strict=True) if "\n|" in text}


def options_of(arguments: str) -> set[str]:
    return set(re.findall(r"--([\w-]+)", arguments))


def test_every_section_with_figures_names_its_command():
    without = [title for title, text in sections().items() if "python scripts/bench/" not in text]
    assert without in ([], ["Goals"]), "the table of goals names commands in its rows"


def test_every_goal_names_the_command_that_measures_it():
    rows = re.findall(r"^\| (?!goal |---)(.+) \|$", sections()["Goals"], re.MULTILINE)
    assert len(rows) > 5
    for row in rows:
        scripts = re.findall(r"`(\w+)\.py", row)
        assert scripts, f"no command: {row}"
        assert set(scripts) <= set(SCRIPTS)


@pytest.mark.parametrize("text", [sections()["Goals"], AGENTS_PAGE], ids=["performance", "many machines"])
def test_every_goal_is_reached_or_says_why_not(text: str):
    table = text.partition("\n| goal | ")[2].partition("\n\n")[0]
    rows = [row.strip("|").split(" | ") for row in table.splitlines()[2:]]
    assert len(rows) > 3
    for goal, measured, why_not in rows:
        assert why_not.strip() or "not yet run" in measured, goal


def test_page_names_its_input_and_its_machine():
    beginning = PAGE.partition("\n## ")[0]
    assert "250 photographs" in beginning
    assert re.search(r"\d+ cores?|two cores", beginning)


def test_every_command_of_the_page_is_run_small_in_the_same_way():
    """The smoke tests of the scripts have an argument for each way that the page goes."""
    assert len(COMMANDS) > 20
    for script, arguments in COMMANDS:
        tested = options_of(SCRIPTS[script][0]) | options_of(MORE.get(script, ("",))[0])
        assert options_of(arguments) - QUANTITIES <= tested, f"{script}.py {arguments}: not in test_bench_scripts.py"


@pytest.mark.timeout(300)
def test_every_command_of_the_page_is_taken_by_its_script(tmp_path):
    """In one process, up to the point where its arguments are parsed."""

    commands = json.dumps([[script, *shlex.split(arguments)] for script, arguments in COMMANDS])
    words = [sys.executable, "-c", PARSES, str(ROOT / "scripts" / "bench"), commands]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=280, env=environment)
    assert result.returncode == 0, result.stderr
