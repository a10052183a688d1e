"""`prefetchd bench`, as a user types it."""

from __future__ import annotations

import json

import numpy as np

from prefetchd.cli.measure.benchmark import has_torch
from tests.process.commands import refused, refused_here, run_command

QUICK = ("--image-size", "16", "--batch-size", "4", "--num-workers", "1", "--rounds", "1", "--seconds", "0.2")


def test_the_generator_takes_turns_with_prefetchd(photographs):
    result = run_command("bench", photographs, *QUICK, "--json")
    assert result.returncode == 0, result
    answer = json.loads(result.stdout)
    names = [row["loader"] for row in answer["loaders"]]
    assert names[:2] == ["prefetchd", "generator (cv2)"]
    assert ("PyTorch DataLoader" in names) == has_torch()
    for row in answer["loaders"]:
        assert row["images_per_s"] > 0
        assert row["first_batch_s"] > 0
    assert answer["loaders"][0]["handoff_p50_s"] > 0
    assert answer["loaders"][0]["footprint_bytes"] > 10 << 20
    assert answer["limit"] in ("consumer", "decode", "disk", "daemon")


def test_a_slow_step_makes_the_consumer_the_limit(photographs):
    result = run_command("bench", photographs, *QUICK, "--step-ms", "50")
    assert result.returncode == 0, result
    assert "what limits prefetchd: the consumer" in result.stdout


def test_what_the_others_cannot_read_is_measured_alone(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((64, 8), np.float32))
    result = run_command("bench", tmp_path / "x.npy", "--num-workers", "1", "--rounds", "1", "--seconds", "0.2")
    assert result.returncode == 0, result
    assert "left out: the generator" in result.stdout


def test_what_makes_no_sense_is_refused_in_one_line(photographs):
    assert "--rounds" in refused("bench", photographs, "--rounds", "0")
    assert "--seconds" in refused_here("bench", photographs, "--seconds", "0")
    assert "--step-ms" in refused_here("bench", photographs, "--step-ms", "-1")
