"""prefetchd against a hand-written generator and PyTorch's DataLoader, on the same photographs.

    pip install -e '.[bench]' && python scripts/bench/throughput.py MANIFEST --repeat 4

Every loader delivers shuffled batches of 64 RGB images of 224x224, uint8; the loop reads a byte of every page of each
batch and drops it. The loaders take turns (A B C D A B C D ...), `--rounds` times; the figures are medians over the
rounds. The machine should do nothing else: the second line of the output says how loaded it was at the start.

  prefetchd            a private daemon, `prefetchd.batches(manifest, num_workers=2)`; JPEGs shrink on load (default)
  prefetchd, exact     the same with `shrink_on_load=False`: the very pixels that the other two make
  PyTorch DataLoader   cv2 in `__getitem__`, one cv2 thread a worker, uint8 tensors, workers kept between epochs
  generator            `for path in paths: cv2.imread, cv2.resize`, stacked; in the loop's own process

  images/s      from the end of the first epoch to the end of the last: starting does not count, changing epochs does
  vs DataLoader images/s over the DataLoader's, the median of the ratios within the rounds
  first batch   from making the loader, in an interpreter that has everything imported, to the first batch
  ready batch   what next() takes (median) when the loop has slept long enough for the batch to be ready; for the
                generator, which prepares nothing, what every batch takes
  footprint     private memory (Pss_Anon + SwapPss) of the loader's processes plus shared memory: median and maximum of
                samples taken every 20 ms, during an epoch that is not timed. What lives in the loop's own process
                (all of the generator) is not in it
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from loaders import SIZE_PX, Data, load, read_image
from measure import MIB, Sampler, setting, table

import prefetchd

HAS_TORCH = importlib.util.find_spec("torch") is not None

Sample = tuple[str, int]
Epoch = Iterator[tuple[Any, Any]]


def touch(x: Any) -> int:
    """Read a byte of every page, so that no loader profits from pages that nobody has mapped yet."""
    return int(np.asarray(x).reshape(-1).view(np.uint8)[::4096].sum(dtype=np.int64))


# --- the loaders: a context manager that gives a function, which gives the next epoch's batches


@contextlib.contextmanager
def prefetchd_loader(manifest: Path, options: argparse.Namespace, **more: Any) -> Iterator[Callable[[], Epoch]]:
    with prefetchd.batches(
        manifest,
        batch_size=options.batch_size,
        image_size=SIZE_PX,
        shuffle=True,
        num_workers=options.workers,
        memory_budget=options.memory_budget,
        **more,
    ) as loader:
        yield lambda: iter(loader)


@contextlib.contextmanager
def generator_loader(samples: list[Sample], options: argparse.Namespace) -> Iterator[Callable[[], Epoch]]:
    as_float = options.generator == "float32"

    def epoch() -> Epoch:
        order = random.sample(samples, len(samples))
        for start in range(0, len(order), options.batch_size):
            part = order[start : start + options.batch_size]
            x = np.stack([read_image(path) for path, _ in part])
            y = np.array([label for _, label in part], np.int64)
            yield (x.astype(np.float32) / 255 if as_float else x), y

    yield epoch


@contextlib.contextmanager
def torch_loader(manifest: Path, samples: list[Sample], options: argparse.Namespace) -> Iterator[Callable[[], Epoch]]:
    paths, labels = [path for path, _ in samples], [label for _, label in samples]
    data = Data(manifest, paths, labels, options.batch_size, options.workers, manifest.parent)
    with load("torch_cv2").epochs(data) as epoch:
        yield epoch


# --- measuring one loader


@dataclass
class Figures:
    images_per_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    ready_s: list[float] = field(default_factory=list)
    median_bytes: list[float] = field(default_factory=list)
    max_bytes: list[float] = field(default_factory=list)


Make = Callable[[], contextlib.AbstractContextManager[Callable[[], Epoch]]]


def run_round(make: Make, figures: Figures, options: argparse.Namespace, *, prepares: bool) -> None:
    """Measure everything once; `prepares`: whether the loader works ahead, so that a batch can be ready."""
    begin_s = time.perf_counter()
    with make() as next_epoch:
        mark_s = n_images = 0.0
        is_first = True
        for number in range(1 + options.epochs):
            for x, _ in next_epoch():
                if is_first:
                    figures.first_s.append(time.perf_counter() - begin_s)
                    is_first = False
                touch(x)
                if number:
                    n_images += len(x)
            if not number:
                mark_s = time.perf_counter()
        rate = n_images / (time.perf_counter() - mark_s)
        figures.images_per_s.append(rate)

        # Twice what all workers together need for a batch each: then the next one is ready.
        pause_s = max(0.1, 2 * options.workers * options.batch_size / rate) if prepares else 0.0
        batches = next_epoch()
        next(batches)
        for _ in range(options.ready if prepares else 3):
            time.sleep(pause_s)
            start_s = time.perf_counter()
            try:
                x, _ = next(batches)
            except StopIteration:
                batches = next_epoch()
                next(batches)
                continue
            figures.ready_s.append(time.perf_counter() - start_s)
            touch(x)
        del x, batches

        if prepares:
            with Sampler() as sampler:
                for x, _ in next_epoch():
                    touch(x)
            figures.median_bytes.append(sampler.median_bytes)
            figures.max_bytes.append(sampler.max_bytes)


# --- the photographs


def write_manifest(source: Path, folder: Path, repeat: int) -> tuple[Path, list[Sample]]:
    """Write the samples of the text manifest `source` `repeat` times over with absolute paths; return them too."""
    numbers: dict[str, int] = {}
    samples: list[Sample] = []
    for line in source.read_text().splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        path, _, label = line.strip().rpartition("\t" if "\t" in line else " ")
        samples.append((os.path.abspath(source.parent / path.strip()), numbers.setdefault(label, len(numbers))))
    samples *= repeat
    manifest = folder / "manifest.tsv"
    manifest.write_text("".join(f"{path}\t{label}\n" for path, label in samples))
    return manifest, samples


def report(rows: dict[str, Figures]) -> str:
    def number(values: list[float], scale: float, form: str) -> str:
        return format(statistics.median(values) * scale, form) if values else "-"

    head = ["loader", "images/s", "vs DataLoader", "first batch s", "ready batch ms", "footprint MiB", "max MiB"]
    lines = [head]
    peer = rows.get("PyTorch DataLoader")
    for name, figures in rows.items():
        ratios = (
            [a / b for a, b in zip(figures.images_per_s, peer.images_per_s, strict=True)] if peer is not None else []
        )
        lines.append(
            [
                name,
                number(figures.images_per_s, 1, ".0f"),
                number(ratios, 1, ".2f"),
                number(figures.first_s, 1, ".2f"),
                number(figures.ready_s, 1e3, ".3f"),
                number(figures.median_bytes, 1 / MIB, ".0f"),
                format(max(figures.max_bytes) / MIB, ".0f") if figures.max_bytes else "-",
            ]
        )
    return table(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, help="text manifest, `path label` a line")
    parser.add_argument("--repeat", type=int, default=1, help="take the manifest so many times over (1)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each loader has its turn (5)")
    parser.add_argument("--epochs", type=int, default=2, help="timed epochs in a round, after one that is not (2)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="reader processes, of prefetchd and DataLoader (2)")
    parser.add_argument("--ready", type=int, default=12, help="ready batches timed in a round (12); 0 takes less time")
    parser.add_argument("--memory-budget", default="auto", help="prefetchd's: 12 megapixels decoded whole need more")
    parser.add_argument("--generator", choices=("uint8", "float32"), default="uint8", help="float32: divides by 255")
    options = parser.parse_args()

    print(setting("prefetchd", "numpy", "opencv-python-headless", "torch"), flush=True)
    with tempfile.TemporaryDirectory(prefix="prefetchd-bench-") as folder:
        manifest, samples = write_manifest(options.manifest, Path(folder), options.repeat)
        makers: dict[str, Make] = {
            "prefetchd": lambda: prefetchd_loader(manifest, options),
            "prefetchd, exact": lambda: prefetchd_loader(manifest, options, shrink_on_load=False),
            "PyTorch DataLoader": lambda: torch_loader(manifest, samples, options),
            f"generator, {options.generator}": lambda: generator_loader(samples, options),
        }
        if not HAS_TORCH:
            del makers["PyTorch DataLoader"]
            print("PyTorch is not installed (pip install -e '.[bench]'): without its DataLoader")
        else:
            load("torch_cv2")  # its import is no part of the first batch
        print(
            f"{len(samples)} samples, batches of {options.batch_size}, {options.workers} workers, "
            f"{options.rounds} rounds of 1 + {options.epochs} epochs\n",
            flush=True,
        )
        for path, _ in samples[: len(samples) // options.repeat]:
            Path(path).read_bytes()  # every loader finds the files in the page cache
        rows = {name: Figures() for name in makers}
        for _ in range(options.rounds):
            for name, make in makers.items():
                run_round(make, rows[name], options, prepares=not name.startswith("generator"))
        print(report(rows))


if __name__ == "__main__":
    main()
