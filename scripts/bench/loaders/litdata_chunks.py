"""LitData, with the encoded files in its chunks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from litdata import StreamingDataLoader, StreamingDataset, optimize

from loaders import SIZE_PX, Data, Epochs

TITLE = "LitData"
PACKAGES = ("litdata", "torch", "opencv-python-headless")
DETAIL = "chunks of the encoded files by `optimize`, cv2 in `__getitem__`, `StreamingDataLoader` with two workers"


def _sample(pair: tuple[str, int]) -> dict[str, Any]:
    return {"content": Path(pair[0]).read_bytes(), "label": pair[1]}


class Photographs(StreamingDataset):  # type: ignore[misc]  # its package has no types
    """Decodes in `__getitem__`."""

    def __getitem__(self, index: Any) -> tuple[Any, int]:
        found = super().__getitem__(index)
        image = cv2.imdecode(np.frombuffer(found["content"], np.uint8), cv2.IMREAD_COLOR_RGB)
        return torch.from_numpy(cv2.resize(image, (SIZE_PX, SIZE_PX))), found["label"]


@contextlib.contextmanager
def epochs(data: Data) -> Iterator[Epochs]:
    chunks = data.folder / "litdata"
    if not (chunks / "index.json").exists():
        pairs = list(zip(data.paths, data.labels, strict=True))
        optimize(_sample, pairs, output_dir=str(chunks), num_workers=1, chunk_bytes="64MB")
    loader = StreamingDataLoader(
        Photographs(str(chunks), shuffle=True, drop_last=False),
        batch_size=data.batch_size,
        num_workers=data.workers,
        persistent_workers=True,
    )
    yield lambda: iter(loader)
