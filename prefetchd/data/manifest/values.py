"""The labels and the paths of all samples of a list at once, for what chooses samples by them. In the daemon, at open.

Lines of plain text with one whole number, and those of a directory, are taken apart by numpy, a block at a time. Other
lists, and lines that `block_check` is not sure of, are parsed one by one, some microseconds each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prefetchd.data.files import read_exactly
from prefetchd.data.manifest.block_check import BlockCheck
from prefetchd.data.manifest.dialect import Dialect
from prefetchd.errors import ManifestError
from prefetchd.sampling.hashes import hash_keys, hash_spans

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK_BYTES = 1 << 19
_LONGEST_DIGITS = 18  # so many digits fit int64
_TAB, _ZERO, _NINE, _MINUS = 9, 48, 57, 45


class Part(NamedTuple):
    """The samples of a block of lines.

    Attributes:
        block: the lines.
        starts, ends: (samples,) where each line begins, and its line break.
        labels: (samples,) int64.
        path_starts, path_ends: (samples,) where the path is.
        sure: (samples,) whether the line is as plain as that; else the others mean nothing.
    """

    block: bytes
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    labels: NDArray[np.int64]
    path_starts: NDArray[np.int64]
    path_ends: NDArray[np.int64]
    sure: NDArray[np.bool_]


def is_plain(dialect: Dialect) -> bool:
    """Return whether the lines of a list are text with one number, or those of a directory."""
    return dialect.label_kind == "number" and dialect.label_count == 1 and dialect.kind in ("text", "tree")


def parts(dialect: Dialect, fd: int, start: int, name: str) -> Iterator[Part]:
    """Yield the samples of a plain list, from the byte `start` on, block after block.

    Raises:
        ManifestError: if the file became shorter.
    """
    check, end, rest = BlockCheck(dialect), os.fstat(fd).st_size, b""
    while start < end:
        raw = read_exactly(fd, start, min(_BLOCK_BYTES, end - start), name)
        start += len(raw)
        block = rest + raw + (b"" if start < end or raw.endswith(b"\n") else b"\n")
        at = block.rfind(b"\n") + 1
        block, rest = block[:at], block[at:]
        if block:
            yield _part(dialect, block, check)


def _part(dialect: Dialect, block: bytes, check: BlockCheck) -> Part:
    checked = check(block)
    starts, ends = checked.starts, checked.ends
    codes = np.frombuffer(block, np.uint8)
    sure = np.ones(len(starts), bool)
    sure[checked.doubtful] = False
    if dialect.kind == "tree":
        tabs = np.flatnonzero(codes == _TAB)
        labels, before = _numbers(codes, starts, tabs[np.searchsorted(tabs, starts)])
        path_starts, path_ends = tabs[np.searchsorted(tabs, starts)] + 1, ends
        sure &= before < starts
        if b"\\" in block:  # some paths are written with escapes
            sure[:] = False
    else:
        labels, before = _numbers(codes, starts, ends)
        path_starts, path_ends = starts, before
        # One blank or tab between path and label: more would end the path elsewhere.
        sure &= (before > starts) & np.isin(codes[before], (32, _TAB)) & (codes[np.maximum(before - 1, 0)] > 32)
        sure &= before < ends - 1
    return Part(block, starts, ends, labels, path_starts, path_ends, sure)


def _numbers(
    codes: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the whole number that ends before each of `ends`, and the place of the byte before the number.

    Of one that is too long, or is no number, that is a place within it.
    """
    at = ends - 1
    values = np.zeros(len(ends), np.int64)
    running = np.ones(len(ends), bool)
    power = 1
    for _ in range(_LONGEST_DIGITS):
        found = codes[np.maximum(at, 0)]
        running &= (found >= _ZERO) & (found <= _NINE) & (at >= starts)
        if not running.any():
            break
        values += np.where(running, (found.astype(np.int64) - _ZERO) * power, 0)
        at -= running
        power *= 10
    minus = (codes[np.maximum(at, 0)] == _MINUS) & (at >= starts) & (at < ends - 1)
    return np.where(minus, -values, values), at - minus


def label_array(
    blocks: Iterator[Part], n_samples: int, parse: Callable[[bytes], Any], changed: ManifestError
) -> NDArray[np.int64]:
    """Return the label of each sample, (samples,); `parse` gives that of a line which is not plain."""
    found = np.empty(n_samples, np.int64)
    first = 0
    for part in blocks:
        n = len(part.starts)
        if first + n > n_samples:
            raise changed
        for row in np.flatnonzero(~part.sure).tolist():
            part.labels[row] = parse(part.block[part.starts[row] : part.ends[row]])
        found[first : first + n] = part.labels
        first += n
    if first < n_samples:
        raise changed
    return found


def path_hashes(blocks: Iterator[Part], parse: Callable[[bytes], bytes]) -> Iterator[NDArray[np.uint64]]:
    """Yield the hash of each sample's path, as written; `parse` gives that of a line which is not plain."""
    for part in blocks:
        found = hash_spans(part.block, part.path_starts, np.maximum(part.path_ends, part.path_starts))
        rows = np.flatnonzero(~part.sure)
        if len(rows):
            odd = [parse(part.block[part.starts[row] : part.ends[row]]) for row in rows.tolist()]
            found[rows] = np.concatenate(list(hash_keys(odd)))
        yield found
