"""Grain with worker processes and OpenCV."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags

from loaders import Data, Epochs, read_image

TITLE = "Grain, processes"
PACKAGES = ("grain", "opencv-python-headless")
DETAIL = "`MapDataset` with cv2 in `map`, `shuffle().repeat()`, `mp_prefetch` with two workers"


def _read(sample: tuple[str, int]) -> tuple[Any, Any]:
    cv2.setNumThreads(0)
    return read_image(sample[0]), np.int64(sample[1])


@contextlib.contextmanager
def epochs(data: Data) -> Iterator[Epochs]:
    flags.FLAGS.mark_as_parsed()  # Grain reads some, and refuses to where a program has not parsed its words
    samples = list(zip(data.paths, data.labels, strict=True))
    dataset = (
        grain.MapDataset.source(samples)
        .seed(0)
        .shuffle()
        .repeat()
        .map(_read)
        .batch(data.batch_size)
        .to_iter_dataset()
        .mp_prefetch(grain.multiprocessing.MultiprocessingOptions(num_workers=data.workers))
    )
    batches = iter(dataset)
    steps = math.ceil(len(samples) / data.batch_size)
    try:
        yield lambda: itertools.islice(batches, steps)  # `repeat`, so that the workers are kept between epochs
    finally:
        if hasattr(batches, "close"):
            batches.close()
