"""Columns of a pyarrow table: buffers are taken as they lie, without work for each row, and pyarrow is not imported.

Encoded images, as binary or as Hugging Face's struct of `bytes` and `path`, stay in the files that hold them, where
those are mapped (`mapped_files`); else they are copied. The table's attributes say so:

    images      column -> the columns "bytes" (copied), "place" (file, offset, length) and "path", where there are such
    files       the files by number: path, device, inode, size and times of change
    classes     column -> names of its classes, as Hugging Face's features describe them
    left_out    column -> why it is not here
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.columns.mapped_files import MappedFiles
from prefetchd.columns.values import add_values
from prefetchd.columns.writer import Block, ColumnsWriter

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NUMBERS = {
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "halffloat": "float16", "float": "float32", "double": "float64",
}  # fmt: skip
_TEXT = {"string": np.int32, "large_string": np.int64}
_BYTES = {"binary": np.int32, "large_binary": np.int64}
_BLOCK_ROWS = 1 << 16
_GATHERED_BYTES = 64 << 20
_SHORT_BYTES = 1 << 10  # rows of fewer bytes are gathered by numpy, longer ones by a slice each
_Rows = tuple["NDArray[Any]", "NDArray[np.uint8]"]  # offsets of the rows, and the bytes that they lead into


def add_arrow(
    writer: ColumnsWriter, table: Any, *, wanted: Collection[str] | None, take: NDArray[np.int64] | None = None
) -> dict[str, Any]:
    """Add the columns of a pyarrow table; return the attributes.

    Args:
        writer: of a table with as many rows as `take`, or else `table`.
        table: a `pyarrow.Table`, or what looks like one.
        wanted: the columns to add; `None` for all that can be held, where the others are named in `left_out`.
        take: the rows, in their order; `None` for all.

    Raises:
        ValueError: if a wanted column cannot be held.
    """
    names = list(table.schema.names)
    if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
        raise ValueError(f"cannot use the column {twice!r}: there are two of this name; rename one")
    arrow = _Arrow(writer, take)
    left_out: dict[str, str] = {}
    for name in names:
        for leaf, column in _leaves(name, table.column(name), wanted):
            try:
                arrow.add(leaf, column)
            except ValueError as error:
                if wanted is not None:
                    raise ValueError(
                        f"cannot use the column {leaf!r}: {error}; give text, numbers, bytes, or lists of numbers"
                    ) from None
                left_out[leaf] = str(error)
    attributes = {"images": arrow.images, "files": arrow.mapped.files, "left_out": left_out}
    return {**attributes, "classes": class_names(table.schema)}


def _leaves(name: str, column: Any, wanted: Collection[str] | None) -> Iterator[tuple[str, Any]]:
    """Yield a column, or the parts of a struct by their dotted names; a struct with `bytes` is an image."""
    if wanted is not None and not any(each == name or each.startswith(f"{name}.") for each in wanted):
        return
    kind = column.type
    if not str(kind).startswith("struct<") or _has_field(kind, "bytes"):
        yield name, column
        return
    for number, part in enumerate(column.flatten()):
        yield from _leaves(f"{name}.{kind.field(number).name}", part, wanted)


def add_arrow_column(writer: ColumnsWriter, name: str, column: Any) -> None:
    """Add one column, an array of pyarrow or several chunks of it; raises `ValueError` if it cannot be held."""
    arrow = _Arrow(writer, None)
    arrow.add(name, column, in_files=False)


def class_names(schema: Any) -> dict[str, list[str]]:
    """Return the names of the classes of each column that Hugging Face's features describe."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return {
        column: feature["names"]
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)
    }


class _Arrow:
    """Adds one column after another; `take` are the rows that are taken."""

    def __init__(self, writer: ColumnsWriter, take: NDArray[np.int64] | None) -> None:
        self.images: dict[str, dict[str, str]] = {}
        self.mapped = MappedFiles()
        self._writer = writer
        self._take = take

    def add(self, name: str, column: Any, *, in_files: bool = True) -> None:
        chunks = [_plain(chunk) for chunk in getattr(column, "chunks", [column]) if len(chunk)]
        if not chunks:
            raise ValueError("it has no rows")
        kinds = {str(chunk.type) for chunk in chunks}
        kind = kinds.pop()
        if kinds:
            raise ValueError(f"its parts have the types {kind} and {kinds.pop()}")
        if kind in _TEXT:
            self._writer.add_strings(name, self._blocks([_rows(chunk) for chunk in chunks]), self._missing(chunks))
        elif kind in _BYTES and in_files:
            self._add_images(name, chunks, [])
        elif kind in _BYTES:
            self._writer.add_bytes(name, self._blocks([_rows(chunk) for chunk in chunks]), self._missing(chunks))
        elif in_files and kind.startswith("struct<") and _has_field(chunks[0].type, "bytes"):
            paths = [chunk.field("path") for chunk in chunks] if _has_field(chunks[0].type, "path") else []
            self._add_images(name, [chunk.field("bytes") for chunk in chunks], paths)
        elif kind in _NUMBERS or kind == "bool":
            values = self._taken(np.concatenate([_numbers(chunk) for chunk in chunks]))
            self._writer.add_numbers(name, values, self._missing(chunks))
        elif "list<" in kind.partition(" ")[0]:
            self._add_lists(name, chunks)
        else:
            raise ValueError(f"it holds {kind}")

    def _taken(self, values: NDArray[Any]) -> NDArray[Any]:
        return values if self._take is None else values[self._take]

    def _missing(self, chunks: list[Any]) -> NDArray[np.bool_] | None:
        if not any(chunk.null_count for chunk in chunks):
            return None
        return self._taken(np.concatenate([_is_null(chunk) for chunk in chunks]))

    def _blocks(self, parts: list[_Rows]) -> Iterator[Block]:
        if self._take is not None:
            yield from _gathered(parts, self._take)
            return
        for offsets, content in parts:
            yield np.diff(offsets), content[int(offsets[0]) : int(offsets[-1])]

    def _add_images(self, name: str, chunks: list[Any], paths: list[Any]) -> None:
        """Add encoded images: where they are in their files, or copied; and paths, where some have no bytes."""
        paths = [path for path in paths if str(path.type) in _TEXT]
        missing = self._missing(chunks)
        if paths and missing is not None and missing.all():  # files of their own
            self._writer.add_strings(name, self._blocks([_rows(path) for path in paths]), self._missing(paths))
            return
        images = {}
        parts = [_rows(chunk) for chunk in chunks]
        places = self._places(parts)
        if places is not None:
            images["place"] = f"{name}.place"
            self._writer.add_numbers(images["place"], places, missing)
        elif paths:
            images["bytes"] = f"{name}.bytes"
            self._writer.add_bytes(images["bytes"], self._blocks(parts), missing)
        else:
            self._writer.add_bytes(name, self._blocks(parts), missing)
        if paths and missing is not None:
            images["path"] = f"{name}.path"
            self._writer.add_strings(images["path"], self._blocks([_rows(path) for path in paths]))
        if images:
            self.images[name] = images

    def _places(self, parts: list[_Rows]) -> NDArray[np.int64] | None:
        """Return (file, offset, length) of each row, (rows, 3); `None` if some are in no file."""
        found = []
        for offsets, content in parts:
            file = self.mapped.find(content.ctypes.data, len(content)) if len(content) else (0, 0)
            if file is None or not any(len(content) for _, content in parts):
                return None
            places = np.empty((len(offsets) - 1, 3), np.int64)
            places[:, 0] = file[0]
            np.add(offsets[:-1], file[1], out=places[:, 1])
            places[:, 2] = np.diff(offsets)
            found.append(places)
        return self._taken(np.concatenate(found))

    def _add_lists(self, name: str, chunks: list[Any]) -> None:
        flat = [chunk.flatten() for chunk in chunks]
        if any(chunk.null_count or values.null_count for chunk, values in zip(chunks, flat, strict=True)):
            if self._take is not None:
                chunks = [chunk.to_pylist() for chunk in chunks]
                every = [row for chunk in chunks for row in chunk]
                add_values(self._writer, name, [every[row] for row in self._take.tolist()])
            else:
                add_values(self._writer, name, [row for chunk in chunks for row in chunk.to_pylist()])
            return
        lengths = np.concatenate([_list_lengths(chunk) for chunk in chunks])
        values = np.concatenate([_entries(each) for each in flat])
        if self._take is None:
            self._writer.add_ragged(name, [(lengths, values)], values.dtype.name, values.shape[1:])
            return
        starts = np.cumsum(lengths) - lengths
        blocks = _ranges(starts[self._take], lengths[self._take])
        parts = ((taken, values[ids]) for taken, ids in blocks)
        self._writer.add_ragged(name, parts, values.dtype.name, values.shape[1:])


def _plain(chunk: Any) -> Any:
    """Return an array whose buffers lie as this module reads them."""
    kind = str(chunk.type)
    if kind.startswith("dictionary<"):
        chunk = chunk.dictionary_decode()
    elif kind.startswith("extension<"):
        chunk = chunk.storage
    kind = str(chunk.type)
    if kind not in ("string_view", "binary_view"):
        return chunk
    large = f"large_{kind.removesuffix('_view')}"
    try:
        return chunk.cast(large)
    except NotImplementedError:  # before pyarrow 17
        return sys.modules["pyarrow"].array(chunk.to_pylist(), large)


def _has_field(kind: Any, name: str) -> bool:
    return any(kind.field(number).name == name for number in range(kind.num_fields))


def _is_null(chunk: Any) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = chunk.is_null().to_numpy(zero_copy_only=False)
    return found


def _buffer(buffer: Any, dtype: Any) -> NDArray[Any]:
    return np.frombuffer(buffer, dtype) if buffer is not None and buffer.size else np.zeros(0, dtype)


def _rows(chunk: Any) -> _Rows:
    """Return offsets (rows + 1) and bytes of an array of text or bytes."""
    kind = str(chunk.type)
    if kind not in _TEXT and kind not in _BYTES:
        raise ValueError(f"it holds {kind}")
    _, offsets, content = chunk.buffers()
    at = _buffer(offsets, _TEXT.get(kind) or _BYTES[kind])[chunk.offset : chunk.offset + len(chunk) + 1]
    if not len(at):
        at = np.zeros(len(chunk) + 1, np.int64)
    found = at, _buffer(content, np.uint8)
    if chunk.null_count and np.diff(at)[_is_null(chunk)].any():  # Arrow leaves open what is under a null
        return _rows(_without_nulls(chunk))
    return found


def _without_nulls(chunk: Any) -> Any:
    return chunk.fill_null("" if "string" in str(chunk.type) else b"")


def _numbers(chunk: Any) -> NDArray[Any]:
    kind = str(chunk.type)
    if kind == "bool":
        return _numbers(chunk.cast("uint8")).astype(np.bool_)
    if kind not in _NUMBERS:
        raise ValueError(f"it holds {kind}")
    values = _buffer(chunk.buffers()[1], _NUMBERS[kind])[chunk.offset : chunk.offset + len(chunk)]
    if chunk.null_count:
        values = np.where(_is_null(chunk), np.zeros((), values.dtype), values)
    return values


def _list_lengths(chunk: Any) -> NDArray[np.int64]:
    if hasattr(chunk, "offsets"):
        return np.diff(_numbers(chunk.offsets)).astype(np.int64)
    return np.full(len(chunk), chunk.type.list_size, np.int64)


def _entries(values: Any) -> NDArray[Any]:
    """Return the entries of lists: numbers, or lists of one length."""
    if "list<" not in str(values.type).partition(" ")[0]:
        return _numbers(_plain(values))
    lengths = _list_lengths(values)
    if len(lengths) and lengths.min() != lengths.max():
        raise ValueError("its lists have entries of unlike lengths")
    width = int(lengths[0]) if len(lengths) else 0
    return _entries(values.flatten()).reshape(len(values), width)


def _ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Any]]:
    """Yield (lengths, numbers of all values) for blocks of rows, each a range of values."""
    for first in range(0, len(starts), _BLOCK_ROWS):
        start, length = starts[first : first + _BLOCK_ROWS], lengths[first : first + _BLOCK_ROWS]
        before = np.cumsum(length) - length
        yield length, np.repeat(start - before, length) + np.arange(int(length.sum()))


def _gathered(parts: list[_Rows], take: NDArray[np.int64]) -> Iterator[Block]:
    """Yield blocks of rows in another order."""
    lengths = np.concatenate([np.diff(offsets) for offsets, _ in parts]).astype(np.int64)
    if int(lengths.mean()) < _SHORT_BYTES:  # a copy of all, from which numpy gathers the bytes of many rows at once
        whole = np.concatenate([content[int(at[0]) : int(at[-1])] for at, content in parts])
        starts = np.cumsum(lengths) - lengths
        for length, places in _ranges(starts[take], lengths[take]):
            yield length, whole[places]
        return
    counts = [len(offsets) - 1 for offsets, _ in parts]
    first_rows = np.cumsum(counts) - counts
    starts = np.concatenate([offsets[:-1] for offsets, _ in parts]).astype(np.int64)
    views = [content.data for _, content in parts]
    step = max(1, min(_BLOCK_ROWS, _GATHERED_BYTES // int(lengths.mean())))
    for first in range(0, len(take), step):
        rows = take[first : first + step]
        part = np.searchsorted(first_rows, rows, side="right") - 1
        start, length = starts[rows], lengths[rows]
        places = zip(part.tolist(), start.tolist(), (start + length).tolist(), strict=True)
        yield length, b"".join([views[number][at:end] for number, at, end in places])
