"""The project's own files name scripts, extras, commands and pages that exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from prefetchd.cli.main import make_parser

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ISSUE_FORMS = (".github/ISSUE_TEMPLATE/bug_report.yml", ".github/ISSUE_TEMPLATE/feature_request.yml")
YAML_FILES = (
    ".github/workflows/ci.yml",
    ".github/ISSUE_TEMPLATE/config.yml",
    *ISSUE_FORMS,
    ".pre-commit-config.yaml",
    "mkdocs.yml",
)
TEXT_FILES = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CODE_OF_CONDUCT.md",
    ".github/pull_request_template.md",
    "docs/contributing.md",
)


def load(name: str) -> Any:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize("name", YAML_FILES)
def test_yaml_file_holds_a_table(name: str):
    assert isinstance(load(name), dict)


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "LICENSE", "CHANGELOG.md"])
def test_source_distribution_has_the_root_file(name: str):
    assert (ROOT / name).read_text().strip()
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = config["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert f"/{name}" in included or name in PROJECT["license-files"]


@pytest.mark.parametrize("name", TEXT_FILES)
def test_text_links_to_files_that_exist(name: str):
    text = (ROOT / name).read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not ((ROOT / name).parent / link).exists()] == []


@pytest.mark.parametrize("name", TEXT_FILES)
def test_text_names_scripts_that_can_run(name: str):
    text = (ROOT / name).read_text()
    named = set(re.findall(r"(?<![\w/.])((?:scripts|\.ci)/[\w/.-]*\w)", text))
    assert [path for path in named if not (ROOT / path).exists()] == []
    run = {path for path in named if not Path(path).suffix and (ROOT / path).is_file()}
    assert [path for path in run if not os.access(ROOT / path, os.X_OK)] == []


@pytest.mark.parametrize("name", TEXT_FILES)
def test_text_names_extras_that_exist(name: str):
    text = (ROOT / name).read_text()
    named = {extra for extras in re.findall(r"'\.\[([\w,]+)\]'", text) for extra in extras.split(",")}
    assert named <= set(PROJECT["optional-dependencies"])


def test_hooks_run_tools_of_the_development_environment():
    development = " ".join(PROJECT["optional-dependencies"]["dev"])
    hooks = [hook for repo in load(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert {hook["id"] for hook in hooks} == {"ruff-check", "ruff-format", "mypy", "subject"}
    for hook in hooks:
        assert hook["language"] == "system", "a hook that pre-commit installs has another version of the tool"
        if hook["id"] == "subject":
            assert hook["stages"] == ["commit-msg"]
            assert os.access(ROOT / hook["entry"], os.X_OK)
            continue
        python, flag, tool, *_ = shlex.split(hook["entry"])
        assert (python, flag) == (".venv/bin/python", "-m")
        assert re.search(rf"\b{tool}>=", development)
    assert "commit-msg" in load(".pre-commit-config.yaml")["default_install_hook_types"]


@pytest.mark.parametrize(
    ("message", "is_refused"),
    [
        ("x" * 72, False),
        ("x" * 73, True),
        ("\u00fc" * 72, False),
        ("\u00fc" * 73, True),
        (f"# {'x' * 80}\n\nShort\n\n{'x' * 80}", False),
        ("", False),
    ],
)
def test_hook_refuses_long_subjects(tmp_path: Path, message: str, is_refused: bool):
    (tmp_path / "message").write_text(message)
    environment = {**os.environ, "LC_ALL": "C"}
    command = [ROOT / "scripts" / "check_subject", tmp_path / "message"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert (done.returncode, bool(done.stderr)) == (int(is_refused), is_refused)
    assert not is_refused or "the subject has 73 characters, and 72 is the most" in done.stderr


def test_hooks_run_what_the_checks_of_a_change_run():
    checks = (ROOT / ".ci" / "run").read_text()
    for tool in ("ruff check", "ruff format", "mypy"):
        assert f"-m {tool}" in checks
        assert f"-m {tool}" in (ROOT / ".pre-commit-config.yaml").read_text()


def test_workflow_runs_the_checks_of_a_change():
    workflow = load(".github/workflows/ci.yml")
    events = workflow[True]  # the word `on` is a boolean in YAML 1.1
    assert "pull_request" in events
    (job,) = workflow["jobs"].values()
    assert job["runs-on"] == "ubuntu-latest"
    assert job["timeout-minutes"] == 60
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_workflow_sets_up_versions_of_python_that_are_supported():
    (job,) = load(".github/workflows/ci.yml")["jobs"].values()
    (setup,) = [step["with"] for step in job["steps"] if step.get("uses", "").startswith("actions/setup-python@")]
    versions = str(setup["python-version"]).split()
    assert versions[-1] == "3.11", "the last one is python3"
    supported = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line}
    assert set(versions) <= supported


@pytest.mark.parametrize("name", ISSUE_FORMS)
def test_issue_form_is_complete(name: str):
    form = load(name)
    assert form["name"]
    assert form["description"]
    identifiers = [field["id"] for field in form["body"]]
    assert len(identifiers) == len(set(identifiers))
    assert all(field["attributes"]["label"] for field in form["body"])
    assert any(field.get("validations", {}).get("required") for field in form["body"])


def test_bug_report_asks_for_commands_that_exist():
    text = (ROOT / ISSUE_FORMS[0]).read_text()
    for needed in ("prefetchd doctor", "prefetchd status --json", "--debug"):
        assert f"`{needed}" in text
    parser = make_parser()
    assert callable(parser.parse_args(["doctor"]).run)
    assert parser.parse_args(["status", "--json", "--debug"]).debug


def urls() -> Iterator[str]:
    yield from PROJECT["urls"].values()
    for name in (*TEXT_FILES, ".github/ISSUE_TEMPLATE/config.yml"):
        yield from re.findall(r"https://github\.com/[\w./-]*\w", (ROOT / name).read_text())


def test_addresses_are_of_one_project():
    assert {"Homepage", "Documentation", "Source", "Changelog", "Issues"} == set(PROJECT["urls"])
    home = PROJECT["urls"]["Homepage"]
    assert [url for url in urls() if url != home and not url.startswith(f"{home}/")] == []
    pages = [url.partition("/blob/main/")[2] for url in urls() if "/blob/main/" in url]
    assert "CHANGELOG.md" in pages
    assert [page for page in pages if not (ROOT / page).exists()] == []


def test_command_of_the_package_exists():
    module, _, function = PROJECT["scripts"]["prefetchd"].partition(":")
    assert callable(getattr(import_module(module), function))
