"""What it costs the loop to take a batch that is ready, and to take batches without pause.

    python scripts/bench/handoff.py [MANIFEST] [--batches 200]

Runs a private daemon on the given photographs, or on some made in code, and times `next()`:

  ready, after a sleep   the loop sleeps until the next batch stands ready, as a loop that trains does; the batch is
                         dropped before `next()` (dropped) or, as `for x, y in loader` does, while it runs (replaced)
  tight loop             no sleep: what it takes to make a batch, as long as making them is the bottleneck

The sleep is `--sleep` times what making a batch took in the tight loop. The first `--warm-up` batches of each are not
counted: a slot is mapped the first time that the loop sees it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from measure import manifest_or_photographs, percentile, setting, table

import prefetchd


def time_next(batches: Any, n: int, sleep_s: float, *, drop: bool) -> list[float]:
    """Return what each of `n` calls of `next` took, in seconds."""
    taken_s = []
    batch = None
    for _ in range(n):
        if drop:
            batch = None
        if sleep_s:
            time.sleep(sleep_s)
        start_s = time.perf_counter()
        batch = next(batches)
        taken_s.append(time.perf_counter() - start_s)
    del batch
    return taken_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", nargs="?", type=Path, help="photographs; made in code if not given")
    parser.add_argument("--batches", type=int, default=200, help="batches timed in each case (200)")
    parser.add_argument("--warm-up", type=int, default=20, help="batches before that (20)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sleep", type=float, default=2.0, help="sleep so many times what making a batch takes (2)")
    options = parser.parse_args()

    print(setting("prefetchd", "numpy", "opencv-python-headless"), flush=True)
    rows = [["next()", "batches", "p50 ms", "p90 ms", "p99 ms", "max ms"]]
    with (
        manifest_or_photographs(options.manifest) as manifest,
        prefetchd.batches(
            manifest, batch_size=options.batch_size, shuffle=True, num_workers=options.workers, epochs=None
        ) as loader,
    ):
        batches = iter(loader)
        next(batches)

        def case(name: str, sleep_s: float, *, drop: bool) -> float:
            time_next(batches, options.warm_up, sleep_s, drop=drop)
            taken_ms = [1e3 * s for s in time_next(batches, options.batches, sleep_s, drop=drop)]
            figures = [percentile(taken_ms, 50), percentile(taken_ms, 90), percentile(taken_ms, 99), max(taken_ms)]
            rows.append([name, str(len(taken_ms)), *(f"{figure:.3f}" for figure in figures)])
            return sum(taken_ms) / len(taken_ms) / 1e3

        sleep_s = options.sleep * case("tight loop", 0.0, drop=True)
        case("ready, after a sleep, dropped", sleep_s, drop=True)
        case("ready, after a sleep, replaced", sleep_s, drop=False)
    print(f"batches of {options.batch_size}, {options.workers} workers, slept {sleep_s * 1e3:.0f} ms\n")
    print(table(rows))


if __name__ == "__main__":
    main()
