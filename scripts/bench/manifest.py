"""Manifests of a thousand to ten million lines: time to the first batch and memory, beside PyTorch's DataLoader.

    pip install -e '.[bench]' && python scripts/bench/manifest.py MANIFEST --sizes 1000,10000000

Each size is a list that names the same few photographs over and over, written to a temporary folder (ten million lines
of 60 bytes are 600 MB of disk) and read once, so that it is in the page cache. Every measurement is an interpreter of
its own; the loaders take turns (A B A B ...), `--rounds` times, and the figures are medians over the rounds. Both
deliver shuffled batches of 64 RGB images of 224x224, uint8, with two worker processes.

  prefetchd            `prefetchd.batches(manifest)`
  PyTorch DataLoader   the manifest read into a list of (path, label) tuples, cv2 in `__getitem__`

  first batch   from the start of the interpreter to the first batch, imports and all
  to loader     of it, until prefetchd or torch, cv2 and numpy are imported
  footprint     the maximum until 20 batches were taken. prefetchd: Pss_Anon + SwapPss of the daemon's processes, and
                its shared memory. DataLoader: Pss of the whole tree, as the list is in the training process and in
                what the workers share with it; so it counts the libraries too
  growth        of the footprint, against the smallest size
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

from measure import MIB, Sampler, descendants, loader_bytes, manifest_or_photographs, setting, table

BATCH_SIZE = 64
SIZE_PX = 224
WORKERS = 2
BATCHES = 20
LINES_AT_ONCE = 10_000


# --- one measurement, in an interpreter of its own


def run_prefetchd(manifest: str, start_s: float) -> dict[str, float]:
    import prefetchd

    imported_s = time.time() - start_s
    with (
        Sampler(loader_bytes) as sampler,
        prefetchd.batches(
            manifest, batch_size=BATCH_SIZE, image_size=SIZE_PX, shuffle=True, num_workers=WORKERS, epochs=None
        ) as loader,
    ):
        loop = iter(loader)
        next(loop)
        first_s = time.time() - start_s
        for _ in islice(loop, BATCHES):
            pass
    return {"imported_s": imported_s, "first_s": first_s, "bytes": sampler.max_bytes}


def run_torch(manifest: str, start_s: float) -> dict[str, float]:
    import cv2
    import torch
    from torch.utils.data import DataLoader, Dataset

    imported_s = time.time() - start_s

    class Photographs(Dataset):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples: list[tuple[str, int]] = []
            with open(manifest) as file:
                for line in file:
                    path, label = line.rsplit(None, 1)
                    self.samples.append((path, int(label)))

        def __len__(self) -> int:
            return len(self.samples)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            path, label = self.samples[index]
            image = cv2.resize(cv2.imread(path), (SIZE_PX, SIZE_PX))
            return torch.from_numpy(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)), label

    with Sampler(tree_bytes) as sampler:
        loader = DataLoader(
            Photographs(),
            batch_size=BATCH_SIZE,
            shuffle=True,
            num_workers=WORKERS,
            worker_init_fn=lambda _: cv2.setNumThreads(0),
        )
        loop = iter(loader)
        next(loop)
        first_s = time.time() - start_s
        for _ in islice(loop, BATCHES):
            pass
    return {"imported_s": imported_s, "first_s": first_s, "bytes": sampler.max_bytes}


def tree_bytes() -> int:
    """Return the sum of Pss of this process and all below it."""
    found = 0
    for pid in [os.getpid(), *(process.pid for process in descendants())]:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        found += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss:", "SwapPss:")))
    return found


LOADERS = {"prefetchd": run_prefetchd, "PyTorch DataLoader": run_torch}


# --- all of them


def measure(loader: str, manifest: Path) -> dict[str, float]:
    """Return one measurement of `loader`, taken in a fresh interpreter."""
    command = [sys.executable, __file__, str(manifest), "--one", loader, "--start", repr(time.time())]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{loader} failed with {manifest}:\n{result.stderr}")
    found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return found


def write_manifest(source: Path, to: Path, n_lines: int) -> None:
    """Write `n_lines` lines `path label` that name the photographs of the text manifest `source`; warm the cache."""
    lines = [line for line in source.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    paths = [(source.parent / line.rsplit(None, 1)[0]).resolve() for line in lines]
    for path in paths:
        path.read_bytes()
    with to.open("w") as file:
        for start in range(0, n_lines, LINES_AT_ONCE):
            numbers = range(start, min(n_lines, start + LINES_AT_ONCE))
            file.write("".join(f"{paths[number % len(paths)]} {number % 1000}\n" for number in numbers))
    with to.open("rb") as file:
        while file.read(1 << 20):
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, nargs="?", help="text manifest, `path label` a line (made in code)")
    parser.add_argument("--sizes", default="1000,100000,10000000", help="lines, by commas (1000,100000,10000000)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each loader has its turn (5)")
    parser.add_argument("--only", choices=LOADERS, help="leave the other loader out")
    parser.add_argument("--one", choices=LOADERS, help=argparse.SUPPRESS)
    parser.add_argument("--start", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(LOADERS[options.one](str(options.manifest), options.start)))
        return

    print(setting("prefetchd", "numpy", "opencv-python-headless", "torch"), flush=True)
    loaders = [options.only] if options.only else list(LOADERS)
    rows = [["loader", "lines", "first batch s", "slowest s", "to loader s", "footprint MiB", "growth MiB"]]
    smallest: dict[str, float] = {}
    with (
        manifest_or_photographs(options.manifest) as source,
        tempfile.TemporaryDirectory(prefix="prefetchd-bench-") as folder,
    ):
        for size in sorted(map(int, options.sizes.split(","))):
            manifest = Path(folder) / "manifest.txt"
            write_manifest(source, manifest, size)
            found: dict[str, list[dict[str, float]]] = defaultdict(list)
            for _ in range(options.rounds):
                for loader in loaders:
                    found[loader].append(measure(loader, manifest))
            for loader in loaders:
                first_s = [one["first_s"] for one in found[loader]]
                footprint = statistics.median(one["bytes"] for one in found[loader])
                smallest.setdefault(loader, footprint)
                rows.append(
                    [
                        loader,
                        f"{size:,}",
                        f"{statistics.median(first_s):.2f}",
                        f"{max(first_s):.2f}",
                        f"{statistics.median(one['imported_s'] for one in found[loader]):.2f}",
                        f"{footprint / MIB:.1f}",
                        f"{(footprint - smallest[loader]) / MIB:+.1f}",
                    ]
                )
    print(table(rows))


if __name__ == "__main__":
    main()
