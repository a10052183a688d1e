"""`prefetchd verify` of files that end the process that decodes them."""

from __future__ import annotations

import json

import pytest

from tests.faults.conftest import write_manifest
from tests.process.commands import run_command


@pytest.mark.parametrize(("word", "judged", "said"), [("segv", True, "SIGSEGV"), ("kill", False, "SIGKILL")])
def test_a_file_that_ends_its_reader_is_reported_and_all_others_are_verified(tmp_path, sabotage, word, judged, said):
    manifest = write_manifest(tmp_path, 70)
    sabotage.mark(tmp_path / "033.jpg", word)
    result = run_command("verify", manifest, "--num-workers", "2", "--image-size", "32", "--json")
    assert result.returncode == 1, result
    report = json.loads(result.stdout)
    assert [(bad["line"], bad["judged"]) for bad in report["bad"]] == [(34, judged)]
    assert said in report["bad"][0]["reason"]
    assert report["good_samples"] == 69


def test_a_crash_that_does_not_come_again_is_no_fault_of_the_file(tmp_path, sabotage):
    manifest = write_manifest(tmp_path, 12)
    sabotage.mark(tmp_path / "003.jpg", "once-a")
    result = run_command("verify", manifest, "--num-workers", "1", "--image-size", "32")
    assert result.returncode == 0, result
