"""Simulated worlds find faults: each one that is planted on purpose is found by the seeds that its patch states."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.planted import FOLDER, DoesNotApply, all_planted, read
from tests.simulation.spec import draw
from tests.simulation.world import run_world

ROOT = Path(__file__).parents[2]
FAULTS = all_planted()
_AT_ONCE = 4


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_patch_applies(fault):
    source = (ROOT / fault.file).read_text()
    patched = fault.applied(source)
    assert patched != source
    compile(patched, fault.file, "exec")


def test_patch_that_does_not_apply_is_an_error(tmp_path):
    path = tmp_path / "gone.patch"
    path.write_text((FOLDER / f"{FAULTS[0].name}.patch").read_text())
    with pytest.raises(DoesNotApply, match="gone: its text is 0 times"):
        read(path).applied("")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, len(FAULTS), _AT_ONCE))
def test_planted_faults_are_found(first):
    names = [fault.name for fault in FAULTS[first : first + _AT_ONCE]]
    command = [sys.executable, "-m", "tests.simulation.planted", *names]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": seed ") == len(names)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_worlds_that_find_a_fault_keep_the_rules_without_it(fault):
    for seed in fault.seeds:
        run_world(draw(seed, fault.features))
