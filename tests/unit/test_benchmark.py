"""The benchmark's arithmetic, with loaders made up for it, and the peers' reading."""

from __future__ import annotations

import contextlib
import itertools

import numpy as np
import pytest

from prefetchd.cli.measure.benchmark import (
    Figures,
    Files,
    generator,
    limit_of,
    n_rows,
    sample_numbers,
    summarise,
    table,
    take_turn,
)
from prefetchd.cli.measure.measure import Measured
from prefetchd.config.validate import make_config
from prefetchd.data.manifest.records import Manifest
from prefetchd.sampling.order import Order

ROWS = {
    "prefetchd": Figures([100.0, 300.0, 200.0], [0.2, 0.3, 0.4], [10 << 20, 12 << 20], [0.001] * 99 + [0.1]),
    "generator": Figures([50.0, 100.0, 200.0], [0.1, 0.1, 0.1]),
}


def test_rows_of_a_batch_of_several_arrays_are_counted_once():
    assert n_rows(np.zeros((5, 2))) == n_rows((np.zeros((5, 9)), np.zeros(5))) == 5


def test_rates_are_compared_turn_by_turn():
    ours, theirs = summarise(ROWS)
    assert (ours["images_per_s"], ours["times_slower"], ours["footprint_bytes"]) == (200, 1, 12 << 20)
    assert ours["handoff_p50_s"] == 0.001
    assert 0.001 <= ours["handoff_p99_s"] < 0.1
    assert theirs["times_slower"] == 2
    assert theirs["handoff_p50_s"] is None
    lines = table([ours, theirs])
    assert lines[2].split() == ["generator", "100", "2.00", "times", "0.10", "s", "-", "-", "-"]
    assert len({len(line) for line in lines}) == 1


def test_a_turn_counts_the_samples_of_its_time_and_the_first_batch():
    @contextlib.contextmanager
    def opens():
        yield ((np.zeros((7, 4)), None) for _ in itertools.count())

    figures = Figures()
    take_turn(opens, figures, 0.2, 0.01, prepares=False)
    assert len(figures.images_per_s) == len(figures.first_batch_s) == 1
    assert 0 < figures.images_per_s[0] <= 700  # 7 samples a step of 10 ms, or fewer where the machine is busy
    assert figures.handoff_s == figures.footprint_bytes == []


@pytest.mark.parametrize(
    ("loader_bound", "busy", "on_cpu", "limit"),
    [(0.02, 0.3, 1, "consumer"), (0.9, 0.95, 0.98, "decode"), (0.9, 0.95, 0.3, "disk"), (0.9, 0.4, 1, "daemon")],
)
def test_what_limits_follows_from_who_waits(loader_bound, busy, on_cpu, limit):
    measured = Measured(2, 8, 1, 100.0, 1, 0.1, busy, on_cpu, loader_bound, 0)
    assert limit_of(measured)[0] == limit


@pytest.mark.parametrize("options", [{}, {"color": "gray", "layout": "nchw"}, {"dtype": "float32", "color": "bgr"}])
def test_peers_read_the_samples_that_prefetchd_delivers_in_its_order(photographs, options):
    config = make_config(source=photographs, batch_size=8, image_size="20x30", shuffle=True, seed=3, **options)
    with Manifest.open(config) as manifest:
        files = Files(manifest, config)
        order = Order(50, 8, False, True, 3)
        with generator(files) as batches:
            x, y = next(batches)
        assert x.shape == ((8, 1, 20, 30) if options.get("layout") else (8, 20, 30, 3))
        assert x.dtype == options.get("dtype", "uint8")
        assert y.tolist() == order.sample_ids(0, 0, 0, 8).tolist()  # each photograph's label is its number
        numbers = list(itertools.islice(sample_numbers(config, 50), 100))
        assert sorted(numbers[:50]) == sorted(numbers[50:]) == list(range(50))
        assert numbers[:50] != numbers[50:]


def test_peers_pass_over_what_opencv_does_not_read(tmp_path, photographs):
    (tmp_path / "m.txt").write_text(f"missing.jpg 7\n{photographs.parent / 'photo 03.jpg'}\t8\n".replace("\t", " "))
    config = make_config(source=tmp_path / "m.txt", image_size=16)
    with Manifest.open(config) as manifest:
        assert Files(manifest, config)[0][1] == 8
