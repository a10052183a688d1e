"""The simulation finds the faults that are planted for it, in the worlds that are known to find them."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation import planted

_PARTS = 4
_ROOT = Path(planted.__file__).parents[2]


@pytest.mark.simulated
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(_PARTS))
def test_planted_faults_are_found(part: int) -> None:
    names = [fault.name for fault in planted.all_planted()][part::_PARTS]
    command = [sys.executable, "-m", "tests.simulation.planted", *names]
    ran = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=580, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert [line.partition(":")[0] for line in ran.stdout.splitlines()] == names


def test_every_planted_fault_has_a_world_that_finds_it() -> None:
    faults = planted.all_planted()
    assert len(faults) >= 30
    assert [fault.name for fault in faults if not fault.seeds or not fault.worlds] == []


def test_a_patch_that_no_longer_applies_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("one\ntwo\ntwo\n")
    planted.Hunk("a.py", "one\n", "three\n").apply(tmp_path)
    assert (tmp_path / "a.py").read_text() == "three\ntwo\ntwo\n"
    for before in ("one\n", "two\n"):
        with pytest.raises(planted.DoesNotApplyError, match="write the patch again"):
            planted.Hunk("a.py", before, "three\n").apply(tmp_path)
    with pytest.raises(planted.DoesNotApplyError, match=r"0 times in b\.py"):
        planted.Hunk("b.py", "one\n", "three\n").apply(tmp_path)


def test_the_page_lists_the_planted_faults() -> None:
    page = _ROOT / "docs" / "reliability.md"
    text = page.read_text()
    assert planted.page_with(text, planted.all_planted()) == text, "run python -m tests.simulation.planted --write"
