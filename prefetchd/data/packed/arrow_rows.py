"""Rows that LitData wrote as an Arrow file into a chunk: where the values of each are, as pyarrow says.

    samples | offsets, all the same | Arrow file | its bytes, uint32 | MAGIC

LitData 0.2.76 writes samples of bytes, numbers and text so where pyarrow is installed, and leaves the chunk's own table
of offsets empty. Values of a column stand one behind another, so each has a place all the same.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from prefetchd.data.parquet.library import load_pyarrow

MAGIC = b"LDARW01\0"
_TAIL = struct.Struct(f"<I{len(MAGIC)}s")
TAIL_BYTES = _TAIL.size


class NoSuchRows(ValueError):
    """The Arrow file is damaged, or its values have no places; with what to do."""

    def __init__(self, what: str, remedy: str = "download or write it again") -> None:
        super().__init__(what)
        self.remedy = remedy


def arrow_start(tail: bytes, n_bytes: int) -> int | None:
    """Return where the Arrow file starts in a chunk of `n_bytes` that ends with `tail`; `None` without one."""
    arrow_bytes, magic = _TAIL.unpack(tail)
    return n_bytes - TAIL_BYTES - arrow_bytes if magic == MAGIC else None


def arrow_rows(chunk: memoryview, start: int, names: Sequence[str | None]) -> Iterator[tuple[tuple[int, int], ...]]:
    """Yield where the values of each row are in the chunk, (start, bytes) for each column.

    Args:
        chunk: all of it.
        start: of the Arrow file.
        names: of the columns; `None` for one that is not asked for, and has (0, 0).

    Raises:
        NoSuchRows: if they have no places, or the file is damaged.
        ConfigError: if pyarrow is not installed.
    """
    arrow, _ = load_pyarrow("Arrow")
    whole = arrow.py_buffer(chunk)
    try:
        file = arrow.ipc.open_file(whole.slice(start, len(chunk) - TAIL_BYTES - start))
        for number in range(file.num_record_batches):
            batch = file.get_batch(number)
            batch.validate(full=True)
            places = [_places(arrow, batch, name, whole) for name in names]
            yield from zip(*(zip(*each, strict=True) for each in places), strict=True)
    except (arrow.ArrowException, OSError) as error:
        raise NoSuchRows(str(error).partition("\n")[0]) from None


def _places(arrow: Any, batch: Any, name: str | None, whole: Any) -> tuple[list[int], list[int]]:
    """Return where the values of a column start in `whole`, and their bytes."""
    if name is None:
        return [0] * len(batch), [0] * len(batch)
    found = batch.schema.get_all_field_indices(name)
    if len(found) != 1:
        raise NoSuchRows(f"its Arrow file has {len(found)} columns {name!r}")
    column = batch.column(found[0])
    if column.null_count:
        raise NoSuchRows(f"{column.null_count} rows have nothing in the column {name!r}")
    kind, types = column.type, arrow.types
    _, *buffers = column.buffers()
    at = buffers[-1].address - whole.address if buffers and buffers[-1] is not None else 0
    if types.is_binary(kind) or types.is_string(kind):
        offsets = np.frombuffer(buffers[0], "<i4")[column.offset :][: len(column) + 1].astype(np.int64)
        starts, n_bytes = at + offsets[:-1], np.diff(offsets)
    elif types.is_integer(kind) or types.is_floating(kind):
        width = kind.bit_width // 8
        starts = at + width * np.arange(column.offset, column.offset + len(column))
        n_bytes = np.full(len(column), width)
    else:
        raise NoSuchRows(
            f"its column {name!r} holds {kind}, in an Arrow file",
            "write it as a number, text or bytes, or leave it out",
        )
    if len(starts) and not 0 <= starts.min() <= (starts + n_bytes).max() <= whole.size:
        raise NoSuchRows("its Arrow file is compressed", "write it again without compression")
    return starts.tolist(), n_bytes.tolist()
