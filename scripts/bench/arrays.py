"""Random rows of an array that is larger than a trainer wants in its memory: prefetchd against the usual ways.

    pip install -e '.[bench]' && python scripts/bench/arrays.py --batches 3000 --rounds 4

Makes `x.npy`, `--rows` rows of 80 int32 (2,000,000: 640 MB), and `y.npy`, int64, in a temporary folder, and reads them
once, so that every loader finds them in the page cache. Each loader delivers shuffled batches of `--batch-size` (320)
rows of x and y; the loop reads a byte of every page of x. The loaders take turns (A B C A B C ...), `--rounds` times;
the figures are medians over the rounds, of `--batches` batches after the first `--warm-up` (a loader that works ahead
has some in stock when it starts, and 2,000,000 random numbers are drawn before the first batch of some).

  np.take              x and y mapped with np.load(mmap_mode="r"), rows gathered by np.take at a fresh permutation: in
                       the loop's own process, what any loader has to be measured by
  prefetchd            `prefetchd.batches("x.npy", labels="y.npy", batch_size=320, shuffle=True, epochs=None)`, a daemon
                       of its own and `--workers` readers; then with 1 and 2 readers
  DataLoader, 0 / 2    PyTorch's, with a dataset that gives whole batches (`dataset[list of ids]`), a BatchSampler over
                       a RandomSampler and `batch_size=None`: its fastest way for arrays; 0 and 2 worker processes
  tf.data              range, shuffle, batch, then np.take in a `numpy_function`; where TensorFlow is installed
  Grain                a shuffled range of positions, batched, then np.take in `map`; where Grain is installed

  batches/s            as above
  vs np.take           the median of the ratios within the rounds
  CPU us a batch       user and system time of all processes of the loader and the loop, for each batch
  reader's fill        what a reader takes to write a batch's rows into a slot, measured in this process (median)
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from measure import descendants, setting, table

import prefetchd

with contextlib.suppress(ImportError):
    import torch
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler
with contextlib.suppress(ImportError):
    import tensorflow as tf
with contextlib.suppress(ImportError):
    import grain

WIDTH = 80
Batches = Iterator[tuple[Any, Any]]
Loader = Callable[[Path, argparse.Namespace], contextlib.AbstractContextManager[Batches]]


def touch(x: Any) -> int:
    """Read a byte of every page, so that no loader profits from pages that nobody has mapped yet."""
    return int(np.asarray(x).reshape(-1).view(np.uint8)[::4096].sum(dtype=np.int64))


def make_arrays(folder: Path, n_rows: int) -> None:
    """Write x.npy, block by block, and y.npy."""
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.int32, (n_rows, WIDTH))
    rng = np.random.default_rng(0)
    for start in range(0, n_rows, 1 << 16):
        block = x[start : start + (1 << 16)]
        block[:] = rng.integers(0, 30000, block.shape, np.int32)
    x.flush()
    np.save(folder / "y.npy", np.arange(n_rows, dtype=np.int64))


class Mapped:
    """x and y as mapped arrays that give whole batches: `mapped[list of ids]`."""

    def __init__(self, folder: Path) -> None:
        self.x = np.load(folder / "x.npy", mmap_mode="r")
        self.y = np.load(folder / "y.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, ids: Any) -> tuple[Any, Any]:
        return np.take(self.x, ids, axis=0), np.take(self.y, ids, axis=0)


# --- the loaders: a context manager that gives endless batches


@contextlib.contextmanager
def numpy_take(folder: Path, options: argparse.Namespace) -> Iterator[Batches]:
    data, rng = Mapped(folder), np.random.default_rng(1)

    def batches() -> Batches:
        while True:
            order = rng.permutation(len(data))
            for start in range(0, len(data), options.batch_size):
                yield data[order[start : start + options.batch_size]]

    yield batches()


def prefetchd_loader(n_readers: int | None) -> Loader:
    @contextlib.contextmanager
    def make(folder: Path, options: argparse.Namespace) -> Iterator[Batches]:
        with prefetchd.batches(
            folder / "x.npy",
            labels=folder / "y.npy",
            batch_size=options.batch_size,
            shuffle=True,
            epochs=None,
            num_workers=options.workers if n_readers is None else n_readers,
        ) as loader:
            yield iter(loader)

    return make


class TorchDataset(Mapped):
    def __getitem__(self, ids: Any) -> tuple[Any, Any]:
        x, y = super().__getitem__(ids)
        return torch.from_numpy(x), torch.from_numpy(y)


def torch_loader(n_workers: int) -> Loader:
    @contextlib.contextmanager
    def make(folder: Path, options: argparse.Namespace) -> Iterator[Batches]:
        data = TorchDataset(folder)
        sampler = BatchSampler(RandomSampler(data), options.batch_size, drop_last=False)
        loader = DataLoader(data, sampler=sampler, batch_size=None, num_workers=n_workers)
        epochs: list[Any] = []

        def batches() -> Batches:
            while True:
                epochs[:] = [iter(loader)]
                yield from epochs[0]

        try:
            yield batches()
        finally:
            if epochs and hasattr(epochs[0], "_shutdown_workers"):
                epochs[0]._shutdown_workers()  # else they end when the garbage collector comes round

    return make


@contextlib.contextmanager
def tensorflow_loader(folder: Path, options: argparse.Namespace) -> Iterator[Batches]:
    data = Mapped(folder)
    rows = (
        tf.data.Dataset.range(len(data))
        .shuffle(len(data))
        .repeat()
        .batch(options.batch_size)
        .map(lambda ids: tf.numpy_function(data.__getitem__, [ids], (tf.int32, tf.int64)), options.workers or 2)
        .prefetch(8)
    )
    yield rows.as_numpy_iterator()


@contextlib.contextmanager
def grain_loader(folder: Path, options: argparse.Namespace) -> Iterator[Batches]:
    data = Mapped(folder)
    rows = (
        grain.MapDataset.range(len(data)).shuffle(seed=1).repeat().batch(options.batch_size).map(lambda ids: data[ids])
    )
    yield iter(rows.to_iter_dataset(grain.ReadOptions(num_threads=options.workers or 2, prefetch_buffer_size=16)))


# --- measuring


def cpu_s() -> float:
    """Return the processor time of this process and all below it so far, in seconds; those that ended count too."""
    total = 0.0
    for process in (psutil.Process(), *descendants()):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def run(make: Loader, folder: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Return batches a second, and processor seconds a batch."""
    with make(folder, options) as batches:
        for x, _ in itertools.islice(batches, options.warm_up):
            touch(x)
        begin_cpu_s, begin_s = cpu_s(), time.perf_counter()
        for x, _ in itertools.islice(batches, options.batches):
            touch(x)
        took_s = time.perf_counter() - begin_s
        return options.batches / took_s, (cpu_s() - begin_cpu_s) / options.batches


def fill_s(folder: Path, options: argparse.Namespace) -> float:
    """Return what a reader's work on one batch takes, without any process around it."""
    from prefetchd.config.validate import make_config
    from prefetchd.data.registry import attach_source, open_source
    from prefetchd.ring.layout import BatchLayout
    from prefetchd.sampling.order import Order

    config = make_config(source=folder / "x.npy", labels=folder / "y.npy", batch_size=options.batch_size, shuffle=True)
    opened = open_source(config)
    handle, fds = opened.handle()
    source = attach_source(config, handle, [os.dup(fd) for fd in fds])
    layout = BatchLayout(config.batch_size, opened.facts.fields)
    x, y = layout.arrays(np.zeros(layout.slot_bytes, np.uint8), config.batch_size)
    order = Order(opened.facts.n_samples, config.batch_size, True, True, 0)
    took_s = []
    for batch in range(min(order.batches_per_epoch, 2000)):
        ids = order.sample_ids(0, batch, 0, config.batch_size).tolist()
        start_s = time.perf_counter()
        source.fill(0, ids, range(config.batch_size), (x, y), lambda _: None)
        took_s.append(time.perf_counter() - start_s)
    return statistics.median(took_s[len(took_s) // 2 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000, help="rows of the array (2,000,000)")
    parser.add_argument("--batch-size", type=int, default=320)
    parser.add_argument("--batches", type=int, default=3000, help="timed in a round (3000)")
    parser.add_argument("--warm-up", type=int, default=300, help="batches before that (300)")
    parser.add_argument("--rounds", type=int, default=4, help="how often each loader has its turn (4)")
    parser.add_argument(
        "--workers", type=int, default=0, help="readers of prefetchd (its own choice); threads of tf.data, Grain (2)"
    )
    parser.add_argument("--only", help='these loaders beside np.take, such as "prefetchd, 1+prefetchd, 2"')
    options = parser.parse_args()

    print(setting("prefetchd", "numpy", "torch", "tensorflow-cpu", "tensorflow", "grain"), flush=True)
    loaders: dict[str, Loader] = {"np.take": numpy_take, "prefetchd": prefetchd_loader(None)}
    loaders |= {"prefetchd, 1": prefetchd_loader(1), "prefetchd, 2": prefetchd_loader(2)}
    if "torch" in globals():
        loaders |= {"DataLoader, 0": torch_loader(0), "DataLoader, 2": torch_loader(2)}
    if "tf" in globals():
        loaders["tf.data"] = tensorflow_loader
    if "grain" in globals():
        loaders["Grain"] = grain_loader
    if options.only:
        loaders = {name: loaders[name] for name in ("np.take", *options.only.split("+")) if name in loaders}
    with tempfile.TemporaryDirectory(prefix="prefetchd-bench-") as name:
        folder = Path(name)
        make_arrays(folder, options.rows)
        for path in folder.iterdir():
            with path.open("rb") as file:
                while file.read(1 << 22):
                    pass
        rates: dict[str, list[float]] = {loader: [] for loader in loaders}
        costs: dict[str, list[float]] = {loader: [] for loader in loaders}
        for _ in range(options.rounds):
            for loader, make in loaders.items():
                rate, cost = run(make, folder, options)
                rates[loader].append(rate)
                costs[loader].append(cost)
        fill_us = 1e6 * fill_s(folder, options)
    lines = [["loader", "batches/s", "vs np.take", "CPU us a batch"]]
    for loader in loaders:
        ratios = [a / b for a, b in zip(rates[loader], rates["np.take"], strict=True)]
        lines.append(
            [
                loader,
                f"{statistics.median(rates[loader]):.0f}",
                f"{statistics.median(ratios):.2f}",
                f"{1e6 * statistics.median(costs[loader]):.0f}",
            ]
        )
    print(
        f"{options.rows} rows of {WIDTH} int32 and int64 labels, batches of {options.batch_size}; {options.rounds} "
        f"rounds of {options.batches} batches; a reader's fill takes {fill_us:.0f} us a batch\n"
    )
    print(table(lines))


if __name__ == "__main__":
    main()
