"""One packed shard in the daemon: where its samples and their values are, checked, and what small values say."""

from __future__ import annotations

import itertools
import json
import math
import os
import struct
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from prefetchd.data.files import check_complete, identity, open_regular
from prefetchd.data.packed.arrow_rows import TAIL_BYTES, NoSuchRows, arrow_rows, arrow_start
from prefetchd.data.packed.content import Content, FileContent, MemoryContent
from prefetchd.data.packed.index import PackedColumns, PackedShard
from prefetchd.data.packed.zstd import decompress
from prefetchd.data.stores.urls import is_url, shown
from prefetchd.errors import ManifestError, one_line

IMAGE_ENCODINGS = ("jpeg", "png", "bytes")
MAX_VALUE_BYTES = 1 << 20  # of what is read at open
_SCALARS = {
    "int": "<i8", "float": "<f8", "uint8": "u1", "uint16": "<u2", "uint32": "<u4", "uint64": "<u8", "int8": "i1",
    "int16": "<i2", "int32": "<i4", "int64": "<i8", "float16": "<f2", "float32": "<f4", "float64": "<f8", "bool": "?",
}  # fmt: skip
READABLE = (*_SCALARS, "str", "str_int", "str_float", "text", "json", "ndarray")

Span = tuple[int, int]  # where a value starts in the decompressed shard, and its bytes


class OpenShard:
    """The content of a shard, by position.

    Args:
        shard, columns: of the index.
        content: the bytes of the decompressed shard.
        name: of the shard, in errors.
    """

    def __init__(self, shard: PackedShard, columns: PackedColumns, content: Content, name: str) -> None:
        self._shard = shard
        self._content = content
        self._name = name
        n_sizes = columns.sizes.count(0)
        self._columns = columns
        self._sizes = struct.Struct(f"<{n_sizes}I")
        self._fixed = columns.sizes

    def read(self, at: int, n_bytes: int) -> bytes:
        """Return bytes of the decompressed shard."""
        return self._content.read(at, n_bytes)

    def samples(self, wanted: Collection[int]) -> Iterator[Sequence[Span]]:
        """Yield where the values of each sample are, by column; those in `wanted` at least.

        Raises:
            ManifestError: if the shard is not what the index lists, or damaged.
        """
        offsets, arrow_at = self._offsets()
        if arrow_at is not None and offsets[0] == offsets[-1]:
            yield from self._arrow_rows(arrow_at, wanted)
            return
        self._content.expect(offsets)
        for number, (start, end) in enumerate(itertools.pairwise(offsets)):
            head = self._sizes.size
            if end - start < head:
                raise self._damaged(f"sample {number} has {end - start} bytes")
            sizes = iter(self._sizes.unpack(self.read(start, head)))
            at, spans = start + head, []
            for fixed in self._fixed:
                n_bytes = fixed or next(sizes)
                spans.append((at, n_bytes))
                at += n_bytes
            if at != end:
                raise self._damaged(f"the columns of sample {number} take {at - start} bytes of its {end - start}")
            yield spans

    def _arrow_rows(self, start: int, wanted: Collection[int]) -> Iterator[Sequence[Span]]:
        names = [name if number in wanted else None for number, name in enumerate(self._columns.names)]
        n_rows = 0
        try:
            for spans in arrow_rows(self._content.whole(), start, names):
                n_rows += 1
                yield spans
        except NoSuchRows as error:
            raise self._damaged(str(error), error.remedy) from None
        if n_rows != self._shard.n_samples:
            raise self._damaged(f"it has {n_rows} rows, and {self._shard.n_samples} are listed")

    def _offsets(self) -> tuple[list[int], int | None]:
        """Return where samples start and the last ends, and where LitData's Arrow file starts, if there is one."""
        n_samples, n_bytes = self._shard.n_samples, self._shard.n_bytes
        head = 4 * (n_samples + 2)
        if head > n_bytes:
            raise self._damaged(f"it is too short for {n_samples} samples ({n_bytes} bytes)")
        found = np.frombuffer(self.read(0, head), "<u4").astype(np.int64)
        if found[0] != n_samples:
            raise self._damaged(f"it says {found[0]} samples, and {n_samples} are listed")
        offsets, arrow_at = found[1:], None
        if offsets[-1] < n_bytes - TAIL_BYTES:
            arrow_at = arrow_start(self.read(n_bytes - TAIL_BYTES, TAIL_BYTES), n_bytes)
        end = n_bytes if arrow_at is None else arrow_at
        if offsets[0] < head or offsets[-1] != end or np.any(np.diff(offsets) < 0):
            raise self._damaged("its table of offsets is wrong")
        return offsets.tolist(), arrow_at

    def _damaged(self, what: str, remedy: str = "download or write it again") -> ManifestError:
        return ManifestError(f"cannot use {self._name}: {what}; {remedy}")


@contextmanager
def opened(shard: PackedShard, columns: PackedColumns) -> Iterator[tuple[OpenShard, list[Any]]]:
    """Give a shard and its identity; afterwards check that it was not written to meanwhile.

    Raises:
        ManifestError: if it cannot be read, or has another size than the index lists.
    """
    name = one_line(shown(shard.path))
    if is_url(shard.path):
        from prefetchd.data.packed.far_shard import far_content
        from prefetchd.data.stores.client import head

        found = head(shard.path)
        _check_size(int(found[0]), shard, name)
        with far_content(shard, found, name) as content:
            yield OpenShard(shard, columns, content, name), found
        return
    fd = open_regular(shard.path, name)
    try:
        before = identity(os.fstat(fd))
        _check_size(before[2], shard, name)
        if shard.is_zstd:
            with open(os.dup(fd), "rb") as file:
                yield OpenShard(shard, columns, MemoryContent(decompress(file, shard.n_bytes, name)), name), [*before]
        else:
            yield OpenShard(shard, columns, FileContent(fd, name), name), [*before]
        check_complete(fd, before, name)
    finally:
        os.close(fd)


def _check_size(n_bytes: int, shard: PackedShard, name: str) -> None:
    if n_bytes != shard.stored_bytes:
        raise ManifestError(
            f"cannot use {name}: it has {n_bytes} bytes, and {shard.stored_bytes} are listed; download or write it "
            "again"
        )


def is_readable(encoding: str) -> bool:
    """Return whether `value_of` reads values of an encoding. Pickles are never read."""
    kind, _, detail = encoding.partition(":")
    return kind in READABLE and (kind != "ndarray" or detail.count(":") == 1)


def value_of(encoding: str, raw: bytes) -> Any:
    """Return the number, text, list of numbers or JSON value in `raw`.

    Raises:
        ValueError: if it is none.
    """
    kind, _, detail = encoding.partition(":")
    if kind == "ndarray":
        dtype, _, shape = detail.partition(":")
        values = np.frombuffer(raw, np.dtype(dtype).newbyteorder("<"))
        if values.size != math.prod(map(int, shape.split(","))):
            raise ValueError(f"{values.size} numbers for the shape {shape}")
        return values.tolist()
    if kind in _SCALARS:
        (value,) = np.frombuffer(raw, _SCALARS[kind]).tolist()
        return value
    text = raw.decode()
    if kind == "str_int":
        return int(text)
    if kind == "str_float":
        return float(text)
    return json.loads(text) if kind == "json" else text
