"""prefetchd with a private daemon, as it is without any option of speed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import prefetchd
from loaders import SIZE_PX, Data, Epochs

TITLE = "prefetchd"
PACKAGES = ("prefetchd", "opencv-python-headless")
DETAIL = "a private daemon, `prefetchd.batches(manifest, num_workers=2)`; JPEGs shrink on load"


@contextlib.contextmanager
def epochs(data: Data, **more: Any) -> Iterator[Epochs]:
    with prefetchd.batches(
        data.manifest,
        batch_size=data.batch_size,
        image_size=SIZE_PX,
        shuffle=True,
        num_workers=data.workers,
        **more,
    ) as loader:
        yield lambda: iter(loader)
