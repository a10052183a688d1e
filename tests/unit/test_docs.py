"""The documentation says what the program does: pages, options and modules are all named, and none that is gone."""

from __future__ import annotations

import argparse
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import prefetchd
from prefetchd.cli.main import make_parser
from prefetchd.config.options import OPTIONS, flag_of

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
OPTIONS_PAGE = (ROOT / "docs" / "options.md").read_text()
PAGES = sorted(
    path.relative_to(ROOT)
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md"))
)


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
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert set(re.findall(r"^ +- (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)) == pages
    linked = set(re.findall(r"\]\(([\w/-]+\.md)[)#]", (ROOT / "docs" / "index.md").read_text()))
    decisions = {page for page in pages if page.startswith("decisions/0")}
    ports = {page for page in pages if page.startswith("coming-from/")}
    assert linked == pages - decisions - ports - {"index.md"}, "the home page lists all"
    assert ports == set(re.findall(r"\]\((coming-from/[\w-]+\.md)\)", (ROOT / "docs" / "coming-from.md").read_text()))


def test_readme_is_one_screen_and_one_more():
    assert len(README.split()) <= 700


def test_chart_of_the_readme_shows_the_figures_that_were_measured():
    """Mend it with: python scripts/chart.py."""
    result = subprocess.run([sys.executable, ROOT / "scripts" / "chart.py", "--check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_figures_of_the_readme_stand_in_the_page_of_performance():
    page = (ROOT / "docs" / "performance.md").read_text()
    rows = dict(re.findall(r"^\| (4 trainers, [^|]+) \| (\d+) \|", page, re.MULTILINE))
    ours, theirs = int(rows["4 trainers, prefetchd"]), int(rows["4 trainers, a DataLoader each"])
    assert f"{ours / theirs:.1f} times" in README
    ((ratio, cached),) = re.findall(r"alone gets ([\d.]+) times as many, and (\d+)\s+times from a warm cache", README)
    peers = page.partition("<!-- peers: begin -->")[2].partition("<!-- peers: end -->")[0]
    rates = re.findall(r"^\| (prefetchd[^|]*) \| [*\d,]+ \| \**([\d.]+)\** \|", peers, re.MULTILINE)
    measured = {name: float(value) for name, value in rates}
    assert (float(ratio), float(cached)) == (measured["prefetchd"], round(measured["prefetchd, cached"]))
    for command in re.findall(r"`(python scripts/[^`]+)`", README):
        assert command in page


SOURCE = re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text() for path in sorted((ROOT / "prefetchd").rglob("*.py"))))


def test_page_of_errors_has_every_class_and_quotes_messages_that_exist():
    page = (ROOT / "docs" / "errors.md").read_text()
    sections = re.findall(r"^## (\w+)", page, re.MULTILINE)
    classes = [name for name in vars(prefetchd.errors) if isinstance(getattr(prefetchd.errors, name), type)]
    assert set(sections) == {*classes, "Warnings"}
    quoted = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(quoted) > 20
    assert [words for words in quoted if words not in SOURCE] == []


def test_index_of_decisions_names_every_record_with_its_title():
    records = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    titles = {path.name: path.read_text().partition("\n")[0].removeprefix("# ") for path in records}
    index = (ROOT / "docs" / "decisions" / "index.md").read_text()
    rows = {
        name: f"{number}. {title}"
        for number, title, name in re.findall(r"^\| (\d+) \| \[(.+)\]\((.+)\) \|$", index, re.M)
    }
    assert rows == titles
    assert [int(path.name[:4]) for path in records] == list(range(1, len(records) + 1))


def test_page_of_options_names_each_option_once():
    table = OPTIONS_PAGE.partition("## What a loader offers")[0]
    cells = re.findall(r"^\| ([^|]+) \| ", table, re.MULTILINE)
    names = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(names) == sorted(inspect.signature(prefetchd.batches).parameters)
    flags = set(re.findall(r"`--(?:\[no-\])?([\w-]+)`", table)) - {"config"}
    assert flags == {flag_of(name) for name in OPTIONS} - {"source"}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_page_names_files_that_exist(page: Path):
    named = re.findall(
        r"(?<![\w./~-])(?:prefetchd|tests|scripts|examples|docs)/[\w./-]*[\w/]", (ROOT / page).read_text()
    )
    assert [name for name in dict.fromkeys(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_line_that_installs_says_how_to_from_a_checkout(page: Path):
    """Nothing is on an index before the first release."""
    lines = (ROOT / page).read_text().splitlines()
    installs = [line for line in lines if re.search(r"(pip|pipx|tool) install [^|]*['\"]?prefetchd\b", line)]
    assert [line for line in installs if not re.search(r"checkout|\./prefetchd", line)] == []


def test_pictures_are_small_and_shown():
    pages = "".join((ROOT / page).read_text() for page in PAGES)
    for path in (ROOT / "docs" / "images").glob("*.png"):
        assert path.stat().st_size < 150_000, path
        assert f"images/{path.name})" in pages


def test_journey_of_a_batch_names_functions_of_its_files():
    text = (ROOT / "docs" / "architecture.md").read_text()
    file, missing, n_found = "", [], 0
    for path, function in re.findall(r"`(prefetchd/[\w/]+\.py)`|`(\w+)\(\)`", text):
        file = path or file
        if function and not re.search(rf"^ *def {function}\(", (ROOT / file).read_text(), re.MULTILINE):
            missing.append(f"{file} has no {function}()")
        n_found += bool(function)
    assert missing == []
    assert n_found > 20


def test_glossary_defines_each_term_once_and_says_where_it_is_met():
    sections = re.split(r"^### ", (ROOT / "docs" / "glossary.md").read_text(), flags=re.MULTILINE)[1:]
    terms = [section.partition("\n")[0].casefold() for section in sections]
    assert len(terms) == len(set(terms))
    for section in sections:
        assert section.count("*Code:*") == section.count("*Interface:*") == 1, section
        definition = section.partition("\n")[2].partition("*Code:*")[0]
        assert 1 <= len(re.findall(r"[.:](?:\s|$)", definition)) <= 5, section


@pytest.mark.parametrize("term", ["batch", "sample", "slot", "ring", "lease", "grant", "cursor", "consumer", "reader"])
def test_glossary_has_the_term(term: str):
    assert f"\n### {term.capitalize()}\n" in (ROOT / "docs" / "glossary.md").read_text()


OF_GPUS = re.compile(r"""device="cuda"|(?:normalize|decode)="device"|on a CUDA device""")
SAY_WHERE_IT_IS_REFUSED = ("docs/fields.md", "docs/augmentation.md")


def test_every_page_that_offers_a_gpu_says_that_it_has_not_yet_run_on_one():
    pages = [page for page in PAGES if OF_GPUS.search((ROOT / page).read_text())]
    assert len(pages) > 6
    silent = [
        str(page)
        for page in pages
        if not re.search(r"not\s+yet\s+run\s+on\s+(a\s+GPU|one)", (ROOT / page).read_text(), re.IGNORECASE)
    ]
    assert [page for page in silent if page not in SAY_WHERE_IT_IS_REFUSED] == []


@pytest.mark.parametrize("folder", ["docs", "prefetchd", "examples"])
def test_words_are_plain(folder: str):
    """The words that a reader has to look up have plainer ones: `each`, `any`, `what`; `the slowest`; `waits`."""
    heavy = re.compile(r"\b(hindmost|whoever|whatever|comes? to a stand|to be had|stands still)\b", re.IGNORECASE)
    files = [path for path in (ROOT / folder).rglob("*") if path.suffix in (".md", ".py", ".js", ".html")]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if heavy.search(line)
    ]
    assert found == []
