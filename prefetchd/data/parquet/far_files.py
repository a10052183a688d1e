"""Parquet files that are objects, at open: their footers, and the columns that are read there, many files at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from prefetchd.data.faults import SampleFault
from prefetchd.data.in_parallel import in_parallel
from prefetchd.data.parquet.library import refusal
from prefetchd.data.parquet.row_group import column_range
from prefetchd.data.stores.client import head
from prefetchd.data.stores.range_file import TAIL_BYTES, RangeFile
from prefetchd.data.stores.urls import shown
from prefetchd.errors import ManifestError

_FILES_AT_ONCE, _COLUMNS_AT_ONCE = 16, 4
_Opened = contextlib.AbstractContextManager[tuple[Any, list[Any]]]


def open_far(parquet: Any, url: str, columns: Sequence[str]) -> _Opened:
    """Return the file at `url` and its identity, for a `with` block; the content of `columns` is fetched already.

    Raises:
        ManifestError: if it cannot be read, or is damaged.
    """
    try:
        identity = head(url)
        if not identity[0]:
            raise refusal(shown(url), "it is empty (0 bytes)", "write the file again")
        content = RangeFile(url, identity)
        content.keep(int(identity[0]) - TAIL_BYTES, TAIL_BYTES)
        file = parquet.ParquetFile(content, pre_buffer=False, buffer_size=1 << 16)
        ranges = [column_range(file.metadata, group, leaf) for group, leaf in _leaves(file.metadata, columns)]
        for _ in in_parallel(lambda each: content.keep(*each), ranges, _COLUMNS_AT_ONCE):
            pass
    except SampleFault as fault:
        raise _unread(url, fault) from None
    except (OSError, ValueError) as error:  # pyarrow's errors are among them
        raise refusal(shown(url), " ".join(str(error).split())[:300], "write the file again") from None
    return _with(file, identity, url)


def _leaves(metadata: Any, columns: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield row group and name of each column that is one of `columns`, or a part of one."""
    for group in range(metadata.num_row_groups):
        described = metadata.row_group(group)
        for leaf in (described.column(place).path_in_schema for place in range(described.num_columns)):
            if any(leaf == column or leaf.startswith(f"{column}.") for column in columns):
                yield group, leaf


@contextlib.contextmanager
def _with(file: Any, identity: list[Any], url: str) -> Iterator[tuple[Any, list[Any]]]:
    try:
        with file:
            yield file, identity
    except SampleFault as fault:  # of what was not fetched yet
        raise _unread(url, fault) from None


def _unread(url: str, fault: SampleFault) -> ManifestError:
    return ManifestError(f"cannot read {shown(url)}: {fault}; check the store, and start again")


def open_far_together(parquet: Any, urls: Sequence[str], columns: Sequence[str]) -> Iterator[_Opened]:
    """Yield each of the files, as `open_far` opens it."""
    yield from in_parallel(lambda url: open_far(parquet, url, columns), urls, _FILES_AT_ONCE)
