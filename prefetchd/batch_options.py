"""The options of `prefetchd.batches` as types, for functions that pass them on (`prefetchd.torch.batches`).

    def my_batches(source: str, **options: Unpack[BatchOptions]) -> Loader:
        return prefetchd.batches(source, **options)

`DataOptions` is the one place for the types that a data set's options may have in Python. What an option does, its
default and its range stand in `prefetchd.config.options`; `help(prefetchd.batches)` shows both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from prefetchd.config.fields import Field
from prefetchd.config.options import (
    BoxFormat,
    Color,
    Dtype,
    End,
    Interpolation,
    Layout,
    Lengths,
    OnError,
    Pack,
    Resize,
    Target,
)
from prefetchd.config.order_options import Stop

if TYPE_CHECKING:
    import numpy as np


class DataOptions(TypedDict, total=False):
    """The options of a data set and its daemon; an option that is left out, or `None`, has its default."""

    root: str | os.PathLike[str] | None
    label_columns: int | None
    label_separator: str | None
    missing_label: str | float | None
    index: str | bytes | os.PathLike[str] | None
    x_column: str | int | None
    y_column: str | int | Sequence[str | int] | None
    labels: str | bytes | os.PathLike[str] | None
    offsets: str | bytes | os.PathLike[str] | None
    max_length: int | None
    padding: End | None
    truncating: End | None
    pad_value: float | None
    lengths: Lengths | None
    pack: Pack | None
    batch_size: int | None
    image_size: int | str | tuple[int, int] | Sequence[str | tuple[int, int]] | None
    bucket_sizes: str | Sequence[str | tuple[int, int]] | None
    bucket_file: str | os.PathLike[str] | None
    length_buckets: str | Sequence[int] | None
    color: Color | None
    channels: int | None
    dtype: Dtype | type[Any] | np.dtype[Any] | None
    scale: float | None
    mean: float | Sequence[float] | None
    std: float | Sequence[float] | None
    layout: Layout | None
    resize: Resize | None
    interpolation: Interpolation | None
    shrink_on_load: bool | None
    augment: str | Sequence[str] | None
    views: int | str | Sequence[str | Mapping[str, Any]] | None
    fields: Mapping[str, Field | Mapping[str, Any] | str] | Sequence[str] | None
    encoded_bytes: int | None
    transform: str | Callable[..., Any] | None
    target_transform: str | Callable[..., Any] | None
    target: Target | None
    box_format: BoxFormat | None
    source_box_format: BoxFormat | None
    max_boxes: int | None
    min_visible: float | None
    crowds: bool | None
    mask_border: int | None
    python_path: str | Sequence[str] | None
    shuffle: bool | Literal["blocks"] | None
    shuffle_block: int | None
    seed: int | None
    drop_last: bool | None
    subset: str | bytes | os.PathLike[str] | Sequence[int] | np.ndarray[Any, Any] | None
    where: Mapping[str, Any] | str | Sequence[str] | None
    split: str | None
    order: str | bytes | os.PathLike[str] | Sequence[int] | np.ndarray[Any, Any] | None
    weights: str | bytes | os.PathLike[str] | Sequence[float] | np.ndarray[Any, Any] | None
    replace: bool | None
    epoch_samples: int | None
    mix: Mapping[Any, float | str | Sequence[float]] | Sequence[Any] | None
    mix_temperature: float | None
    stop: Stop | None
    limit: int | None
    on_error: OnError | None
    max_image_pixels: int | None
    num_workers: int | str | None
    memory_budget: str | int | None
    reader_timeout: float | None
    patience: float | None
    consumers: int | None
    cache: str | bytes | os.PathLike[str] | None
    cache_size: str | int | None
    cache_image_size: int | str | tuple[int, int] | None
    cache_format: Literal["raw", "jpeg"] | None
    cache_quality: int | None
    keep: str | bytes | os.PathLike[str] | None
    keep_size: str | int | None
    store_options: Mapping[str, str | int | bool] | Sequence[str] | None
    agents: str | Sequence[str] | None
    ray: str | None
    remote_workers: int | str | None
    token_file: str | bytes | os.PathLike[str] | None
    tls_ca: str | bytes | os.PathLike[str] | None
    tls_cert: str | bytes | os.PathLike[str] | None
    tls_key: str | bytes | os.PathLike[str] | None


class BatchOptions(DataOptions, total=False):
    """All keyword arguments of `prefetchd.batches`."""

    daemon: str | None
    dataset: str | None
    name: str | None
    epochs: int | None
    rank: int | Literal["env"] | None
    world_size: int | None
    reconnect: bool
    timeout: float
    on_hold: Literal["wait", "copy"]
    hold_timeout: float
    writable: bool
    share: bool | None
    group: str | None
    join: Literal["start", "now"]
    start_together: int | None
    log_every: int | Literal["epoch"] | None
    config: str | os.PathLike[str] | None
