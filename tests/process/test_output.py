"""The output of commands, to a full disk and to a reader that ends at once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

COMMANDS = (["--help"], ["--version"], ["serve", "--help"], ["list"], ["completion", "bash"])


def run_into(output: int, words: list[str], unbuffered: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "prefetchd", *words],
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_output_that_is_lost_is_an_exit_status(words):
    if "completion" in words:
        pytest.importorskip("shtab")
    full = os.open("/dev/full", os.O_WRONLY)
    reading, ended = os.pipe()
    os.close(reading)
    try:
        for unbuffered in ("", "1"):
            lost = run_into(full, words, unbuffered)
            assert (lost.returncode, lost.stderr) == (
                1,
                "prefetchd: cannot go on: No space left on device; make room there\n",
            )
            unread = run_into(ended, words, unbuffered)
            assert (unread.returncode, unread.stderr) == (1, "")
    finally:
        os.close(full)
        os.close(ended)
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "prefetchd", *words],
        stderr=subprocess.PIPE,
        text=True,
        timeout=100,
    )
    assert (closed.returncode, closed.stderr) == (0, "")
