"""What each order costs beside the plain permutation, and how well `shuffle="blocks"` mixes.

    python scripts/bench/order.py [MANIFEST] [--samples 10000000]

  positions/s    sample ids of whole epochs' batches, made by one process as a reader makes them
  start-up s     CPU seconds of opening the data and planning its order, for `--samples` rows of an array; of sequences
                 with buckets or packing, as many of 1 to 8 tokens
  B a sample     bytes of the order's table, which all readers share, for a sample of the source
  images/s       of a private daemon with two readers, on the photographs

The mixing, of `--samples` samples sorted by class, in batches of 256:

  neighbours     mean distance in the source of two samples that follow one another, over that of random pairs (n / 3)
  chi-square     Pearson's statistic of the classes in a batch, over its degrees of freedom: 1 for independent draws
  correlation    Spearman's rank correlation of a sample's positions in two epochs: 0 for independent orders

The start with a list of `--lines` lines, whose labels are names of 1000 classes, in seconds of processor time, and more
than that of the plain set; then in seconds by the clock.

And the orders without a table, of `--simulated` samples (10**9) that nobody has: positions a second as above, and what
the process grew by.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from measure import MIB, manifest_or_photographs, setting, table

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
    "weights, each once": {"weights": "WEIGHTS", "replace": False},
    "mix": {"shuffle": True, "mix": {"HALF": 0.7, "OTHER": 0.3}},
    "buckets": {"shuffle": True, "offsets": "OFFSETS", "length_buckets": [2, 4, 8]},  # sequences of up to 8 tokens
    "pack concat": {"shuffle": True, "offsets": "OFFSETS", "pack": "concat", "max_length": 64},
    "pack first_fit": {"shuffle": True, "offsets": "OFFSETS", "pack": "first_fit", "max_length": 64},
}
OF_LISTS: dict[str, dict[str, Any]] = {
    "plain set": {},
    "where": {"where": {"label": ["class001", "class500"]}},
    "weights balanced": {"weights": "balanced"},
    "split": {"split": "0-90%"},
}
NOT_OF_IMAGES = ("where", "mix", "pack concat", "pack first_fit")
OF_IMAGES = {"buckets": {"shuffle": True, "image_size": ["224x224", "192x256", "256x192"]}}


def options_of(name: str, folder: Path) -> dict[str, Any]:
    files = {each: str(folder / f"{each.lower()}.npy") for each in ("IDS", "OFFSETS", "WEIGHTS", "HALF", "OTHER")}
    options = {key: files.get(value, value) if isinstance(value, str) else value for key, value in ORDERS[name].items()}
    if "mix" in options:
        options["mix"] = {files[each]: share for each, share in options["mix"].items()}
    return options


def measure_order(name: str, folder: Path, seconds: float) -> tuple[float, float, float]:
    """Return start-up in seconds, bytes a sample, and positions a second."""
    start = time.process_time()
    options = options_of(name, folder)
    if "mix" not in options:
        options["source"] = str(folder / ("tokens.npy" if "offsets" in options else "x.npy"))
        options |= {} if "pack" in options else {"labels": str(folder / "y.npy")}
    config = make_config(batch_size=BATCH, **options)
    source = open_source(config)
    plan = plan_order(config, source)
    start_up_s = time.process_time() - start
    order, n_done, batch = plan.order, 0, 0
    start = time.process_time()
    while (passed := time.process_time() - start) < seconds:
        epoch, index = divmod(batch, order.batches_per_epoch)
        n_done += len(order.sample_ids(epoch, index, 0, order.rows(epoch, index)))
        batch += 1
    return start_up_s, plan.shared_bytes / source.facts.n_samples, n_done / passed


def images_per_s(manifest: Path, options: dict[str, Any], seconds: float) -> float:
    with prefetchd.batches(
        manifest, **{"batch_size": 16, "image_size": 224, "num_workers": 2, "seed": SEED, "epochs": None, **options}
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


def write_list(folder: Path, n: int) -> Path:
    """Write a list of `n` lines with names of classes, and the file that the first one names."""
    path, lines_at_once = folder / "list.txt", 100_000
    with path.open("w") as file:
        for first in range(0, n, lines_at_once):
            numbers = ((line, line * 7919 % 1000) for line in range(first, min(n, first + lines_at_once)))
            file.writelines(f"train/n{c:08d}/n{c:08d}_{line}.JPEG class{c:03d}\n" for line, c in numbers)
    image = folder / "train/n00000000/n00000000_0.JPEG"
    image.parent.mkdir(parents=True)
    image.touch()
    return path


def start_with_list(path: Path, options: dict[str, Any]) -> tuple[float, float]:
    """Return the seconds of processor time, and by the clock, of opening a list and planning its order."""
    config = make_config(source=str(path), batch_size=BATCH, shuffle=True, **options)
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    plan_order(config, open_source(config))
    return time.process_time() - start_cpu_s, time.perf_counter() - start_s


def simulate(n: int, shuffle: Any, seconds: float) -> tuple[float, float]:
    """Return positions a second of an order of `n` samples, and the MiB by which this process grew."""
    process = psutil.Process()
    before = process.memory_info().rss
    order = Order(n, BATCH, bool(shuffle), True, SEED, shuffle_block=1024 if shuffle == "blocks" else 0)
    batches = np.random.default_rng(SEED).integers(0, order.batches_per_epoch, 1 << 16)
    n_done, start = 0, time.process_time()
    while (passed := time.process_time() - start) < seconds:
        n_done += len(order.sample_ids(3, int(batches[n_done // BATCH % len(batches)]), 0, BATCH))
    return n_done / passed, (process.memory_info().rss - before) / MIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, nargs="?", help="photographs; made in code if not given")
    parser.add_argument("--samples", type=int, default=10_000_000, help="rows of the array (10 million)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (2)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each has its turn (3)")
    parser.add_argument("--lines", type=int, default=1_000_000, help="of the list (1 million)")
    parser.add_argument("--simulated", type=int, default=10**9, help="samples of an order without files (10**9)")
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
            np.save(each / "weights.npy", np.random.default_rng(SEED).random(n))
        np.save(folder / "x.npy", np.zeros((options.samples, 1), np.uint8))
        np.save(folder / "half.npy", np.zeros((options.samples // 2, 1), np.uint8))
        np.save(folder / "other.npy", np.zeros((options.samples - options.samples // 2, 1), np.uint8))
        np.save(folder / "y.npy", np.arange(options.samples) * N_CLASSES // options.samples)
        lengths = np.random.default_rng(SEED).integers(1, 9, options.samples)
        np.save(folder / "offsets.npy", np.concatenate(([0], np.cumsum(lengths))))
        np.save(folder / "tokens.npy", np.zeros(int(lengths.sum()), np.uint8))
        for _ in range(options.rounds):
            for kind in ORDERS:
                costs = measure_order(kind, folder, options.seconds)
                # The same photographs for all: a part of the classes would be other images.
                served = OF_IMAGES.get(kind) or ({} if kind in NOT_OF_IMAGES else options_of(kind, few))
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
    with tempfile.TemporaryDirectory() as name:
        path = write_list(Path(name), options.lines)
        starts = {kind: [start_with_list(path, more) for _ in range(options.rounds)] for kind, more in OF_LISTS.items()}
    rows = [[f"list of {options.lines:,} lines", "CPU s", "more than plain", "s"]]
    plain_s = statistics.median(cpu_s for cpu_s, _ in starts["plain set"])
    for kind, each in starts.items():
        cpu_s, clock_s = (statistics.median(column) for column in zip(*each, strict=True))
        rows.append([kind, f"{cpu_s:.2f}", f"{cpu_s - plain_s:+.2f}", f"{clock_s:.2f}"])
    print(table(rows))
    rows = [[f"{options.simulated:,} samples", "positions/s", "grew by, MiB"]]
    for shuffle in (False, True, "blocks"):
        rate, grew = simulate(options.simulated, shuffle, options.seconds)
        rows.append([f"shuffle={shuffle}", f"{rate:,.0f}", f"{grew:.1f}"])
    print(table(rows))


if __name__ == "__main__":
    main()
