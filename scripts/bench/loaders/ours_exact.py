"""prefetchd with the very pixels that a full decode and `cv2.resize` give."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from loaders import Data, Epochs, ours

TITLE = "prefetchd, exact"
PACKAGES = ("prefetchd", "opencv-python-headless")
DETAIL = "the same with `shrink_on_load=False`: the very pixels of the loaders that run cv2"


@contextlib.contextmanager
def epochs(data: Data) -> Iterator[Epochs]:
    with ours.epochs(data, shrink_on_load=False) as next_epoch:
        yield next_epoch
