"""What augmentation costs a sample: CPU time of a reader's work on each, all kinds in turn, round after round.

    python scripts/bench/augment.py MANIFEST [ROUNDS]

One process, no daemon: read, header, decode, augment, write to the row, 224 x 224. Prints the median over rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time

import numpy as np

from prefetchd.config.validate import make_config
from prefetchd.data.images.decode import detach_native_stderr
from prefetchd.data.images.pipeline import ImageReader
from prefetchd.data.manifest.records import Manifest

KINDS = {
    "none": "",
    "hflip": "hflip",
    "random_resized_crop, hflip": "random_resized_crop, hflip",
    "  + color_jitter": "random_resized_crop, hflip, color_jitter",
    "  + affine": "random_resized_crop, hflip, affine",
    "  + color_jitter, affine": "random_resized_crop, hflip, color_jitter, affine",
    "  + rand_augment": "random_resized_crop, hflip, rand_augment",
    "  + trivial_augment_wide": "random_resized_crop, hflip, trivial_augment_wide",
    "  + random_erasing": "random_resized_crop, hflip, random_erasing",
    "SimCLR": "random_resized_crop, hflip, color_jitter(p=0.8), grayscale(p=0.2), gaussian_blur(p=0.5)",
}


def main(source: str, rounds: int) -> None:
    manifest = Manifest.open(make_config(source=source))
    samples = manifest.samples(range(min(250, len(manifest))))
    readers = {name: ImageReader(make_config(source=source, augment=kind), manifest) for name, kind in KINDS.items()}
    x, y = np.empty((224, 224, 3), np.uint8), np.empty((), np.int64)
    took: dict[str, list[float]] = {name: [] for name in KINDS}
    for epoch in range(rounds):
        for name, reader in readers.items():
            started_s = time.process_time()
            for number, sample in enumerate(samples):
                assert reader.load(sample, number, epoch, x, [y], lambda _: None) is None
            took[name].append((time.process_time() - started_s) / len(samples) * 1e3)
    base = statistics.median(took["none"])
    for name, ms in took.items():
        extra = statistics.median(a - b for a, b in zip(ms, took["none"], strict=True))
        print(f"{name:28} {statistics.median(ms):6.2f} ms  ({extra:+.2f}, {extra / base:+.0%}; least {min(ms):.2f})")


if __name__ == "__main__":
    # As in a reader: libjpeg remarks on every image whose lower rows are left out.
    sys.stderr = os.fdopen(detach_native_stderr(), "w", buffering=1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", help="text manifest, `path label` a line")
    parser.add_argument("rounds", nargs="?", type=int, default=8, help="turns of each kind (8)")
    given = parser.parse_args()
    main(given.manifest, given.rounds)
