"""The heads of a column's pages, which pyarrow does not report. `row_group` calls it, in readers; holds no state.

pyarrow decompresses a page whole, so the largest page decides what reading takes. A dictionary's page says how many
different values there are. The format is `PageHeader` of Parquet's `parquet.thrift`, in Thrift's compact protocol.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any, NamedTuple

_HEAD_BYTES = (256, 32 << 10)  # read first; and where a head does not fit, as with long statistics
_TYPE, _UNCOMPRESSED_BYTES, _COMPRESSED_BYTES, _DICTIONARY_HEAD = 1, 2, 3, 7
_DICTIONARY_PAGE = 2
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 12
_MAX_DEPTH = 8


class PageHead(NamedTuple):
    """One page: its bytes before and after compression, its head's own, and a dictionary's number of values."""

    uncompressed_bytes: int
    compressed_bytes: int
    head_bytes: int
    n_dictionary: int | None


def read_page_heads(fd: Any, start: int, n_bytes: int) -> list[PageHead] | None:
    """Return the heads of all pages in `n_bytes` of a file from `start` on; `None` if they cannot be made out.

    `fd` is a descriptor, or a `row_group.FarFile`.

    Raises:
        OSError: if the file cannot be read.
    """
    read = partial(os.pread, fd) if isinstance(fd, int) else fd.pread
    heads = []
    end = start + n_bytes
    while start < end:
        head = None
        for size in _HEAD_BYTES:
            head = page_head(read(size, start))
            if head is not None:
                break
        if head is None:
            return None
        heads.append(head)
        start += head.head_bytes + head.compressed_bytes  # both are checked: each step moves on
    return heads


def page_head(raw: bytes) -> PageHead | None:
    """Return the head of a page that `raw` starts with; `None` if it is none, or longer than `raw`."""
    try:
        fields, end = _struct(raw, 0, 0)
        n_dictionary = None
        if fields[_TYPE] == _DICTIONARY_PAGE:
            dictionary = fields[_DICTIONARY_HEAD]
            if not isinstance(dictionary, dict):
                return None
            n_dictionary = dictionary[1]
        found = PageHead(fields[_UNCOMPRESSED_BYTES], fields[_COMPRESSED_BYTES], end, n_dictionary)
    except (IndexError, KeyError, ValueError):
        return None
    numbers = (found.uncompressed_bytes, found.compressed_bytes, 0 if n_dictionary is None else n_dictionary)
    if not all(isinstance(number, int) and 0 <= number < 1 << 31 for number in numbers):
        return None
    return found


def _struct(raw: bytes, place: int, depth: int) -> tuple[dict[int, Any], int]:
    """Return the integers and structures of a structure by their fields' numbers, and where it ends."""
    if depth > _MAX_DEPTH:
        raise ValueError
    fields: dict[int, Any] = {}
    number = 0
    while raw[place]:
        kind, step = raw[place] & 15, raw[place] >> 4
        place += 1
        if step:
            number += step
        else:
            number, place = _integer(raw, place)
        if kind in (_I16, _I32, _I64):
            fields[number], place = _integer(raw, place)
        elif kind == _STRUCT:
            fields[number], place = _struct(raw, place, depth + 1)
        elif kind == _BINARY:
            n_bytes, place = _varint(raw, place)
            place += n_bytes
        elif kind in (_BYTE, _DOUBLE):
            place += 1 if kind == _BYTE else 8
        elif kind not in (_TRUE, _FALSE):
            raise ValueError  # heads have no lists and maps
    return fields, place + 1


def _integer(raw: bytes, place: int) -> tuple[int, int]:
    """Return the signed integer at `place`, and where it ends."""
    value, place = _varint(raw, place)
    return value >> 1 ^ -(value & 1), place


def _varint(raw: bytes, place: int) -> tuple[int, int]:
    """Return the number at `place`, 7 bits a byte with the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = raw[place]
        place += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, place
