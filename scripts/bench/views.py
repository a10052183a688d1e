"""What two views of an image cost, decoded once, beside decoding it twice: views a second of a reader's CPU time.

    python scripts/bench/views.py MANIFEST [ROUNDS]

One process, no daemon: read, header, decode, augment, write to the rows, 224 x 224. A is `views=2`; B loads each sample
twice, as two loaders do. The two take turns, round after round (A B A B), on the same samples. Prints the median over
rounds of each, and of their quotient.
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
from prefetchd.data.images.view_reader import ViewsReader
from prefetchd.data.manifest.records import Manifest

N_VIEWS = 2
KINDS = {
    "none": "",
    "hflip": "hflip",
    "random_resized_crop, hflip": "random_resized_crop, hflip",
    "SimCLR": "random_resized_crop, hflip, color_jitter(p=0.8), grayscale(p=0.2), gaussian_blur(p=0.5)",
}


def main(source: str, rounds: int) -> None:
    manifest = Manifest.open(make_config(source=source))
    samples = manifest.samples(range(min(250, len(manifest))))
    x, y = np.empty((N_VIEWS, 224, 224, 3), np.uint8), np.empty((), np.int64)
    for name, kind in KINDS.items():
        views = ViewsReader(make_config(source=source, augment=kind, views=N_VIEWS), manifest)
        plain = ImageReader(make_config(source=source, augment=kind), manifest)
        once: list[float] = []
        twice: list[float] = []
        for epoch in range(rounds):
            started_s = time.process_time()
            for number, sample in enumerate(samples):
                assert views.load(sample, number, epoch, (x,), [y], lambda _: None) is None
            once.append(N_VIEWS * len(samples) / (time.process_time() - started_s))
            started_s = time.process_time()
            for view in range(N_VIEWS):
                for number, sample in enumerate(samples):
                    assert plain.load(sample, number, epoch * N_VIEWS + view, x[view], [y], lambda _: None) is None
            twice.append(N_VIEWS * len(samples) / (time.process_time() - started_s))
        ratio = statistics.median(a / b for a, b in zip(once, twice, strict=True))
        print(
            f"{name:28} views={N_VIEWS} {statistics.median(once):7.0f}/s   decoded twice "
            f"{statistics.median(twice):7.0f}/s   {ratio:.2f} times"
        )


if __name__ == "__main__":
    # As in a reader: libjpeg remarks on every image whose lower rows are left out.
    sys.stderr = os.fdopen(detach_native_stderr(), "w", buffering=1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", help="text manifest, `path label` a line")
    parser.add_argument("rounds", nargs="?", type=int, default=8, help="turns of each kind (8)")
    given = parser.parse_args()
    main(given.manifest, given.rounds)
