"""FFCV with images that were decoded and resized ahead of all epochs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.writer import DatasetWriter

from loaders import Data, Epochs, read_image

TITLE = "FFCV, decoded ahead"
PACKAGES = ("ffcv", "torch", "opencv-python-headless")
DETAIL = "a `.beton` file of raw 224x224 images that cv2 made, `SimpleRGBImageDecoder`, two threads, `os_cache`"
DECODES = False


class Photographs:
    """What the writer asks: samples by number."""

    def __init__(self, data: Data) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return read_image(self._data.paths[index]), self._data.labels[index]


@contextlib.contextmanager
def epochs(data: Data) -> Iterator[Epochs]:
    path = data.folder / "photographs.beton"
    if not path.exists():
        fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
        DatasetWriter(f"{path}.part", fields, num_workers=1).from_indexed_dataset(Photographs(data))
        os.rename(f"{path}.part", path)
    loader = Loader(
        str(path),
        batch_size=data.batch_size,
        num_workers=data.workers,
        order=OrderOption.RANDOM,
        pipelines={"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]},
        os_cache=True,
        drop_last=False,
    )

    def next_epoch() -> Iterator[tuple[Any, Any]]:
        for images, labels in loader:
            yield np.asarray(images), np.asarray(labels)[:, 0]

    yield next_epoch
