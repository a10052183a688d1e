"""What `next()` takes for a batch that is ready while readers work and others loop.

    python scripts/bench/ready.py [MANIFEST] --consumers 1,4 --paces 0,1.2,4

Each consumer is a process of its own with a loop `for x, y in loader`, so each `next()` releases the batch before. All
use one daemon. A pace says how long a loop sleeps between two batches, in times of what making a batch takes: above 1
it is slower than the readers, which then pause in between. With pace 0 it is as fast as they are: it sleeps for 1 ms at
a time until the batch is ready, while the readers use every core.

  ready        how many of the calls of `next()` found their batch ready; the times are those of these calls
  p50 ... max  microseconds
  wait p99     of the calls that did not, milliseconds: those wait for the readers
  daemon       its share of a core meanwhile
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from measure import manifest_or_photographs, percentile, setting, table
from sharing import cpu_s, daemon


def be_consumer(name: str, pause_s: float, n_warm_up: int, n_batches: int) -> None:
    """Loop, and print what each call of `next` took and whether it found its batch, as JSON."""
    import prefetchd

    with prefetchd.batches(daemon=name, epochs=None, timeout=60) as loader:
        batches = iter(loader)
        x, y = next(batches)
        print("ready", flush=True)
        sys.stdin.readline()
        found = []
        waited_s = loader.stats().waited_s
        for number in range(n_warm_up + n_batches):
            if pause_s:
                time.sleep(pause_s)
            else:
                while not loader.is_ready:
                    time.sleep(0.001)
            start_s = time.perf_counter()
            x, y = next(batches)
            took_s = time.perf_counter() - start_s
            waited_before_s, waited_s = waited_s, loader.stats().waited_s
            if number >= n_warm_up:
                found.append((took_s, waited_s == waited_before_s))
        del x, y
        print(json.dumps(found), flush=True)
        batches.close()  # others would wait for this loop
        sys.stdin.readline()


def seconds_a_batch(name: str, n_batches: int) -> float:
    """Return what making a batch takes, from a loop that does nothing else."""
    import prefetchd

    with prefetchd.batches(daemon=name, epochs=None, timeout=60) as loader:
        batches = iter(loader)
        for _ in range(n_batches):
            next(batches)
        start_s = time.perf_counter()
        for _ in range(n_batches):
            next(batches)
        return (time.perf_counter() - start_s) / n_batches


def run_consumers(name: str, n: int, pause_s: float, options: argparse.Namespace) -> list[tuple[float, bool]]:
    """Return what the calls of `n` consumers took, and whether they found their batch."""
    numbers = [str(pause_s), str(options.warm_up), str(options.batches)]
    command = [sys.executable, __file__, "--be-consumer", name, *numbers]
    consumers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(n)]
    for consumer in consumers:
        assert consumer.stdout is not None
        if consumer.stdout.readline() != "ready\n":
            sys.exit("a consumer has failed")
    for consumer in consumers:
        assert consumer.stdin is not None
        consumer.stdin.write("\n")
        consumer.stdin.flush()
    found: list[Any] = []
    for consumer in consumers:
        assert consumer.stdout is not None
        found += json.loads(consumer.stdout.readline())
    for consumer in consumers:
        consumer.communicate("\n")
    return [(seconds, bool(was_ready)) for seconds, was_ready in found]


def main() -> None:
    if sys.argv[1:2] == ["--be-consumer"]:
        name, pause_s, n_warm_up, n_batches = sys.argv[2:]
        be_consumer(name, float(pause_s), int(n_warm_up), int(n_batches))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", nargs="?", type=Path, help="photographs; made in code if not given")
    parser.add_argument("--consumers", default="1,4", help="with commas (1,4)")
    parser.add_argument("--paces", default="0,1.2,4", help="with commas (0,1.2,4)")
    parser.add_argument("--batches", type=int, default=200, help="timed for each consumer (200)")
    parser.add_argument("--warm-up", type=int, default=20, help="batches before that (20)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    print(setting("prefetchd", "numpy", "opencv-python-headless"), flush=True)
    rows = [["consumers", "pace", "ready", "p50 us", "p90 us", "p99 us", "max us", "wait p99 ms", "daemon"]]
    name = f"bench-{os.getpid()}"
    words = ["--batch-size", str(options.batch_size), "--shuffle", "--num-workers", str(options.workers)]
    with manifest_or_photographs(options.manifest) as manifest, daemon(str(manifest), name, *words) as process:
        make_s = seconds_a_batch(name, options.warm_up)
        print(f"a batch of {options.batch_size} takes {make_s * 1e3:.0f} ms to make\n", flush=True)
        for n in map(int, options.consumers.split(",")):
            for pace in map(float, options.paces.split(",")):
                used_s, start_s = cpu_s([process]), time.monotonic()
                found = run_consumers(name, n, pace * make_s, options)
                share = (cpu_s([process]) - used_s) / (time.monotonic() - start_s)
                ready = [1e6 * seconds for seconds, was_ready in found if was_ready] or [0.0]
                waits = [1e3 * seconds for seconds, was_ready in found if not was_ready] or [0.0]
                us = [*(percentile(ready, percent) for percent in (50, 90, 99)), max(ready)]
                n_ready = sum(was_ready for _, was_ready in found)
                row = [str(n), f"{pace:g}", f"{n_ready / len(found):.1%}", *(f"{each:.0f}" for each in us)]
                rows.append([*row, f"{percentile(waits, 99):.1f}", f"{share:.2%}"])
                print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
