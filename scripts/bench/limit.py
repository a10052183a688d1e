"""What prefetchd spends beyond decoding: its whole process tree beside processes that decode and hand nothing over.

    python scripts/bench/limit.py MANIFEST --repeat 4 --rounds 5

  floor       `--workers` independent processes, each with its own share of the list: read the file into a kept buffer,
              decode at the reduced scale, resize into a row of a batch. No order, no labels, no daemon, no consumer
  full size   with `--full-size`: the floor's processes with every image decoded whole, as `cv2.imread` does; what a
              loader that reads so can reach at most
  prefetchd   a private daemon with as many readers, shuffled batches; the loop takes each batch and drops it

They take turns (A B A B ...). Processor time is what `/proc` counts for every process of the tree, the loop's own
included, between the end of the first epoch and the end of the last; wall time is noisy where cores are shared, so
compare CPU-seconds an image.

  images/s      of wall time; `ratio` is to the floor of the same round, medians over the rounds
  CPU ms/image  of the whole tree; `ratio` as above
  daemon, loop  of one core: the daemon's own process and the fork server, and the loop's
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
from pathlib import Path

import psutil
from measure import descendants, manifest_or_photographs, setting, table

BATCH_SIZE = 64
SIZE_PX = 224
EPOCHS = 3


def samples_of(manifest: Path) -> list[str]:
    """Return the paths of a text manifest."""
    lines = [line for line in manifest.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return [str((manifest.parent / line.rsplit(None, 1)[0]).resolve()) for line in lines]


def cpu_s(process: psutil.Process) -> float:
    """Return the processor time that a process has used, in seconds."""
    times = process.cpu_times()
    return float(times.user + times.system)


# --- the floor: one of its processes


def decode_all(paths: list[str], epochs: int, *, shrinks: bool) -> dict[str, float]:
    """Decode `paths` once to warm up and `epochs` times more; return the wall and processor seconds of the latter."""
    import cv2
    import numpy as np

    from prefetchd.data.files import FileBuffer, read_file
    from prefetchd.data.images import decode

    cv2.setNumThreads(0)
    buffer, batch = FileBuffer(), np.empty((BATCH_SIZE, SIZE_PX, SIZE_PX, 3), np.uint8)

    def epoch() -> None:
        for number, path in enumerate(paths):
            data = read_file(path, buffer)
            header = decode.identify(data)
            reduction = decode.choose_reduction(header, SIZE_PX, SIZE_PX, "stretch") if shrinks else 1
            image = decode.decode_image(data, header, color="rgb", reduction=reduction)
            cv2.resize(image, (SIZE_PX, SIZE_PX), dst=batch[number % BATCH_SIZE], interpolation=cv2.INTER_LINEAR)

    epoch()
    started_s, used_s = time.perf_counter(), time.process_time()
    for _ in range(epochs):
        epoch()
    return {"wall_s": time.perf_counter() - started_s, "cpu_s": time.process_time() - used_s}


def run_full_size(manifest: Path, n_images: int, workers: int) -> dict[str, float]:
    """Run the floor's processes together, every image at full size."""
    return run_floor(manifest, n_images, workers, "--full-size")


def run_floor(manifest: Path, n_images: int, workers: int, *more: str) -> dict[str, float]:
    """Run the floor's processes together."""
    command = [sys.executable, __file__, str(manifest), "--workers", str(workers), *more, "--share"]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([*command, str(share)], stdout=subprocess.PIPE, text=True, env=environment)
        for share in range(workers)
    ]
    found = [json.loads(process.communicate()[0]) for process in started]
    images = n_images * EPOCHS
    return {
        "images_per_s": images / max(one["wall_s"] for one in found),
        "cpu_s": sum(one["cpu_s"] for one in found) / images,
        "daemon": 0.0,
        "loop": 0.0,
    }


# --- prefetchd


def run_prefetchd(manifest: Path, n_images: int, workers: int) -> dict[str, float]:
    """Consume a private daemon's batches, which only wait to be taken."""
    import prefetchd

    with prefetchd.batches(
        manifest, batch_size=BATCH_SIZE, image_size=SIZE_PX, shuffle=True, num_workers=workers, epochs=None
    ) as loader:
        batches = iter(loader)
        for _ in range(len(loader)):
            next(batches)
        tree = {process.pid: process for process in descendants()}
        before = {pid: cpu_s(process) for pid, process in tree.items()}
        # What was made ahead is in the ring already, and as much is there at the end: both ends see a full ring.
        started_s, own_s = time.perf_counter(), time.process_time()
        for _ in range(EPOCHS * len(loader)):
            next(batches)
        wall_s, own_s = time.perf_counter() - started_s, time.process_time() - own_s
        used = {pid: cpu_s(process) - before[pid] for pid, process in tree.items()}
        daemon = sum(seconds for pid, seconds in used.items() if "prefetchd.daemon.private" in tree[pid].cmdline())
    images = n_images * EPOCHS
    return {
        "images_per_s": images / wall_s,
        "cpu_s": (sum(used.values()) + own_s) / images,
        "daemon": daemon / wall_s,
        "loop": own_s / wall_s,
    }


RUNS = {"floor": run_floor, "full size": run_full_size, "prefetchd": run_prefetchd}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, nargs="?", help="text manifest, `path label` a line (made in code)")
    parser.add_argument("--repeat", type=int, default=4, help="list each image so many times (4)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each has its turn (5)")
    parser.add_argument("--workers", type=int, default=2, help="decoding processes (2)")
    parser.add_argument("--full-size", action="store_true", help="the floor beside itself without reduced scales")
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.share is not None:
        paths = samples_of(options.manifest)[options.share :: options.workers]
        print(json.dumps(decode_all(paths, EPOCHS, shrinks=not options.full_size)))
        return
    runs = {name: run for name, run in RUNS.items() if options.full_size or run is not run_full_size}
    print(setting("prefetchd", "numpy", "opencv-python-headless"), flush=True)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    with manifest_or_photographs(options.manifest) as given, tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "manifest.txt"
        paths = samples_of(given) * options.repeat
        manifest.write_text("".join(f"{path} 0\n" for path in paths))
        for _ in range(options.rounds):
            for name, run in runs.items():
                found[name].append(run(manifest, len(paths), options.workers))
    rows = [["", "images/s", "ratio", "CPU ms/image", "ratio", "daemon", "loop"]]
    for name, rounds in found.items():
        speeds, costs = (
            [one[key] / floor[key] for one, floor in zip(rounds, found["floor"], strict=True)]
            for key in ("images_per_s", "cpu_s")
        )
        middle = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        rows.append(
            [
                name,
                f"{middle['images_per_s']:.0f}",
                f"{statistics.median(speeds):.2f}",
                f"{middle['cpu_s'] * 1e3:.3f}",
                f"{statistics.median(costs):.3f}",
                f"{middle['daemon']:.1%}",
                f"{middle['loop']:.1%}",
            ]
        )
    print(f"\n{table(rows)}")


if __name__ == "__main__":
    main()
