"""`prefetchd verify`, as a user types it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import prefetchd
from tests.conftest import wait_until
from tests.images import write_bad, write_jpeg, write_kinds
from tests.process.commands import refused, refused_here, run_command, run_here

QUICK = ("--image-size", "32", "--num-workers", "2")


@pytest.fixture
def mixed(tmp_path):
    """A manifest of every kind of good image, every kind of bad one, and a copy of a good one under another label."""
    kinds, bad = write_kinds(tmp_path / "kinds"), write_bad(tmp_path / "bad")
    bad.pop("no_permission")  # root can read it
    twin = tmp_path / "twin.jpg"
    shutil.copy(kinds["grey.jpg"], twin)
    paths = [*kinds.values(), *bad.values(), twin]
    lines = [f"{path.relative_to(tmp_path)} {'odd' if path == twin else 'even'}\r\n" for path in paths]
    manifest = tmp_path / "mixed.txt"
    manifest.write_text("# of all kinds\n" + "".join(lines), newline="")
    return manifest, kinds, bad


def test_all_that_is_bad_is_listed_with_line_and_reason_and_the_rest_is_counted(mixed, tmp_path):
    manifest, kinds, bad = mixed
    clean = tmp_path / "clean.txt"
    result = run_command("verify", manifest, *QUICK, "--json", "--write-clean", clean)
    assert result.returncode == 1, result
    assert result.stderr == ""
    report = json.loads(result.stdout)
    assert {found["path"] for found in report["bad"]} == {str(path) for path in bad.values()}
    for found in report["bad"]:
        line = manifest.read_text().split("\n")[found["line"] - 1]
        assert found["path"].endswith(line.rpartition(" ")[0])
        assert found["judged"]
        assert found["reason"]
    assert report["good_samples"] == len(kinds) + 1
    assert sum(report["formats"].values()) == len(kinds) + 1
    assert report["duplicates"]["groups_with_different_labels"] == 1
    assert [row["count"] for row in report["classes"]["counts"]] == [len(kinds), 1]
    kept = [line for line in manifest.read_bytes().splitlines(True) if not line.startswith(b"bad/")]
    assert clean.read_bytes() == b"".join(kept)
    again = run_command("verify", clean, *QUICK)
    assert again.returncode == 0, again
    assert "bad         none" in again.stdout


def test_what_verify_passes_is_what_is_served(mixed):
    manifest, _, _ = mixed
    result = run_here("verify", manifest, *QUICK, "--json")
    assert result.returncode == 1, result.stderr
    report = json.loads(result.stdout)
    bad = {found["sample_id"] for found in report["bad"]}
    with prefetchd.batches(manifest, image_size=32, num_workers=1, on_error="skip") as loader:
        served = {number for batch in loader for number in batch.sample_ids.tolist()}
        assert served == set(range(loader.n_samples)) - bad


def test_files_that_are_too_large_to_be_delivered_encoded_are_bad(photographs):
    lines = photographs.read_text().splitlines()
    sizes = [(photographs.parent / line.rpartition(" ")[0]).stat().st_size for line in lines]
    most = sorted(sizes)[40]
    result = run_here("verify", photographs, *QUICK, "--encoded-bytes", str(most), "--json")
    assert result.returncode == 1, result.stderr
    bad = json.loads(result.stdout)["bad"]
    assert {found["sample_id"] for found in bad} == {number for number, size in enumerate(sizes) if size > most}
    assert all(f"more than encoded_bytes={most}; give encoded_bytes=" in found["reason"] for found in bad)


def test_malformed_lines_are_listed_and_left_out_and_all_others_are_verified(photographs, tmp_path):
    manifest, clean = tmp_path / "m.txt", tmp_path / "clean.txt"
    lines = photographs.read_text().splitlines(True)
    lines[3] = "photo without label.jpg\n"
    lines[20] = "gone.jpg 20\n"
    lines[30] = "photo.jpg nan\n"
    manifest.write_text("".join(lines))
    options = (*QUICK, "--root", photographs.parent, "--json")
    result = run_here("verify", manifest, *options, "--write-clean", clean)
    assert result.returncode == 1, result
    report = json.loads(result.stdout)
    assert [line["number"] for line in report["malformed"]] == [4, 31]
    assert "nan" in report["malformed"][1]["reason"]
    assert [bad["line"] for bad in report["bad"]] == [21]
    assert (report["n_samples"], report["good_samples"]) == (48, 47)
    assert (report["clean"]["lines_kept"], report["clean"]["lines_left_out"]) == (47, 3)
    assert "3 left out, 2 of them malformed" in report["clean"]["said"]
    assert clean.read_text() == "".join(line for n, line in enumerate(lines) if n not in (3, 20, 30))
    assert run_here("verify", clean, *options).returncode == 0


def test_malformed_lines_alone_are_a_failure(photographs, tmp_path):
    manifest = tmp_path / "m.txt"
    manifest.write_text(photographs.read_text() + "garbage\n")
    result = run_here("verify", manifest, *QUICK, "--root", photographs.parent)
    assert result.returncode == 1, result
    assert "malformed   1 line\n    line 51: there is no label: 'garbage'\n  bad         none" in result.stdout


def test_many_batches_of_samples_are_each_counted_once(photographs, tmp_path):
    manifest = tmp_path / "long.txt"
    lines = photographs.read_text().splitlines(True)
    manifest.write_text("".join(lines * 9))
    result = run_here("verify", manifest, *QUICK, "--root", photographs.parent, "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["good_samples"] == report["verified"] == 450
    assert report["duplicates"]["groups"] == 50
    assert report["duplicates"]["superfluous_samples"] == 400
    assert all(row["count"] == 9 for row in report["classes"]["counts"])


def test_every_sample_is_judged_where_none_is_good(photographs):
    """Serving ends an epoch without a good sample at its last batch; that says nothing of that batch's samples."""
    result = run_here("verify", photographs, *QUICK, "--channels", "4", "--json")
    assert result.returncode == 1, result
    report = json.loads(result.stdout)
    assert [found["judged"] for found in report["bad"]] == [True] * 50
    assert all("and channels=4" in found["reason"] for found in report["bad"])


def test_a_list_whose_files_are_all_missing_gets_the_hint_of_serve(tmp_path):
    (tmp_path / "photos").mkdir()
    write_jpeg(tmp_path / "photos" / "a.jpg")
    (tmp_path / "m.txt").write_text("a.jpg 0\n")
    result = run_here("verify", tmp_path / "m.txt", *QUICK)
    assert result.returncode == 1, result
    shown = f"it is in another folder: give --root {tmp_path / 'photos'}"
    assert result.stdout.splitlines()[-1].startswith("  hint        its only sample is not there, such as line 1: ")
    assert result.stdout.endswith(f"; {shown}\n")
    (tmp_path / "m.txt").write_text("photos/a.jpg 0\n")
    assert json.loads(run_here("verify", tmp_path / "m.txt", *QUICK, "--json").stdout)["hint"] == ""


def test_nothing_is_written_when_a_sample_could_not_be_judged(tmp_path):
    """A decode that the budget cannot hold says nothing of the file."""
    write_jpeg(tmp_path / "small.jpg")
    assert cv2.imwrite(str(tmp_path / "large.jpg"), np.zeros((5000, 6000, 3), np.uint8))
    manifest = tmp_path / "m.txt"
    manifest.write_text("small.jpg 0\nlarge.jpg 1\n" + "small.jpg 0\n" * 70)
    least = ("--num-workers", "1", "--memory-budget", "73MiB", "--no-shrink-on-load", "--image-size", "32")
    result = run_here("verify", manifest, *least, "--write-clean", tmp_path / "clean.txt", "--json")
    assert result.returncode == 1, result
    report = json.loads(result.stdout)
    assert [(found["line"], found["judged"]) for found in report["bad"]] == [(2, False)]
    assert "memory_budget=" in report["bad"][0]["reason"]
    assert report["good_samples"] == 71
    assert not report["clean"]["written"]
    assert not (tmp_path / "clean.txt").exists()


def test_interrupted_it_reports_what_it_has_and_leaves_nothing(tmp_path):
    write_jpeg(tmp_path / "large.jpg", (2000, 2000))
    manifest = tmp_path / "m.txt"
    manifest.write_text("large.jpg 0\n" * 3000)
    command = [sys.executable, "-m", "prefetchd", "verify", str(manifest), "--no-shrink-on-load"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: _catches_sigterm(process.pid), "Ctrl-C is listened to")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, (out, err)
    assert err == ""
    assert out.startswith("stopped after ")


def _catches_sigterm(pid: int) -> bool:
    """Whether the command has set its handlers: Python sets none for SIGTERM, and ours for SIGINT comes first."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def test_what_cannot_be_verified_is_refused_in_one_line(photographs, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 2)))
    assert "arrays have nothing to decode" in refused_here("verify", tmp_path / "x.npy")
    assert "2 data sets" in refused_here("verify", f"a={photographs}", f"b={photographs}")
    assert "over" in refused_here("verify", photographs, "--write-clean", photographs)
    assert "no manifest was given" in refused("verify")


def test_whole_images_are_decoded_whatever_the_augmentation(photographs, tmp_path):
    (tmp_path / "cache").mkdir()
    result = run_here(
        "verify", photographs, *QUICK, "--augment", "random_resized_crop", "--cache", tmp_path / "cache",
        "--cache-image-size", "64", "--json",
    )  # fmt: skip
    assert result.returncode == 0, result
    assert json.loads(result.stdout)["good_samples"] == 50
    assert not list((tmp_path / "cache").iterdir())
