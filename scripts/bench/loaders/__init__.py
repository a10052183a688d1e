"""The loaders that `peers.py` compares: a small module each, alike in what it has.

  TITLE      how the table calls it
  PACKAGES   distributions whose versions the table shows; the loader is left out where one is not installed
  DETAIL     what was chosen, for the notes under the table
  DECODES    false where the timed epochs decode nothing: the chart has only those that do (optional)
  epochs(data)   a context manager that gives a function, which gives the next epoch's (x, y) batches: x is
                 (rows, 224, 224, 3) uint8 RGB, shuffled anew each epoch

To add one, write its module and put its name into `LOADERS`. Modules import what they measure at their top, so only
`load` of that very module costs its import.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

SIZE_PX = 224
LOADERS = (
    "ours", "ours_cached", "ours_exact", "torch_cv2", "torch_pil", "tf_data", "dali_cpu", "spdl_threads",
    "grain_processes", "litdata_chunks", "energon_shards", "ffcv_raw", "generator",
)  # fmt: skip

Epochs = Callable[[], Iterator[tuple[Any, Any]]]


@dataclass(frozen=True)
class Data:
    """What every loader is given."""

    manifest: Path  # `path<tab>label` a line, absolute paths
    paths: list[str]
    labels: list[int]
    batch_size: int
    workers: int
    folder: Path  # for what a loader has to write before it can begin; the same for all rounds


class Loader(Protocol):
    """A module of this package."""

    TITLE: str
    PACKAGES: tuple[str, ...]
    DETAIL: str

    def epochs(self, data: Data) -> AbstractContextManager[Epochs]:
        """See the package's docstring."""


def load(name: str) -> Loader:
    """Import the loader `name`, and with it what it measures."""
    return cast(Loader, importlib.import_module(f"loaders.{name}"))


def read_image(path: str) -> Any:
    """Decode and resize as users do, by OpenCV: what the loaders without a decoder of their own run."""
    import cv2

    image = cv2.imread(path)
    assert image is not None, path
    return cv2.cvtColor(cv2.resize(image, (SIZE_PX, SIZE_PX)), cv2.COLOR_BGR2RGB)
