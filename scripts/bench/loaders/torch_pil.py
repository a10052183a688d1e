"""PyTorch's DataLoader with Pillow, as torchvision's `ImageFolder` loads images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from loaders import SIZE_PX, Data, Epochs, torch_cv2

TITLE = "PyTorch DataLoader, Pillow"
PACKAGES = ("torch", "pillow")
DETAIL = "the same with `Image.open(path).convert('RGB').resize(..., BILINEAR)`"


def _read(path: str) -> Any:
    with Image.open(path) as image:
        return np.array(image.convert("RGB").resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR))


@contextlib.contextmanager
def epochs(data: Data) -> Iterator[Epochs]:
    with torch_cv2.epochs(data, _read) as next_epoch:
        yield next_epoch
