"""The cache of decoded samples: what filling it costs the first epoch, and how fast its rows come after that.

    python scripts/bench/cache.py [MANIFEST]

Interleaved rounds; medians. Two readers, shuffled, uint8. The loop reads a byte of every page of each batch.

  no cache        an epoch that decodes, from the first batch on
  filling         the same with an empty cache, which it fills
  checking        an epoch of a new run from a full cache: files are examined, rows are checked
  steady          the same, from the first batch on
  cached          the epochs after that
  bare copy       two processes that only pread such rows, in random order, into a ring of shared memory with
                  semaphores: no daemon, no labels, no order that anyone could resume
  only pread      the same two, with nobody who waits for them or reads what they wrote
  DataLoader      PyTorch's with two workers: decoding with cv2, and from rows decoded ahead in one mapped .npy file
  FFCV            from a raw .beton file, if it is installed

And the seconds from the call of `batches` to the first batch, without a cache, filling one, and from a full one.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from measure import manifest_or_photographs, setting, table

import prefetchd

with contextlib.suppress(ImportError):
    import torch
    from torch.utils.data import DataLoader, Dataset
with contextlib.suppress(ImportError):
    import ffcv  # noqa: F401

RING = 8


def touch(x: Any) -> int:
    """Read a byte of every page, so that no loader profits from pages that nobody has mapped yet."""
    return int(np.asarray(x).reshape(-1).view(np.uint8)[::4096].sum(dtype=np.int64))


def rate(batches: Iterable[Any], n_batches: int | None = None) -> float:
    """Return images a second over the batches, from the asking for the first."""
    n, begin_s = 0, time.perf_counter()
    for x, *_ in itertools.islice(batches, n_batches):
        touch(x)
        n += len(x)
    return n / (time.perf_counter() - begin_s)


class Bench:
    """The data, and one method a line of the table."""

    def __init__(self, manifest: Path, folder: Path, options: argparse.Namespace) -> None:
        lines = [line.rsplit(" ", 1) for line in manifest.read_text().splitlines()]
        self.samples = [
            (os.path.join(manifest.parent.absolute(), path), int(float(label)))
            for path, label in itertools.islice(itertools.cycle(lines), options.images)
        ]
        for number, (path, label) in enumerate(self.samples):  # a path of its own: a file is kept once
            (folder / f"{number}.jpg").symlink_to(path)
            self.samples[number] = str(folder / f"{number}.jpg"), label
        self.options = options
        self.folder = folder
        self.manifest = folder / "list.txt"
        self.manifest.write_text("".join(f"{path} {label}\n" for path, label in self.samples))
        self.rows = folder / "rows.npy"
        shape = (len(self.samples), options.image_size, options.image_size, 3)
        rows = np.lib.format.open_memmap(self.rows, "w+", np.uint8, shape)
        for number, (path, _) in enumerate(self.samples):
            rows[number] = decode(path, options.image_size)
        rows.flush()
        self.n_caches = 0
        self.first_batch_s: dict[str, list[float]] = {}

    def loader(self, **more: Any) -> Any:
        return prefetchd.batches(
            self.manifest,
            batch_size=self.options.batch_size,
            image_size=self.options.image_size,
            shuffle=True,
            num_workers=2,
            **more,
        )

    def no_cache(self) -> float:
        return self._epoch("no cache")

    def filling(self) -> float:
        if self.n_caches:
            shutil.rmtree(self.cache)
        self.n_caches += 1
        self.cache = self.folder / f"cache-{self.n_caches}"
        return self._epoch("filling", cache=self.cache)

    def checking(self) -> float:
        return self._epoch("checking", cache=self.cache)

    def steady(self) -> float:
        with self.loader(cache=self.cache, epochs=None) as loader:
            batches = iter(loader)
            rate(batches, 1)
            return rate(batches, len(loader) - 1)

    def _epoch(self, what: str, **more: Any) -> float:
        begin_s = time.perf_counter()
        with self.loader(**more) as loader:
            batches = iter(loader)
            n = len(next(batches).x)
            self.first_batch_s.setdefault(what, []).append(time.perf_counter() - begin_s)
            for x, *_ in batches:
                touch(x)
                n += len(x)
            return n / (time.perf_counter() - begin_s)

    def cached(self) -> float:
        with self.loader(cache=self.cache, epochs=None) as loader:
            batches = iter(loader)
            rate(batches, 2 * len(loader))
            return rate(batches, self.options.batches)

    def bare_copy(self) -> float:
        batch, row = self.options.batch_size, self.options.image_size**2 * 3
        context = multiprocessing.get_context("fork")
        memory = shared_memory.SharedMemory(create=True, size=RING * batch * row)
        free = [context.Semaphore(1) for _ in range(RING)]
        full = [context.Semaphore(0) for _ in range(RING)]
        workers = [context.Process(target=self._copy, args=(memory, free, full, n)) for n in range(2)]
        for worker in workers:
            worker.start()

        def batches() -> Iterable[tuple[Any]]:
            for number in itertools.count():
                full[number % RING].acquire()
                yield (
                    np.frombuffer(memory.buf, np.uint8, batch * row, number % RING * batch * row).reshape(batch, row),
                )
                free[number % RING].release()

        try:
            endless = iter(batches())
            rate(endless, 4 * RING)
            return rate(endless, self.options.batches)
        finally:
            for worker in workers:
                worker.kill()
                worker.join()
            with contextlib.suppress(BufferError):
                memory.close()
            memory.unlink()

    def only_pread(self) -> float:
        batch, row = self.options.batch_size, self.options.image_size**2 * 3
        context = multiprocessing.get_context("fork")
        memory = shared_memory.SharedMemory(create=True, size=RING * batch * row)
        endless = [context.Semaphore(self.options.batches) for _ in range(RING)]
        took_s = context.SimpleQueue()

        def work(number: int) -> None:
            for turn in range(2):  # the first maps the ring
                begin_s = time.perf_counter()
                self._copy(memory, endless, endless, number, (8, self.options.batches // 2)[turn])
            took_s.put(time.perf_counter() - begin_s)

        workers = [context.Process(target=work, args=(number,)) for number in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        memory.close()
        memory.unlink()
        return sum(self.options.batches // 2 * batch / took_s.get() for _ in workers)

    def _copy(self, memory: Any, free: Any, full: Any, worker: int, n_batches: int | None = None) -> None:
        batch, row = self.options.batch_size, self.options.image_size**2 * 3
        fd, rng = os.open(self.rows, os.O_RDONLY), np.random.default_rng(worker)
        for number in itertools.islice(itertools.count(worker, 2), n_batches):
            slot = number % RING
            free[slot].acquire()
            for place, sample in enumerate(rng.integers(0, len(self.samples), batch).tolist()):
                at = (slot * batch + place) * row
                os.preadv(fd, (memory.buf[at : at + row],), 128 + sample * row)
            full[slot].release()

    def torch_decoding(self) -> float:
        return self._torch(Decoded(self.samples, self.options.image_size), len(self.samples) // self.options.batch_size)

    def torch_rows(self) -> float:
        return self._torch(Rows(self.rows, self.samples), self.options.batches // 8)

    def _torch(self, data: Any, n_batches: int) -> float:
        loader = DataLoader(data, self.options.batch_size, shuffle=True, num_workers=2, persistent_workers=True)

        def batches() -> Iterable[Any]:
            while True:
                yield from loader

        endless = iter(batches())
        rate(endless, 4)
        return rate(endless, n_batches)

    def ffcv_raw(self) -> float:
        from ffcv.fields import IntField, RGBImageField
        from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.writer import DatasetWriter

        path = self.folder / "raw.beton"
        if not path.exists():
            fields = {"x": RGBImageField(write_mode="raw"), "y": IntField()}
            DatasetWriter(str(path), fields, num_workers=2).from_indexed_dataset(Rows(self.rows, self.samples))
        loader = Loader(
            str(path),
            self.options.batch_size,
            num_workers=2,
            order=OrderOption.RANDOM,
            os_cache=True,
            pipelines={"x": [SimpleRGBImageDecoder()], "y": [IntDecoder()]},
        )
        batches = itertools.chain.from_iterable(itertools.repeat(loader))
        rate(batches, len(loader))
        return rate(batches, self.options.batches)


def decode(path: str, size: int) -> Any:
    return cv2.cvtColor(cv2.resize(cv2.imread(path), (size, size)), cv2.COLOR_BGR2RGB)


if "torch" in globals():

    class Decoded(Dataset):  # type: ignore[misc, type-arg]
        def __init__(self, samples: list[tuple[str, int]], size: int) -> None:
            self.samples, self.size = samples, size

        def __len__(self) -> int:
            return len(self.samples)

        def __getitem__(self, number: int) -> Any:
            cv2.setNumThreads(0)
            path, label = self.samples[number]
            return torch.from_numpy(decode(path, self.size)), label


class Rows:
    """Rows decoded ahead, in a mapped file."""

    def __init__(self, path: Path, samples: list[tuple[str, int]]) -> None:
        self.rows, self.samples = np.load(path, mmap_mode="r"), samples

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Any:
        return np.array(self.rows[number]), self.samples[number][1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", nargs="?", type=Path, help="`path label` a line; photographs are made without")
    parser.add_argument("--images", type=int, default=4000, help="in an epoch; the list is repeated for it (4000)")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=2000, help="timed in a cached round (2000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the caches go (a temporary folder)")
    options = parser.parse_args()
    print(setting("prefetchd", "numpy", "opencv-python-headless", "torch", "ffcv"), flush=True)
    with (
        manifest_or_photographs(options.manifest) as manifest,
        tempfile.TemporaryDirectory(prefix="prefetchd-bench-", dir=options.folder) as name,
    ):
        bench = Bench(manifest, Path(name), options)
        lines: dict[str, Callable[[], float]] = {
            "no cache": bench.no_cache,
            "filling": bench.filling,
            "checking": bench.checking,
            "steady": bench.steady,
            "cached": bench.cached,
            "bare copy": bench.bare_copy,
            "only pread": bench.only_pread,
        }
        if "torch" in globals():
            lines |= {"DataLoader, decoding": bench.torch_decoding, "DataLoader, mapped rows": bench.torch_rows}
        if "ffcv" in globals():
            lines["FFCV, raw"] = bench.ffcv_raw
        rates: dict[str, list[float]] = {line: [] for line in lines}
        for _ in range(options.rounds):
            for line, measure in lines.items():
                rates[line].append(measure())
        first_s = bench.first_batch_s
    base = {"filling": "no cache", "checking": "no cache", "steady": "no cache"}
    rows = [["", "images/s", "ratio", "to"]]
    for line, found in rates.items():
        to = base.get(line, "bare copy")
        ratio = statistics.median(a / b for a, b in zip(found, rates[to], strict=True))
        rows.append([line, f"{statistics.median(found):.0f}", f"{ratio:.2f}", to])
    print(
        f"{options.images} images, {options.image_size} px, batches of {options.batch_size}, {options.rounds} rounds\n"
    )
    print(table(rows))
    print("\nfirst batch after, s: " + ", ".join(f"{what} {statistics.median(s):.2f}" for what, s in first_s.items()))


if __name__ == "__main__":
    main()
