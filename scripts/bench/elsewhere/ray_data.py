"""Ray Data, whose tasks decode on the nodes of a cluster; here a cluster of this machine alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import ray
from loaders import Data, Epochs, read_image

TITLE = "Ray Data"
PACKAGES = ("ray", "opencv-python-headless")
DETAIL = (
    "`from_items`, `random_shuffle`, `map_batches` with cv2, `iter_batches(prefetch_batches=2)`; a cluster of 2 CPUs"
)


def _read(batch: dict[str, Any]) -> dict[str, Any]:
    cv2.setNumThreads(0)
    return {"x": np.stack([read_image(path) for path in batch["path"]]), "y": batch["label"]}


@contextlib.contextmanager
def epochs(data: Data) -> Iterator[Epochs]:
    ray.init(
        num_cpus=data.workers, include_dashboard=False, object_store_memory=1 << 30, log_to_driver=False,
        logging_level="ERROR", _temp_dir=str(data.folder),
    )  # fmt: skip
    ray.data.DataContext.get_current().enable_progress_bars = False
    items = [{"path": path, "label": label} for path, label in zip(data.paths, data.labels, strict=True)]
    samples = ray.data.from_items(items)

    def next_epoch() -> Iterator[tuple[Any, Any]]:
        made = samples.random_shuffle().map_batches(_read, batch_size=data.batch_size)
        for batch in made.iter_batches(batch_size=data.batch_size, prefetch_batches=2):
            yield batch["x"], batch["y"]

    try:
        yield next_epoch
    finally:
        ray.shutdown()
