"""What each order costs beside the plain permutation, and how well `shuffle="blocks"` mixes.

    python scripts/bench/order.py [MANIFEST] [--samples 10000000]

  positions/s    sample ids of whole epochs' batches, made by one process as a reader makes them
  start-up s     opening the data and planning its order, for `--samples` rows of an array
  B a sample     bytes of the order's table, which all readers share, for a sample of the source
  images/s       of a private daemon with two readers, on the photographs

The mixing, of `--samples` samples sorted by class, in batches of 256:

  neighbours     mean distance in the source of two samples that follow one another, over that of random pairs (n / 3)
  chi-square     Pearson's statistic of the classes in a batch, over its degrees of freedom: 1 for independent draws
  correlation    Spearman's rank correlation of a sample's positions in two epochs: 0 for independent orders
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import manifest_or_photographs, setting, table

import prefetchd
from prefetchd.config.validate import make_config
from prefetchd.data.order.plan import plan_order
from prefetchd.data.registry import open_source
from prefetchd.sampling.order import Order

SEED = 5
N_CLASSES = 10
BATCH = 256
PLAIN = "plain permutation"
ORDERS: dict[str, dict[str, Any]] = {
    PLAIN: {"shuffle": True},
    "blocks": {"shuffle": "blocks"},
    "subset": {"shuffle": True, "subset": "IDS"},
    "where": {"shuffle": True, "where": {"label": [1, 3]}},
    "order": {"shuffle": True, "order": "IDS"},
    "weights balanced": {"weights": "balanced"},
}


def options_of(name: str, folder: Path) -> dict[str, Any]:
    return {key: str(folder / "ids.npy") if value == "IDS" else value for key, value in ORDERS[name].items()}


def measure_order(name: str, folder: Path, seconds: float) -> tuple[float, float, float]:
    """Return start-up in seconds, bytes a sample, and positions a second."""
    start = time.perf_counter()
    config = make_config(
        source=str(folder / "x.npy"), labels=str(folder / "y.npy"), batch_size=BATCH, **options_of(name, folder)
    )
    source = open_source(config)
    plan = plan_order(config, source)
    start_up_s = time.perf_counter() - start
    order, n_done, batch = plan.order, 0, 0
    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        epoch, index = divmod(batch, order.batches_per_epoch)
        n_done += len(order.sample_ids(epoch, index, 0, order.rows(index)))
        batch += 1
    return start_up_s, plan.shared_bytes / source.facts.n_samples, n_done / passed


def images_per_s(manifest: Path, options: dict[str, Any], seconds: float) -> float:
    with prefetchd.batches(
        manifest, batch_size=16, image_size=224, num_workers=2, seed=SEED, epochs=None, **options
    ) as loader:
        loop = iter(loader)
        next(loop)
        n_done, start = 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < seconds:
            n_done += len(next(loop).x)
        return n_done / passed


def mixing(n: int, shuffle_block: int) -> tuple[float, float, float]:
    """Return the three measures of mixing of a shuffle; see the top."""
    order = Order(n, BATCH, True, True, SEED, shuffle_block=shuffle_block)
    first, second = (
        np.concatenate([order.sample_ids(epoch, batch, 0, BATCH) for batch in range(order.batches_per_epoch)])
        for epoch in (0, 1)
    )
    neighbours = float(np.abs(np.diff(first)).mean() / (n / 3))
    classes = (first * N_CLASSES // n).reshape(-1, BATCH)
    counts = np.stack([(classes == each).sum(1) for each in range(N_CLASSES)], 1)
    expected = BATCH / N_CLASSES
    chi_square = float(((counts - expected) ** 2 / expected).sum(1).mean() / (N_CLASSES - 1))
    positions = np.full((2, n), -1, np.int64)  # where a sample stands in each epoch
    positions[0, first], positions[1, second] = np.arange(len(first)), np.arange(len(second))
    both = positions[:, (positions >= 0).all(0)]
    return neighbours, chi_square, float(np.corrcoef(both)[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, nargs="?", help="photographs; made in code if not given")
    parser.add_argument("--samples", type=int, default=10_000_000, help="rows of the array (10 million)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (2)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each has its turn (3)")
    options = parser.parse_args()
    print(setting("prefetchd", "numpy"), flush=True)
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in ORDERS}
    with tempfile.TemporaryDirectory() as name, manifest_or_photographs(options.manifest) as manifest:
        folder = Path(name)
        n_images = sum(1 for _ in manifest.open())
        few = folder / "few"
        few.mkdir()
        for each, n in ((folder, options.samples), (few, n_images)):
            np.save(each / "ids.npy", np.arange(0, n, 2))
        np.save(folder / "x.npy", np.zeros((options.samples, 1), np.uint8))
        np.save(folder / "y.npy", np.arange(options.samples) * N_CLASSES // options.samples)
        for _ in range(options.rounds):
            for kind in ORDERS:
                costs = measure_order(kind, folder, options.seconds)
                # The same photographs for all: a part of the classes would be other images.
                served = {} if kind == "where" else options_of(kind, few)
                rate = images_per_s(manifest, served, options.seconds) if served else float("nan")
                found[kind].append((*costs, rate))
    medians = {kind: [statistics.median(each) for each in zip(*runs, strict=True)] for kind, runs in found.items()}
    plain = medians[PLAIN]
    rows = [["", "positions/s", "of plain", "start-up s", "more than plain", "B a sample", "images/s", "of plain"]]
    for kind, (start_up_s, n_bytes, rate, images) in medians.items():
        served = ("", "") if np.isnan(images) else (f"{images:.0f}", f"{images / plain[3]:.2f}")
        times = (f"{start_up_s:.2f}", f"{start_up_s - plain[0]:+.2f}")
        rows.append([kind, f"{rate:,.0f}", f"{rate / plain[2]:.2f}", *times, f"{n_bytes:.1f}", *served])
    print(table(rows))
    rows = [["mixing", "neighbours", "chi-square", "correlation"]]
    for kind, block in (("full shuffle", 0), ("blocks of 128", 128), ("blocks of 1024", 1024)):
        rows.append([kind, *(f"{value:.3f}" for value in mixing(options.samples, block))])
    print(table(rows))


if __name__ == "__main__":
    main()
