"""Rows of packed documents, in a reader: tokens copied from the map, documents and positions beside them.

Short documents are gathered together, by one index for all tokens of some rows. Long ones are copied one by one: their
index would cost more than the loop (`sequence_rows` has the same two ways).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.config.options import Config
from prefetchd.data.arrays.mapped_rows import MappedRows
from prefetchd.data.arrays.npy import ArrayFile
from prefetchd.sampling.packing import Packing, Pieces

if TYPE_CHECKING:
    from numpy.typing import NDArray

NO_DOCUMENT = -1  # the document of padding
_GATHERED_LENGTH = 128
_GATHERED_TOKENS = 1 << 16  # at once: their index and what is made of it take some megabytes


class PackedRows:
    """The rows that `packing` makes of the documents in a file of tokens."""

    def __init__(self, config: Config, tokens: ArrayFile, packing: Packing) -> None:
        assert config.max_length is not None
        self._max_length = config.max_length
        self._pad_value = np.dtype(tokens.dtype_name).type(config.pad_value)
        self._tokens = MappedRows(tokens, shuffled=config.shuffle)
        self._token = np.dtype((np.void, tokens.row_bytes))
        self._swap = not np.dtype(tokens.dtype).isnative
        self._packing = packing

    def close(self) -> None:
        """Give the descriptor and the map back."""
        self._tokens.close()

    def confirm(self) -> None:
        """Raise `ManifestError` if the file was read since the last call and is not as it was."""
        self._tokens.confirm()

    def fill(
        self, epoch: int, ids: NDArray[np.int64], tokens: NDArray[Any], documents: NDArray[Any], positions: NDArray[Any]
    ) -> None:
        """Write the rows numbered `ids` of an epoch.

        Args:
            epoch: its number.
            ids: (n,).
            tokens: (n, max_length, ...), of the file's dtype.
            documents, positions: (n, max_length), whole numbers.

        Raises:
            ManifestError: if the file is not as it was.
            OSError: if a single row, which is read without the map, cannot be read.
        """
        step = max(1, _GATHERED_TOKENS // self._max_length)
        for first in range(0, len(ids), step):
            part = slice(first, first + step)
            pieces = self._packing.pieces(epoch, ids[part])
            arrays = tokens[part], documents[part], positions[part]
            if len(ids) == 1:
                self._read(pieces, *arrays)
                continue
            self._tokens.prepare(pieces.starts, pieces.counts)
            if self._max_length <= _GATHERED_TOKENS and int(pieces.counts.sum()) < _GATHERED_LENGTH * len(
                pieces.counts
            ):
                self._gather(pieces, *arrays)
            else:
                self._copy(pieces, *arrays)
            self._tokens.finish()

    def _gather(self, pieces: Pieces, tokens: NDArray[Any], documents: NDArray[Any], positions: NDArray[Any]) -> None:
        """Write rows by one index of all their tokens; what is missing in a row counts as a piece."""
        n_rows = len(tokens)
        filled = np.bincount(pieces.rows, pieces.counts, n_rows).astype(np.int64)
        ends = pieces.rows.searchsorted(np.arange(n_rows), "right")
        counts = np.insert(pieces.counts, ends, self._max_length - filled)
        starts = np.insert(pieces.starts, ends, 0)
        numbers = np.insert(pieces.documents, ends, NO_DOCUMENT)
        index = np.arange(n_rows * self._max_length) - np.repeat(counts.cumsum() - counts, counts)
        documents.reshape(-1)[:] = np.repeat(numbers, counts)
        positions.reshape(-1)[:] = index
        index += np.repeat(starts, counts)
        np.take(self._tokens.rows, index, out=self._raw(tokens).reshape(-1), mode="clip")
        if self._swap:
            tokens.byteswap(inplace=True)
        if int(filled.min()) < self._max_length:
            beside = documents == NO_DOCUMENT
            positions[beside] = 0
            tokens[beside] = self._pad_value

    def _copy(self, pieces: Pieces, tokens: NDArray[Any], documents: NDArray[Any], positions: NDArray[Any]) -> None:
        """Write rows piece by piece through the map."""
        raw = self._raw(tokens)
        for row, place, start in self._each(pieces, tokens, documents, positions):
            raw[row, place] = self._tokens.rows[start : start + place.stop - place.start]
            if self._swap:
                tokens[row, place].byteswap(inplace=True)

    def _read(self, pieces: Pieces, tokens: NDArray[Any], documents: NDArray[Any], positions: NDArray[Any]) -> None:
        """Write rows piece by piece without touching the map."""
        for row, place, start in self._each(pieces, tokens, documents, positions):
            self._tokens.read(start, tokens[row, place])
            if self._swap:
                tokens[row, place].byteswap(inplace=True)

    def _each(
        self, pieces: Pieces, tokens: NDArray[Any], documents: NDArray[Any], positions: NDArray[Any]
    ) -> Iterator[tuple[int, slice, int]]:
        """Write all but the tokens; yield the row of each piece, the place in it, and its first token. Then pad."""
        n_done = [0] * len(tokens)
        for row, number, start, count in zip(*(each.tolist() for each in pieces), strict=True):
            place = slice(n_done[row], n_done[row] + count)
            documents[row, place] = number
            positions[row, place] = np.arange(count, dtype=positions.dtype)
            yield row, place, start
            n_done[row] += count
        for row, n in enumerate(n_done):
            tokens[row, n:] = self._pad_value
            documents[row, n:] = NO_DOCUMENT
            positions[row, n:] = 0

    def _raw(self, out: NDArray[Any]) -> NDArray[np.void]:
        """Return `out` as (rows, max_length) of void items, a token each; `MappedRows` says why."""
        if out.ndim == 2:
            return out.view(self._token)
        return out.reshape(-1).view(self._token).reshape(out.shape[:2])
