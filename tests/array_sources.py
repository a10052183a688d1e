"""Sources of arrays as the daemon and a reader have them, closed after each test, and arrays of any bytes."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefetchd.config.validate import make_config
from prefetchd.data.registry import Source, attach_source, open_source
from prefetchd.ring.layout import BatchLayout

_open_sources: list[Any] = []


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    """After each test, also of what is refused or fails, `close` has given all back."""
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    while _open_sources:
        _open_sources.pop().close()
    gc.collect()
    assert sorted(os.listdir("/proc/self/fd")) == before


RNG = np.random.default_rng(7)


def attached(config: Any) -> tuple[Source, Source]:
    """Return the source as the daemon has it and as a reader has it."""
    opened = opens(config)
    handle, fds = opened.handle()
    reader = attach_source(config, handle, [os.dup(fd) for fd in fds])
    _open_sources.append(reader)
    return opened, reader


def opens(config: Any) -> Source:
    """Open a source, to be closed after the test."""
    source = open_source(config)
    _open_sources.append(source)
    return source


def served(source: object, ids: list[int] | None = None, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of the samples `ids` (all of them) as a reader fills them into a slot."""
    opened, reader = attached(make_config(source=source, **options))
    ids = list(range(opened.facts.n_samples)) if ids is None else ids
    layout = BatchLayout(len(ids) + 2, opened.facts.fields)
    root = np.full(layout.slot_bytes, 0xAA, np.uint8)
    x, y = layout.arrays(root, len(ids) + 2)
    assert reader.fill(0, ids, range(1, 1 + len(ids)), (x, y), lambda _: None) == []
    untouched = np.full(1, 0xAA, np.uint8)
    for array in (x, y):
        for row in (array[:1], array[-1:]):
            assert (np.ascontiguousarray(row).reshape(-1).view(np.uint8) == untouched).all()
    return x[1:-1], y[1:-1]


def saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def some(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return RNG.integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8).view(dtype).reshape(shape)


def same(left: np.ndarray, right: np.ndarray) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def shards(folder: Path, *arrays: np.ndarray) -> Path:
    folder.mkdir()
    for number, array in enumerate(arrays):
        np.save(folder / f"{number:03d}.npy", array)
    return folder
