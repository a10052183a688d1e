"""`prefetchd tune`, as a user types it."""

from __future__ import annotations

import json

import pytest

import prefetchd
from prefetchd.cli.measure.measure import Measured
from tests.process.commands import refused, refused_here, run_command, run_here

QUICK = ("--image-size", "16", "--batch-size", "4", "--num-workers", "1", "--seconds", "0.2")


def test_points_are_measured_within_their_budgets_and_one_is_chosen(photographs, tmp_path):
    plot = tmp_path / "t.svg"
    result = run_command("tune", photographs, *QUICK, "--target", "1", "--json", "--plot", plot)
    assert result.returncode == 0, result
    answer = json.loads(result.stdout)
    assert len(answer["points"]) >= 3
    for point in answer["points"]:
        assert 0 < point["footprint_bytes"] <= point["budget_bytes"]
        assert point["images_per_s"] > 0
        assert point["n_readers"] == 1
    assert answer["chosen"] == min(answer["points"], key=lambda point: point["budget_bytes"])
    assert answer["command"].startswith("prefetchd serve ")
    assert plot.read_text().startswith("<svg")


@pytest.fixture
def measured(monkeypatch):
    """Measurements that take no time; returns the plans that were measured, as readers and budget."""
    plans = []

    def measure(config, seconds, on_progress):
        on_progress()
        budget_bytes = int(config.memory_budget)
        plans.append((config.num_workers, budget_bytes))
        rate = budget_bytes / (1 << 20)
        return Measured(config.num_workers, 3, budget_bytes, rate, budget_bytes - 1, 0.1, 0.9, 1.0, 1.0, 0)

    monkeypatch.setattr("prefetchd.cli.measure.measure.measure", measure)
    return plans


def test_a_plot_that_cannot_be_written_is_refused_at_once_or_costs_nothing_else(photographs, tmp_path, measured):
    for plot in (tmp_path, tmp_path / "no" / "t.svg"):
        assert "cannot write the plot" in refused_here("tune", photographs, *QUICK, "--plot", plot)
    assert measured == []
    result = run_here("tune", photographs, *QUICK, "--plot", "/dev/full")
    assert len(set(measured)) >= 3
    assert result.returncode == 1, result
    assert "    prefetchd serve " in result.stdout
    assert "plot:" not in result.stdout
    assert result.stderr.endswith(
        "cannot write the plot /dev/full: No space left on device; name another with --plot\n"
    )


def test_a_target_that_is_not_held_is_an_exit_status(photographs, tmp_path, monkeypatch, measured):
    monkeypatch.chdir(tmp_path)
    result = run_here("tune", photographs, *QUICK, "--target", "1e8", "--plot", "")
    assert measured
    assert result.returncode == 1, result
    assert "decoding cannot hold" in result.stdout
    assert "    prefetchd serve " in result.stdout
    assert list(tmp_path.glob("*.svg")) == []


def test_what_makes_no_sense_is_refused_in_one_line(photographs):
    assert "--target" in refused("tune", photographs, "--target", "-3")
    assert "target" in refused_here("tune", photographs, "--target", "masks")
    assert "--seconds" in refused_here("tune", photographs, "--seconds", "0")


def test_a_loader_tells_its_daemons_status_and_goes_on_where_it_was(photographs):
    with prefetchd.batches(photographs, batch_size=4, image_size=16, num_workers=1) as loader:
        seen = []
        for batch in loader:
            seen.append(batch.index)
            assert loader.status()["ring"]["leased"] >= 1
        assert seen == list(range(13))
