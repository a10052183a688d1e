"""The labels and the paths of all samples of a list at once, for what chooses samples by them. In the daemon, at open.

Lines of text and of tables with one whole number or the name of one class, and those of a directory, are taken apart by
numpy, a block at a time. They were all checked at open, and are not checked again. Other lists, and lines that are not
plain, are parsed one by one, some microseconds each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prefetchd.data.files import read_exactly
from prefetchd.data.manifest.block_check import BlockCheck, find_lines, separator_places
from prefetchd.data.manifest.block_fields import LONGEST_FIELD_BYTES, SURE, hash_labels, read_backwards, word_table
from prefetchd.data.manifest.dialect import Dialect
from prefetchd.errors import ManifestError
from prefetchd.sampling.hashes import hash_keys, hash_spans

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK_BYTES = 1 << 19
_LONGEST_DIGITS = 18  # so many digits fit int64
_NO_LABEL_BYTES = 32  # padding before the first label: `hash_labels` reads 32 bytes back
_TAB, _RETURN, _ZERO, _NINE, _MINUS = 9, 13, 48, 57, 45


class Part(NamedTuple):
    """The samples of a block of lines.

    Attributes:
        block: the lines.
        starts, ends: (samples,) where each line begins, and its line break.
        labels: (samples,) int64; of names of classes their hashes, uint64.
        path_starts, path_ends: (samples,) where the path is.
        sure: (samples,) whether the line is as plain as that; else the others mean nothing.
    """

    block: bytes
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    labels: NDArray[Any]
    path_starts: NDArray[np.int64]
    path_ends: NDArray[np.int64]
    sure: NDArray[np.bool_]


def is_plain(dialect: Dialect) -> bool:
    """Return whether lines have one number or the name of one class, as text, in a table or in a directory."""
    if dialect.kind == "tree":
        return dialect.label_kind == "number"
    return dialect.label_kind in ("number", "class") and dialect.label_count == 1 and dialect.kind in ("text", "table")


def parts(dialect: Dialect, fd: int, start: int, name: str) -> Iterator[Part]:
    """Yield the samples of a plain list, from the byte `start` on, block after block.

    Raises:
        ManifestError: if the file became shorter.
    """
    # A word for a missing label changes what a line means, and only the check finds it.
    check = None if dialect.missing is None else BlockCheck(dialect)
    end, rest = os.fstat(fd).st_size, b""
    while start < end:
        raw = read_exactly(fd, start, min(_BLOCK_BYTES, end - start), name)
        start += len(raw)
        block = rest + raw + (b"" if start < end or raw.endswith(b"\n") else b"\n")
        at = block.rfind(b"\n") + 1
        block, rest = block[:at], block[at:]
        if block:
            yield _part(dialect, block, check)


def _part(dialect: Dialect, block: bytes, check: BlockCheck | None) -> Part:
    codes = np.frombuffer(block, np.uint8)
    lines = find_lines(block, codes, hash_rows=dialect.hash_rows)
    starts, ends = lines.starts, lines.ends
    sure = np.ones(len(starts), bool) if dialect.kind == "tree" else lines.plain
    if check is not None:
        sure[check(block).doubtful] = False
    if not len(starts):
        return Part(block, starts, ends, np.empty(0, np.int64), starts, ends, sure)
    labels: NDArray[Any]
    stops = ends - (codes[ends - 1] == _RETURN)  # where the last field ends
    if dialect.kind == "tree":
        tabs = np.flatnonzero(codes == _TAB)
        labels, before = _numbers(codes, starts, tabs[np.searchsorted(tabs, starts)])
        path_starts, path_ends = tabs[np.searchsorted(tabs, starts)] + 1, ends
        sure &= before < starts
        if b"\\" in block:  # some paths are written with escapes
            sure[:] = False
        return Part(block, starts, ends, labels, path_starts, path_ends, sure)
    if dialect.kind == "table":
        last = dialect.columns - 1
        separators = separator_places(codes, ord(dialect.separator), starts, ends, last, sure)
        spans = [
            (starts if not column else separators[column - 1] + 1, stops if column == last else separators[column])
            for column in (dialect.x, dialect.y[0])
        ]
        (path_starts, path_ends), (label_starts, label_ends) = spans
        sure &= (path_ends > path_starts) & _is_bare(codes, path_starts, path_ends)
    elif dialect.label_kind == "number":
        _, before = _numbers(codes, starts, stops)
        path_starts, path_ends, label_starts, label_ends = starts, before, before + 1, stops
    else:
        states, before = read_backwards(word_table(), codes, stops, LONGEST_FIELD_BYTES)
        sure &= states == SURE
        path_starts, path_ends, label_starts, label_ends = starts, before, before + 1, stops
    if dialect.kind == "text":
        # One blank or tab between path and label: more would end the path elsewhere.
        sure &= (
            (path_ends > starts) & np.isin(codes[path_ends], (32, _TAB)) & (codes[np.maximum(path_ends - 1, 0)] > 32)
        )
    sure &= label_ends > label_starts
    if dialect.label_kind == "number":
        labels, before = _numbers(codes, label_starts, label_ends)
        sure &= before == label_starts - 1
    else:
        sure &= _is_bare(codes, label_starts, label_ends)
        labels, has_hash = hash_labels(block, label_starts, label_ends)
        sure &= has_hash
    return Part(block, starts, ends, labels, path_starts, path_ends, sure)


def _is_bare(codes: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether no white space stands at the ends of each field; places beyond the block mean its last byte."""
    most = len(codes) - 1
    is_bare: NDArray[np.bool_] = (codes[np.minimum(starts, most)] > 32) & (codes[np.maximum(ends - 1, 0)] > 32)
    return is_bare


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


class ClassTable:
    """The numbers of classes by the hashes of their names."""

    def __init__(self, classes: Sequence[bytes]) -> None:
        ends = _NO_LABEL_BYTES + np.cumsum(np.fromiter(map(len, classes), np.int64, len(classes)))
        starts = np.concatenate(([_NO_LABEL_BYTES], ends[:-1]))
        hashes, has_hash = hash_labels(b" " * _NO_LABEL_BYTES + b"".join(classes), starts, ends)
        numbers = np.flatnonzero(has_hash)
        self._order = numbers[np.argsort(hashes[numbers])]
        self._hashes = hashes[self._order]
        self.is_unique = bool((np.diff(self._hashes) != 0).all())

    def numbers(self, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the class of each hash, and whether there is one."""
        if not len(self._hashes):
            return np.zeros(len(hashes), np.int64), np.zeros(len(hashes), bool)
        at = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        return self._order[at], self._hashes[at] == hashes


class LabelArray:
    """The label of each sample, taken from part after part.

    Args:
        n_samples: how many there are.
        parse: gives the label of a line which is not plain.
        changed: raised if lines are others than there were.
        classes: where labels are names of classes.
    """

    def __init__(
        self,
        n_samples: int,
        parse: Callable[[bytes], Any],
        changed: ManifestError,
        classes: ClassTable | None = None,
    ) -> None:
        self._found = np.empty(n_samples, np.int64)
        self._n_found = 0
        self._parse = parse
        self._changed = changed
        self._classes = classes

    def add(self, part: Part) -> None:
        """Take the labels of a part; raises if it is more than there was."""
        n = len(part.starts)
        if self._n_found + n > len(self._found):
            raise self._changed
        labels, sure = part.labels, part.sure
        if self._classes is not None:
            labels, is_class = self._classes.numbers(labels)
            sure = sure & is_class
        for row in np.flatnonzero(~sure).tolist():
            labels[row] = self._parse(part.block[part.starts[row] : part.ends[row]])
        self._found[self._n_found : self._n_found + n] = labels
        self._n_found += n

    def whole(self) -> NDArray[np.int64]:
        """Return the labels, (samples,); raises if some are missing."""
        if self._n_found < len(self._found):
            raise self._changed
        return self._found


def path_hashes(part: Part, parse: Callable[[bytes], bytes]) -> NDArray[np.uint64]:
    """Return the hash of each sample's path, as written; `parse` gives that of a line which is not plain."""
    starts, ends = (np.where(part.sure, each, part.starts) for each in (part.path_starts, part.path_ends))
    found = hash_spans(part.block, starts, ends)
    rows = np.flatnonzero(~part.sure)
    if len(rows):
        odd = [parse(part.block[part.starts[row] : part.ends[row]]) for row in rows.tolist()]
        found[rows] = np.concatenate(list(hash_keys(odd)))
    return found
