"""`prefetchd doctor` as a command: on this machine, and on one that lacks something."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from prefetchd import __version__
from tests.process.commands import run_command


def test_doctor_says_that_an_epoch_gets_through():
    result = run_command("doctor")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "four images were served by a private daemon" in result.stdout
    assert f"prefetchd {__version__} (protocol " in result.stdout
    assert result.stdout.splitlines()[-1].startswith("everything works")


def test_doctor_prints_facts_and_findings_as_json():
    result = run_command("doctor", "--json", "--quick")
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert report["facts"]["prefetchd"]["version"] == __version__
    assert {each["level"] for each in report["findings"]} <= {"ok", "note"}
    assert "trial" not in {each["name"] for each in report["findings"]}


def test_doctor_fails_where_something_will_not_work(tmp_path: Path):
    """A run directory that belongs to all: a daemon would refuse it too."""
    runtime = tmp_path / "run"
    (runtime / "prefetchd").mkdir(parents=True)
    (runtime / "prefetchd").chmod(0o777)
    result = subprocess.run(
        [sys.executable, "-m", "prefetchd", "doctor", "--quick"],
        capture_output=True, text=True, timeout=100, env={**os.environ, "XDG_RUNTIME_DIR": str(runtime)},
    )  # fmt: skip
    assert result.returncode == 1
    assert "X run directory" in result.stdout
    assert result.stdout.splitlines()[-1].endswith("will not work (X)")
