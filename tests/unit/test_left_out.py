"""`scripts/left_out.py`: CI runs with the frameworks exactly what the tests left out without them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "left_out.py"
TESTS = """
import pytest

@pytest.mark.parametrize("name", ["plain", "with space", "a.b::c"])
def test_one(name):
    if name != "plain":
        pytest.skip("needs more")

class TestMore:
    def test_two(self):
        pytest.skip("needs more")
"""


def python(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def pytest_in(folder: Path, *words: object) -> str:
    return python(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words).stdout


def test_what_was_skipped_is_chosen_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "tests" / "deep").mkdir(parents=True)
    (tmp_path / "tests" / "test_some.py").write_text(TESTS)
    (tmp_path / "tests" / "deep" / "test_whole.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    assert "1 passed, 4 skipped" in pytest_in(tmp_path, "--junitxml", "plain.xml", "tests")
    found = python(tmp_path, SCRIPT, "plain.xml")
    assert found.returncode == 0, found.stderr
    assert sorted(found.stdout.splitlines()) == [
        "tests/deep/test_whole.py",
        "tests/test_some.py::TestMore::test_two",
        "tests/test_some.py::test_one[a.b::c]",
        "tests/test_some.py::test_one[with space]",
    ]
    (tmp_path / "left_out").write_text(found.stdout)
    (tmp_path / "tests" / "deep" / "test_whole.py").write_text("def test_three():\n    pass\n")
    assert "1 passed, 3 skipped" in pytest_in(tmp_path, "@left_out")


def test_report_of_elsewhere_or_of_nothing_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    pytest_in(tmp_path, "--junitxml", "plain.xml")
    (tmp_path / "test_some.py").rename(tmp_path / "test_other.py")
    (tmp_path / "empty.xml").write_text("<testsuites/>")
    for report, said in (("plain.xml", "cannot find the test"), ("empty.xml", "it has no tests")):
        refused = python(tmp_path, SCRIPT, report)
        assert refused.returncode == 1
        assert said in refused.stderr
        assert refused.stderr.count("\n") == 1
