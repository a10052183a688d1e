"""Storage that answers late: throughput with every open taking some milliseconds, beside the same with none.

    python scripts/bench/latency.py [MANIFEST] [--delay-ms 20] [--repeat 8] [--rounds 3]

The delay is put around the manifest's `read_file` in the readers. They import this module as the home of a user's
function (`transform`), and the import wraps it. Both kinds run the same function, so its cost is in both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import prefetchd

sys.path.insert(0, str(Path(__file__).resolve().parent))
from measure import manifest_or_photographs, setting, table

DELAY = "PREFETCHD_BENCH_DELAY_S"
LEARNING_BATCHES = 8


def late(image: object, rng: object) -> object:
    """Return the image as it is; what matters is that readers import this module."""
    return image


def _delay_reads(delay_s: float) -> None:
    from prefetchd.data import named_files

    read = named_files.read_file

    def read_late(*args: object, **options: object) -> memoryview:
        time.sleep(delay_s)
        return read(*args, **options)  # type: ignore[arg-type]

    named_files.read_file = read_late  # type: ignore[assignment]


if os.environ.get(DELAY):
    _delay_reads(float(os.environ[DELAY]))


def images_per_s(manifest: Path, delay_s: float, repeat: int) -> float:
    """Return the throughput after the first batches, in which the readers learn how long reads take.

    Raises:
        SystemExit: if there are no batches after those.
    """
    os.environ[DELAY] = str(delay_s) if delay_s else ""
    options = {"batch_size": 64, "image_size": 224, "shuffle": True, "num_workers": 2, "transform": "latency:late"}
    n_images, started_s = 0, 0.0
    with prefetchd.batches(manifest, epochs=repeat, timeout=60, **options) as loader:
        for number, (x, _) in enumerate(loader):
            if started_s:
                n_images += len(x)
            elif number == LEARNING_BATCHES:
                started_s = time.perf_counter()
            del x
        if not n_images:
            needed = (LEARNING_BATCHES + 2) * 64
            sys.exit(f"cannot measure {repeat} x {loader.n_samples} images: {needed} are needed; raise --repeat")
        return n_images / (time.perf_counter() - started_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, nargs="?")
    parser.add_argument("--delay-ms", type=float, default=20.0)
    parser.add_argument("--repeat", type=int, default=8, help="epochs a measurement")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print(setting("prefetchd", "numpy", "opencv-python-headless"), flush=True)
    elsewhere = os.environ.get("PYTHONPATH")  # such as a checkout that is measured without being installed
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).resolve().parent), elsewhere)))
    with manifest_or_photographs(given.manifest) as manifest:
        rates: dict[float, list[float]] = {0.0: [], given.delay_ms: []}
        for _ in range(given.rounds):
            for delay_ms, seen in rates.items():
                seen.append(images_per_s(manifest.resolve(), delay_ms / 1e3, given.repeat))
    ratios = [b / a for a, b in zip(*rates.values(), strict=True)]
    rows = [["every open takes", "images/s", "ratio"]]
    for delay_ms, seen in rates.items():
        ratio = statistics.median(ratios) if delay_ms else 1.0
        rows.append([f"{delay_ms:.0f} ms more", f"{statistics.median(seen):.0f}", f"{ratio:.2f}"])
    print(table(rows))


if __name__ == "__main__":
    main()
