"""prefetchd from its cache of decoded samples, warm: what every epoch but the first costs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from loaders import Data, Epochs, ours

TITLE = "prefetchd, cached"
PACKAGES = ("prefetchd", "opencv-python-headless")
DETAIL = "the same with `cache=`, filled as a side effect of the first round's first epoch; no conversion step"
DECODES = False


@contextlib.contextmanager
def epochs(data: Data) -> Iterator[Epochs]:
    with ours.epochs(data, cache=data.folder / "cache") as next_epoch:
        yield next_epoch
