"""One measurement of one loader, in an interpreter of its own: started by `peers.py`, answers with a line of JSON.

    python scripts/bench/measure_loader.py NAME MANIFEST --started-s T [--epochs 2] [--workers 2] ...

What is measured is told in `peers.py`. The last line on standard output is the answer; what else libraries print goes
to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from loaders import SIZE_PX, Data, Epochs, load
from measure import Sampler, loader_bytes, private_bytes


@dataclass
class Measured:
    """What one interpreter found; `problem` alone where the loader cannot be used here."""

    images_per_s: float = 0.0
    first_s: float = 0.0
    first_from_start_s: float = 0.0
    ready_s: float = 0.0
    added_bytes: float = 0.0
    whole_bytes: float = 0.0
    mean_pixel: float = 0.0
    problem: str = ""


def touch(x: Any) -> None:
    """Read a byte of every page, so that no loader profits from pages that nobody has mapped yet."""
    np.asarray(x).reshape(-1).view(np.uint8)[::4096].sum(dtype=np.int64)


def tree_bytes() -> int:
    """This process, all below it, and the shared memory: in-process loaders live here."""
    return private_bytes(os.getpid()) + loader_bytes()


def measure(next_epoch: Epochs, data: Data, options: argparse.Namespace, begun_s: float) -> Measured:
    """Measure everything once; the loader was made at `begun_s` by the clock of `time.time`."""
    found = Measured()
    pixels, n_images = [], 0
    for x, _ in next_epoch():
        if not n_images:
            now_s = time.time()
            found.first_s, found.first_from_start_s = now_s - begun_s, now_s - options.started_s
        shown = np.asarray(x)
        if shown.shape[1:] != (SIZE_PX, SIZE_PX, 3) or shown.dtype != np.uint8:
            raise ValueError(f"it gave {shown.shape} {shown.dtype}")
        pixels.append(float(shown[:, ::7, ::7].mean()))
        n_images += len(x)
    if not len(data.paths) <= n_images < len(data.paths) + data.batch_size:
        raise ValueError(f"its epoch has {n_images} images of {len(data.paths)}")
    found.mean_pixel = statistics.mean(pixels)

    n_images, start_s = 0, time.perf_counter()
    for _ in range(options.epochs):
        for x, _ in next_epoch():
            touch(x)
            n_images += len(x)
    found.images_per_s = n_images / (time.perf_counter() - start_s)

    # Twice what all workers together need for a batch each: then the next one is ready.
    pause_s = max(0.1, 2 * data.workers * data.batch_size / found.images_per_s)
    ready: list[float] = []
    batches = iter(())  # type: ignore[var-annotated]
    while len(ready) < options.ready:
        time.sleep(pause_s)
        before_s = time.perf_counter()
        batch = next(batches, None)
        took_s = time.perf_counter() - before_s
        if batch is None:
            batches = iter(next_epoch())
            next(batches)  # the first of an epoch is not ready after any pause
            continue
        touch(batch[0])
        ready.append(took_s)
    found.ready_s = statistics.median(ready)
    for _ in batches:  # to its end: some loaders do not like to be left in mid-epoch
        pass

    with Sampler(tree_bytes) as sampler:
        for x, _ in next_epoch():
            touch(x)
    found.whole_bytes = sampler.median_bytes
    return found


def loader_parser(epochs: int) -> argparse.ArgumentParser:
    """Return a parser of what every measurement of one loader is given."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--batch-size", type=int, default=64)
    return parser


def main() -> None:
    parser = loader_parser(epochs=2)
    parser.add_argument("--started-s", type=float, default=time.time())
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ready", type=int, default=10)
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print

    samples = [line.rsplit("\t", 1) for line in options.manifest.read_text().splitlines()]
    data = Data(
        options.manifest,
        [path for path, _ in samples],
        [int(label) for _, label in samples],
        options.batch_size,
        options.workers,
        options.folder,
    )
    if len(samples) <= options.batch_size:  # the first batch of an epoch is not ready after any pause
        raise SystemExit(
            f"cannot time ready batches: batches of {options.batch_size} make one batch of {len(samples)} images; "
            "give a smaller --batch-size or more images"
        )
    try:
        loader = load(options.name)
    except ImportError as error:
        answers.write(json.dumps(Measured(problem=f"{type(error).__name__}: {error}").__dict__) + "\n")
        return
    imported_bytes = private_bytes(os.getpid())
    with contextlib.ExitStack() as stack:
        begun_s = time.time()
        found = measure(stack.enter_context(loader.epochs(data)), data, options, begun_s)
        found.added_bytes = found.whole_bytes - imported_bytes
        answers.write(json.dumps(found.__dict__) + "\n")
        answers.flush()
    sys.stderr.flush()


if __name__ == "__main__":
    main()
