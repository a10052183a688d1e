"""What bad samples cost: a list of which half is refused by the decoder, beside the same list without those lines.

    python scripts/bench/bad_samples.py [MANIFEST] [--samples 400] [--rounds 3]

Every second sample is a PNG with one byte changed, which only a decoder can refuse. So each is confirmed alone in a
fresh reader before `on_error="skip"` leaves it out. Both lists deliver the same good images, for one epoch of a private
daemon with two readers. They take turns (A B A B ...), and the figures are medians over the rounds.

  first batch   seconds from asking for the loader to its first batch
  ratio         images/s of the epoch with bad samples over those without
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path

from measure import manifest_or_photographs, setting, table

import prefetchd

BUDGETS = ("128MiB", "384MiB", "auto")


def refused_png() -> bytes:
    """Return a PNG whose header is whole, and whose pixels are not."""
    import cv2
    import numpy as np

    pixels = np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)
    encoded = bytearray(cv2.imencode(".png", pixels)[1].tobytes())
    encoded[len(encoded) // 2] ^= 0xFF
    return bytes(encoded)


def write_lists(manifest: Path, folder: Path, n_samples: int) -> tuple[Path, Path]:
    """Write the list with bad samples and the one without; return both."""
    lines = [line for line in manifest.read_text().splitlines() if line.strip() and not line.startswith("#")]
    paths = [(manifest.parent / line.rsplit(None, 1)[0]).resolve() for line in lines]
    refused, good, mixed = refused_png(), [], []
    for number in range(n_samples // 2):
        bad = folder / f"{number}.png"
        bad.write_bytes(refused)
        good.append(f"{paths[number % len(paths)]} 0\n")
        mixed += [good[-1], f"{bad} 0\n"]
    with_bad, without = folder / "with.txt", folder / "without.txt"
    with_bad.write_text("".join(mixed))
    without.write_text("".join(good))
    return with_bad, without


def epoch(manifest: Path, budget: str) -> tuple[float, float]:
    """Return the seconds to the first batch, and images/s of one epoch."""
    started_s = time.perf_counter()
    options = {"batch_size": 16, "image_size": 224, "on_error": "skip", "num_workers": 2, "memory_budget": budget}
    first_s, n_images = 0.0, 0
    with prefetchd.batches(manifest, epochs=1, **options) as loader:
        for x, _ in loader:
            first_s = first_s or time.perf_counter() - started_s
            n_images += len(x)
    return first_s, n_images / (time.perf_counter() - started_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", nargs="?", type=Path, help="photographs; made in code if not given")
    parser.add_argument("--samples", type=int, default=400, help="samples of the list with bad ones (400)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each list has its turn (3)")
    options = parser.parse_args()
    logging.getLogger("prefetchd").setLevel(logging.CRITICAL)
    with manifest_or_photographs(options.manifest) as manifest, tempfile.TemporaryDirectory() as folder:
        with_bad, without = write_lists(manifest, Path(folder), options.samples)
        print(setting("prefetchd", "numpy", "opencv-python-headless"))
        rows = [["budget", "first batch, none bad", "half bad", "ratio"]]
        for budget in BUDGETS:
            found = [(epoch(without, budget), epoch(with_bad, budget)) for _ in range(options.rounds)]
            first_s = [statistics.median(turn[which][0] for turn in found) for which in (0, 1)]
            ratio = statistics.median(bad[1] / plain[1] for plain, bad in found)
            rows.append([budget, f"{first_s[0]:.2f} s", f"{first_s[1]:.2f} s", f"{ratio:.2f}"])
        print(table(rows))


if __name__ == "__main__":
    main()
