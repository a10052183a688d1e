"""Limits that the system sets (ulimit): the daemon works within them, or says in one line which one it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.process.commands import Result, run_command, run_script

_N = 40


def limited(limit: str, most: int, *arguments: object) -> Result:
    """Run a command under a limit, such as `RLIMIT_NOFILE`."""
    code = (
        f"import os, resource, sys; resource.setrlimit(resource.{limit}, ({most}, {most})); "
        "os.execv(sys.executable, [sys.executable, '-m', 'prefetchd', *sys.argv[1:]])"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.usefixtures("nothing_left")
def test_slots_leave_descriptors_for_the_loop(forty: Path, tmp_path: Path) -> None:
    """The plan has more slots than descriptors are allowed: with all of them taken nobody could attach."""
    script = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
import prefetchd
with prefetchd.batches({str(forty)!r}, batch_size=1, image_size=32, num_workers=2, epochs=3) as loader:
    print(sum(len(x) for x, _ in loader), loader.status()["ring"]["slots"])
"""
    result = run_script(tmp_path / "script.py", script)
    assert result.returncode == 0, result.stderr
    n_samples, n_slots = map(int, result.stdout.split())
    assert n_samples == 3 * _N
    assert 3 <= n_slots < 64
    assert "cannot make another slot: 64 open files are allowed" in result.stderr


@pytest.mark.parametrize(
    ("limit", "most", "says"),
    [
        pytest.param("RLIMIT_NOFILE", 12, "the limit is 12); raise the limit of open files", id="no-descriptor"),
        pytest.param("RLIMIT_NOFILE", 28, "28 open files are allowed, ", id="too-few-descriptors"),
        pytest.param("RLIMIT_FSIZE", 4096, "File too large (the limit is 4096)", id="file-sizes"),
    ],
)
@pytest.mark.usefixtures("nothing_left")
def test_too_little_to_start_with_is_one_line(forty: Path, limit: str, most: int, says: str) -> None:
    result = limited(limit, most, "serve", forty, "--image-size", 32, "--num-workers", 2)
    assert result.returncode == 1
    assert says in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.usefixtures("sabotage", "nothing_left")
def test_too_few_processes_for_readers_is_said_without_tracebacks(forty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SABOTAGE_FORK", "1")
    result = run_command("serve", forty, "--image-size", 32, "--num-workers", 2)
    assert result.returncode == 1
    assert "cannot start a reader: Resource temporarily unavailable" in result.stderr
    assert "Traceback" not in result.stderr
