"""Parquet files that tests write, and what records of them hold."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefetchd.config.validate import make_config
from prefetchd.data.files import FileBuffer
from prefetchd.data.parquet.library import load_pyarrow
from prefetchd.data.parquet.records import ParquetRecords
from prefetchd.errors import ManifestError

pytest.importorskip("pyarrow")
pa, pq = load_pyarrow()


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) <= before  # what an earlier test left may have closed


def table(folder: Path, columns: dict[str, Any], name: str = "a.parquet", **options: Any) -> str:
    path = str(folder / name)
    pq.write_table(pa.table(columns), path, **options)
    return path


def opened(source: object, **options: object) -> ParquetRecords:
    return ParquetRecords.open(make_config(source=str(source), **options))


def contents(records: ParquetRecords) -> list[tuple[bytes, object]]:
    buffer = FileBuffer()
    return [
        (bytes(records.read(sample, buffer, lambda _: None)), sample.label)
        for sample in records.samples(range(len(records)))
    ]


def read(source: object, **options: object) -> list[tuple[bytes, object]]:
    with opened(source, **options) as records:
        return contents(records)


def refusal(source: object, **options: object) -> str:
    with pytest.raises(ManifestError) as caught:
        opened(source, **options).close()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("cannot ")
    assert ";" in message
    return message


def repeated(times: int, sizes: tuple[int, ...] = (50_000, 60_000, 70_000)) -> list[bytes]:
    return [os.urandom(n_bytes) for n_bytes in sizes] * times
