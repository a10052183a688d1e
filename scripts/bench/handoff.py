"""What it costs the loop to take a batch that is ready, and to take batches without pause.

    python scripts/bench/handoff.py [MANIFEST] [--batches 200]

Runs a private daemon on the given photographs, or on some made in code, and times `next()`:

  ready, after ...       the loop pauses until the next batch stands ready, sleeping (a trainer that waits for an
                         accelerator) or computing; the batch at hand is dropped before `next()` or, as
                         `for x, y in loader` does, replaced by it
  a bare recv            what the kernel alone takes to hand a waiting message over, after the same pause
  tight loop             no pause: what it takes to make a batch, as long as making them is the bottleneck
  arrays, tight loop     no pause, batches of 150 KB that cost next to nothing to make (64 rows of 600 int32), with the
                         release of the batch before; most find their batch ready, and some wait for a handful

  pages                one byte of every page of a batch that came after a sleep is read, so that a lazy mapping could
                       not look fast; beside it the same of a plain shared array that another process just wrote

The pause is `--pause` times what making a batch took in the tight loop. The first `--warm-up` batches of each are not
counted: a slot is mapped the first time that the loop sees it.
"""

from __future__ import annotations

import argparse
import mmap
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import manifest_or_photographs, percentile, setting, table

import prefetchd


def pause(seconds: float, *, compute: bool) -> None:
    """Let `seconds` pass, asleep or with one core at work on a small product, as a loop that trains."""
    if not compute:
        time.sleep(seconds)
        return
    matrix = np.ones((64, 64), np.float32)
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        matrix @ matrix


def bare_receives(n: int, pause_s: float, *, compute: bool) -> list[float]:
    """Return what `recv` of a waiting message of 40 bytes takes after a pause, in seconds: the floor of any handoff."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    taken_s = []
    with ours, theirs:
        for _ in range(n):
            theirs.send(bytes(40))
            pause(pause_s, compute=compute)
            start_s = time.perf_counter()
            ours.recv(4096)
            taken_s.append(time.perf_counter() - start_s)
    return taken_s


def time_next(batches: Any, n: int, pause_s: float, *, compute: bool, drop: bool) -> list[float]:
    """Return what each of `n` calls of `next` took, in seconds."""
    taken_s = []
    batch = None
    for _ in range(n):
        if drop:
            batch = None
        if pause_s:
            pause(pause_s, compute=compute)
        start_s = time.perf_counter()
        batch = next(batches)
        taken_s.append(time.perf_counter() - start_s)
    del batch
    return taken_s


def read_pages(array: np.ndarray) -> float:
    """Return what it takes to read one byte of every page of `array`, in seconds."""
    start_s = time.perf_counter()
    array.reshape(-1).view(np.uint8)[::4096].sum()
    return time.perf_counter() - start_s


def pages_of_batches(batches: Any, n: int, pause_s: float) -> list[float]:
    """Return what reading the pages of each of `n` batches took, which stood ready after a sleep."""
    taken_s = []
    for _ in range(n):
        time.sleep(pause_s)
        batch = next(batches)
        taken_s.append(read_pages(batch[0]))
        del batch
    return taken_s


def pages_just_written(n: int, n_bytes: int, pause_s: float) -> list[float]:
    """Return what reading the pages of an array took that another process had just written, `n` times."""
    array = np.frombuffer(mmap.mmap(-1, n_bytes), np.uint8)
    array.sum()
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        while value := theirs.recv(1):
            array[:] = value[0]
            theirs.send(value)
        os._exit(0)
    theirs.close()
    taken_s = []
    with ours:
        for number in range(n):
            ours.send(bytes([number % 255 + 1]))
            ours.recv(1)
            time.sleep(pause_s)
            taken_s.append(read_pages(array))
    os.waitpid(child, 0)
    return taken_s


def arrays_in_a_tight_loop(n: int) -> tuple[list[float], float]:
    """Return what each `next()` took over `n` batches of 150 KB from an array, and batches a second."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/x.npy", np.zeros((32_000, 600), np.int32))
        with prefetchd.batches(f"{folder}/x.npy", batch_size=64, shuffle=True, epochs=None) as loader:
            batches = iter(loader)
            time_next(batches, 1000, 0.0, compute=False, drop=False)
            start_s = time.perf_counter()
            taken_s = time_next(batches, n, 0.0, compute=False, drop=False)
            return taken_s, n / (time.perf_counter() - start_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", nargs="?", type=Path, help="photographs; made in code if not given")
    parser.add_argument("--batches", type=int, default=60, help="batches timed in each case (60)")
    parser.add_argument("--warm-up", type=int, default=20, help="batches before that (20)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pause", type=float, default=4.0, help="pause so many times what making a batch takes (4)")
    options = parser.parse_args()

    print(setting("prefetchd", "numpy", "opencv-python-headless"), flush=True)
    rows = [["next()", "batches", "p50 us", "p90 us", "p99 us", "max us"]]
    with (
        manifest_or_photographs(options.manifest) as manifest,
        prefetchd.batches(
            manifest, batch_size=options.batch_size, shuffle=True, num_workers=options.workers, epochs=None
        ) as loader,
    ):
        batches = iter(loader)
        next(batches)

        def add(name: str, taken_s: list[float]) -> None:
            taken_us = [1e6 * seconds for seconds in taken_s]
            figures = [percentile(taken_us, 50), percentile(taken_us, 90), percentile(taken_us, 99), max(taken_us)]
            rows.append([name, str(len(taken_us)), *(f"{figure:.0f}" for figure in figures)])

        tight_s = time_next(batches, options.warm_up + options.batches, 0.0, compute=False, drop=True)
        add("tight loop", tight_s[options.warm_up :])
        pause_s = options.pause * sum(tight_s[options.warm_up :]) / options.batches
        for compute, what in ((False, "sleeping"), (True, "computing")):
            for drop, how in ((True, "dropped"), (False, "replaced")):
                time_next(batches, options.warm_up, pause_s, compute=compute, drop=drop)
                taken_s = time_next(batches, options.batches, pause_s, compute=compute, drop=drop)
                add(f"ready, after {what}, {how}", taken_s)
            add(f"a bare recv, after {what}", bare_receives(options.batches, pause_s, compute=compute))
        add("pages of the batch", pages_of_batches(batches, options.batches, pause_s))
        n_bytes = loader.layout.slot_bytes
    add("pages of an array just written", pages_just_written(options.batches, n_bytes, pause_s))
    taken_s, per_second = arrays_in_a_tight_loop(options.batches * 250)
    add("arrays, tight loop", taken_s)
    print(f"batches of {options.batch_size}, {options.workers} workers, paused {pause_s * 1e3:.0f} ms")
    print(f"arrays: {per_second:.0f} batches a second\n")
    print(table(rows))


if __name__ == "__main__":
    main()
