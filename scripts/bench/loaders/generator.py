"""The hand-written generator: what people begin with."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from loaders import Data, Epochs, read_image

TITLE = "hand-written generator"
PACKAGES = ("opencv-python-headless", "numpy")
DETAIL = "`for path in paths: cv2.imread, cv2.resize`, stacked, in the loop's own process; prepares nothing ahead"


@contextlib.contextmanager
def epochs(data: Data) -> Iterator[Epochs]:
    samples = list(zip(data.paths, data.labels, strict=True))

    def next_epoch() -> Iterator[tuple[Any, Any]]:
        order = random.sample(samples, len(samples))
        for start in range(0, len(order), data.batch_size):
            part = order[start : start + data.batch_size]
            yield np.stack([read_image(path) for path, _ in part]), np.array([label for _, label in part], np.int64)

    yield next_epoch
