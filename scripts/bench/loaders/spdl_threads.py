"""SPDL with threads and OpenCV, in the loop's own process."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from spdl.pipeline import PipelineBuilder

from loaders import Data, Epochs, read_image

TITLE = "SPDL, threads"
PACKAGES = ("spdl", "opencv-python-headless")
DETAIL = "a pipeline of two threads that run cv2, `aggregate(64)`, sink of two"


def _read(sample: tuple[str, int]) -> tuple[Any, int]:
    return read_image(sample[0]), sample[1]


def _stack(samples: list[tuple[Any, int]]) -> tuple[Any, Any]:
    return np.stack([image for image, _ in samples]), np.array([label for _, label in samples])


@contextlib.contextmanager
def epochs(data: Data) -> Iterator[Epochs]:
    cv2.setNumThreads(0)
    samples = list(zip(data.paths, data.labels, strict=True))

    def next_epoch() -> Iterator[tuple[Any, Any]]:
        pipeline = (
            PipelineBuilder()
            .add_source(random.sample(samples, len(samples)))
            .pipe(_read, concurrency=data.workers)
            .aggregate(data.batch_size)
            .pipe(_stack)
            .add_sink(2)
            .build(num_threads=data.workers)
        )
        with pipeline.auto_stop():
            yield from pipeline

    yield next_epoch
