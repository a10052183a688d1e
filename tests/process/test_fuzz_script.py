"""`scripts/fuzz`: fresh examples by seed, which repeat by it; the suite's own are the same in every run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hypothesis import settings

ROOT = Path(__file__).parents[2]
DRAWS = """
from pathlib import Path
from hypothesis import given, strategies as st

@given(st.integers(0, 2**60))
def test_draws(number):
    with Path(__file__).with_name("drawn").open("a") as file:
        print(number, file=file)
    assert number < MOST
"""


def fuzz(folder: Path, *options: str, most: int = 2**60 + 1) -> tuple[subprocess.CompletedProcess[str], list[int]]:
    """Run the script on a test that writes down what it draws; return what it said, and what was drawn."""
    path = folder / "test_draws.py"
    path.write_text(DRAWS.replace("MOST", str(most)))
    drawn = folder / "drawn"
    drawn.unlink(missing_ok=True)
    command = [sys.executable, ROOT / "scripts" / "fuzz.py", *options, path]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    return result, [int(line) for line in drawn.read_text().split()]


def test_seed_decides_the_examples(tmp_path):
    result, first = fuzz(tmp_path, "--seed", "1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 rounds (seeds 1 to 1), failed: none" in result.stdout
    assert len(set(first)) > 20
    assert fuzz(tmp_path, "--seed", "1")[1] == first
    assert fuzz(tmp_path, "--seed", "2")[1] != first


def test_failure_is_named_with_the_seed_that_repeats_it(tmp_path):
    result, _ = fuzz(tmp_path, "--seed", "7", most=1000)
    assert result.returncode == 1
    assert f"scripts/fuzz --seed 7 {tmp_path / 'test_draws.py'}" in result.stdout
    assert "failed: 7" in result.stdout


def test_without_a_seed_every_run_has_its_own(tmp_path):
    assert fuzz(tmp_path)[1] != fuzz(tmp_path)[1]


def test_suite_has_the_same_examples_in_every_run():
    assert settings.default.derandomize
    assert settings.default.database is None


def test_no_test_keeps_to_fixed_examples_by_itself():
    """Else scripts/fuzz would run the same ones for ever."""
    tests = [path for path in (ROOT / "tests").rglob("*.py") if path.name != "profiles.py" and path != Path(__file__)]
    assert [path.name for path in tests if "derandomize" in path.read_text()] == []
