"""What all readers of one run know of a cache: each sample's row and label, and each reader's counts.

    | why filling stopped, 1 word | readers x (hits, misses, rows, bytes) | row of each sample | its shape | its label |

A word is 0 for not known, or (segment + 1) << 48 | offset of the row.

The daemon makes the state, and all readers map it. A reader writes a sample's word after its label, once it has checked
or written the row in this run. From then on no reader examines the sample's file, parses its line or computes the
checksum until the run ends. Writers of one sample write the same row, or an equally good one. Each reader counts in a
line of its own, which it holds by a lock that dies with it and that no process waits for.

The state is in a scratch file: one without a name in the cache's folder, whose pages the kernel may drop. They are
reserved when it is made, so that a disk that fills up later is no SIGBUS. No other process can reach it, so none can
truncate it. It is gone with its last descriptor. Where the disk has no space for it, it is memory, and counts as the
source's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefetchd.ring.segment import keep_from_children


def make_scratch(folder: Path, n_bytes: int) -> int:
    """Return a descriptor, the caller's, of `n_bytes` zero bytes."""
    try:
        fd = _unnamed(folder)
    except OSError:
        return _memory(n_bytes)
    try:
        os.posix_fallocate(fd, 0, n_bytes)
    except OSError:
        os.close(fd)
        return _memory(n_bytes)
    return fd


def is_memory(fd: int) -> bool:
    """Return whether the file behind `fd` counts as memory."""
    return os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:")


def _unnamed(folder: Path) -> int:
    with contextlib.suppress(OSError):  # some file systems cannot
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fd, path = tempfile.mkstemp(prefix="state.", dir=folder)
    os.unlink(path)
    return fd


def _memory(n_bytes: int) -> int:
    fd = os.memfd_create("prefetchd-cache", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(fd, 0, n_bytes)
    except BaseException:
        os.close(fd)
        raise
    return fd


OFFSET_BITS = 48
OFFSET_MASK = (1 << OFFSET_BITS) - 1
LIMIT_REACHED = -1  # why filling stopped, beside error numbers
_N_READERS = 256
_HITS, _MISSES, _ROWS, _BYTES = range(4)


@dataclass(frozen=True, slots=True)
class Counts:
    """What all readers did in this run: rows served from the cache, samples decoded, rows and bytes written."""

    hits: int
    misses: int
    rows: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class StateShape:
    """What the state's layout follows from; plain values, so that a handle can carry them."""

    n_samples: int
    has_shapes: bool
    label_shape: tuple[int, ...]
    label_dtype: str

    @property
    def parts(self) -> list[tuple[tuple[int, ...], str]]:
        """Shape and dtype of each part, in order, with no gaps: the first ones are of whole words."""
        label_shape = (self.n_samples, *self.label_shape)
        shapes = (self.n_samples if self.has_shapes else 0,)
        return [
            ((1,), "int64"),
            ((_N_READERS, 4), "int64"),
            ((self.n_samples,), "int64"),
            (label_shape, self.label_dtype),
            (shapes, "uint32"),
        ]

    @property
    def n_bytes(self) -> int:
        """Of the whole file."""
        return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in self.parts)


def make_state(folder: Path, shape: StateShape) -> int:
    """Return a descriptor, the caller's, of the empty state of a run."""
    return make_scratch(folder, shape.n_bytes)


class RunState:
    """The state, mapped. The daemon looks at it, readers write to it. Owns the descriptor.

    Attributes:
        words: (n_samples,) int64, where each sample's row is.
        labels: (n_samples, ...), of samples whose word is set.
        shapes: (n_samples,) uint32, height << 16 | width of kept images, where they differ; else empty.
    """

    def __init__(self, fd: int, shape: StateShape) -> None:
        self._fd = fd
        self._memory = mmap.mmap(fd, shape.n_bytes)
        keep_from_children(self._memory)
        views: list[NDArray[Any]] = []
        at = 0
        for dimensions, dtype in shape.parts:
            views.append(np.ndarray(dimensions, dtype, self._memory, at))
            at += views[-1].nbytes
        self._stop, self._lines, self.words, self.labels, self.shapes = views
        self._mine: NDArray[np.int64] | None = None

    def claim_line(self) -> None:
        """Take a line of counts for this process. Beyond 256 readers there is none, and it does not count."""
        for number in range(_N_READERS):
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    continue
                return
            self._mine = self._lines[number]
            return

    def count(self, *, hits: int = 0, misses: int = 0, rows: int = 0, n_bytes: int = 0) -> None:
        """Add to this process's counts."""
        mine = self._mine
        if mine is None:
            return
        if hits:
            mine[_HITS] += hits
        if misses:
            mine[_MISSES] += misses
        if rows:
            mine[_ROWS] += rows
            mine[_BYTES] += n_bytes

    def counts(self) -> Counts:
        """Return the counts of all readers together."""
        return Counts(*self._lines.sum(axis=0).tolist())

    @property
    def stopped(self) -> int:
        """0 while the cache is being filled; else `LIMIT_REACHED`, or the error number that ended it."""
        return int(self._stop[0])

    def stop_filling(self, why: int) -> None:
        """Stop all readers from writing in this run."""
        self._stop[0] = why

    def set_row(self, sample_id: int, label: Any, height: int, width: int, segment: int, offset: int) -> None:
        """Make a row known to all readers."""
        self.labels[sample_id] = label
        if len(self.shapes):
            self.shapes[sample_id] = height << 16 | width
        self.words[sample_id] = (segment + 1) << OFFSET_BITS | offset

    def close(self) -> None:
        """Give map and descriptor back."""
        self._stop = self._lines = self.words = self.labels = self.shapes = np.empty(0, np.int64)
        self._mine = None
        self._memory.close()
        os.close(self._fd)
