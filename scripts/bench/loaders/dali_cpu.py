"""NVIDIA DALI with its CPU decoder and CPU resize."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from nvidia.dali import fn, pipeline_def, types

from loaders import SIZE_PX, Data, Epochs

TITLE = "DALI, CPU"
PACKAGES = ("nvidia-dali-cuda120",)
DETAIL = "`readers.file`, `decoders.image` and `resize` on the CPU, two threads, queue of two"


@contextlib.contextmanager
def epochs(data: Data) -> Iterator[Epochs]:
    @pipeline_def(batch_size=data.batch_size, num_threads=data.workers, device_id=None, prefetch_queue_depth=2, seed=0)
    def pipeline() -> Any:
        content, labels = fn.readers.file(
            files=data.paths, labels=data.labels, random_shuffle=True, initial_fill=len(data.paths), name="files"
        )
        images = fn.decoders.image(content, device="cpu", output_type=types.RGB)
        return fn.resize(images, resize_x=SIZE_PX, resize_y=SIZE_PX, interp_type=types.INTERP_LINEAR), labels

    running = pipeline()
    running.build()

    def next_epoch() -> Iterator[tuple[Any, Any]]:
        for _ in range(math.ceil(len(data.paths) / data.batch_size)):
            images, labels = running.run()
            yield np.asarray(images.as_tensor()), np.asarray(labels.as_tensor())[:, 0]

    yield next_epoch
