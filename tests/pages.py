"""Pages of the documentation, taken apart into what can be run: Python, commands, and files that they say to write."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DOCS = Path(__file__).parents[1] / "docs"
# Commands that a test does not run: they install, start what another test starts, or are for a person at a screen.
NOT_RUN = re.compile(r"(pip|pipx|uv|uvx|conda|torchrun|python|accelerate|systemctl|git|cd|source) ")
_FENCE = re.compile(r'```(\w*)(?: title="([\w./]+)")?$')


@dataclass(frozen=True)
class Step:
    """One thing to do.

    Attributes:
        kind: `python` code, a `file` to write, or a `command` of prefetchd.
        text: the code, the file's content, or the command line.
        name: of the file.
        line: where it stands in the page.
    """

    kind: Literal["python", "file", "command"]
    text: str
    name: str = ""
    line: int = 0

    @property
    def words(self) -> list[str]:
        """The words of a command, after `prefetchd`, with small batches."""
        words = shlex.split(self.text, comments=True)[1:]
        return ["4" if before == "--batch-size" else word for before, word in zip(["", *words], words, strict=False)]


def _blocks(page: str) -> Iterator[tuple[str, str, int, str]]:
    """Return (kind, title, line of its start, content) of each block; indented ones have the kind `indented`."""
    lines = (DOCS / page).read_text().splitlines()
    number = 0
    while number < len(lines):
        fence = _FENCE.match(lines[number])
        first = number
        if fence:
            number += 1
            while lines[number] != "```":
                number += 1
            content = "\n".join(lines[first + 1 : number]) + "\n"
            yield fence[1] or "text", fence[2] or "", first + 1, content
        elif lines[number].startswith("    ") and not lines[number - 1].strip():
            while number < len(lines) and lines[number].startswith("    "):
                number += 1
            yield "indented", "", first + 1, "\n".join(line[4:] for line in lines[first:number])
        number += 1


def steps_of(page: str) -> list[Step]:
    """Return what a page says to do, in order. Indented text that is no command is what a program prints."""
    steps = []
    for kind, title, line, content in _blocks(page):
        if kind == "indented":
            steps += [
                Step("command", part, line=line) for part in content.splitlines() if part.startswith("prefetchd ")
            ]
        elif kind == "python" and not title:
            code = (
                content.replace("batch_size=64", "batch_size=4")
                .replace("range(10)", "range(1)")
                .replace("epochs=10", "epochs=1")
            )
            steps.append(Step("python", "\n" * line + code, line=line))
        elif name := title or (re.match(r"# ([\w./]+)\n", content) or ("", ""))[1]:
            steps.append(Step("file", content.replace("batch-size = 64", "batch-size = 4"), name, line))
    return steps


def unknown_lines(page: str) -> list[str]:
    """Return the lines of the page's blocks of commands that are neither prefetchd's nor known not to be run."""
    found = []
    for kind, _, _, content in _blocks(page):
        lines = content.splitlines()
        if kind == "indented" and any(line.startswith("prefetchd ") for line in lines):
            found += [line for line in lines if not line.startswith("prefetchd ") and not NOT_RUN.match(line)]
    return found
