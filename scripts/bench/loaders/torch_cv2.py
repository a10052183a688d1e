"""PyTorch's DataLoader, as its users write it with OpenCV."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from loaders import Data, Epochs, read_image

TITLE = "PyTorch DataLoader, cv2"
PACKAGES = ("torch", "opencv-python-headless")
DETAIL = "cv2 in `__getitem__`, one cv2 thread a worker, uint8 tensors, workers kept between epochs"


class Photographs(Dataset):  # type: ignore[type-arg]
    """Decodes in `__getitem__`."""

    def __init__(self, data: Data, read: Callable[[str], Any]) -> None:
        self._samples = list(zip(data.paths, data.labels, strict=True))
        self._read = read

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self._samples[index]
        return torch.from_numpy(self._read(path)), label


def _one_thread(_: int) -> None:
    cv2.setNumThreads(0)


@contextlib.contextmanager
def epochs(data: Data, read: Callable[[str], Any] = read_image) -> Iterator[Epochs]:
    loader = DataLoader(
        Photographs(data, read),
        batch_size=data.batch_size,
        shuffle=True,
        num_workers=data.workers,
        worker_init_fn=_one_thread,
        persistent_workers=True,
    )
    last: list[Any] = []

    def next_epoch() -> Iterator[tuple[Any, Any]]:
        last[:] = [iter(loader)]
        return last[0]  # type: ignore[no-any-return]

    try:
        yield next_epoch
    finally:
        if last and hasattr(last[0], "_shutdown_workers"):
            last[0]._shutdown_workers()  # else they end when the garbage collector comes round
