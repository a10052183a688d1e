"""The options of `prefetchd.batches` as one type, for functions that pass them on (`prefetchd.torch.batches`).

    def my_batches(source: str, **options: Unpack[BatchOptions]) -> Loader:
        return prefetchd.batches(source, **options)

A test holds it to the signature of `batches`, where each option is explained.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict

from prefetchd.config.options import (
    Color,
    Dtype,
    End,
    Interpolation,
    Layout,
    Lengths,
    OnError,
    Resize,
    Target,
)


class BatchOptions(TypedDict, total=False):
    """Keyword arguments of `prefetchd.batches`; what is left out has its default."""

    daemon: str | None
    dataset: str | None
    epochs: int | None
    rank: int | Literal["env"] | None
    world_size: int | None
    reconnect: bool
    timeout: float
    on_hold: Literal["wait", "copy"]
    hold_timeout: float
    writable: bool
    config: str | os.PathLike[str] | None
    root: str | os.PathLike[str] | None
    label_columns: int | None
    label_separator: str | None
    missing_label: str | float | None
    x_column: str | int | None
    y_column: str | int | Sequence[str | int] | None
    labels: str | bytes | os.PathLike[str] | None
    offsets: str | bytes | os.PathLike[str] | None
    max_length: int | None
    padding: End | None
    truncating: End | None
    pad_value: float | None
    lengths: Lengths | None
    batch_size: int | None
    image_size: int | str | tuple[int, int] | None
    color: Color | None
    dtype: Dtype | None
    scale: float | None
    mean: float | Sequence[float] | None
    std: float | Sequence[float] | None
    layout: Layout | None
    resize: Resize | None
    interpolation: Interpolation | None
    shrink_on_load: bool | None
    augment: str | Sequence[str] | None
    transform: str | Callable[..., Any] | None
    target_transform: str | Callable[..., Any] | None
    target: Target | None
    mask_border: int | None
    python_path: str | Sequence[str] | None
    shuffle: bool | None
    seed: int | None
    drop_last: bool | None
    on_error: OnError | None
    max_image_pixels: int | None
    num_workers: int | str | None
    cache: str | bytes | os.PathLike[str] | None
    cache_size: str | int | None
    cache_image_size: int | str | tuple[int, int] | None
    memory_budget: str | int | None
    reader_timeout: float | None
    share: bool | None
    group: str | None
    join: Literal["start", "now"]
    start_together: int | None
    patience: float | None
    consumers: int | None
