"""Ragged sequences into rows of one length, in a reader: what Keras' `pad_sequences` makes, straight into the slot.

Short rows are gathered together: one index for all tokens of a chunk, then the padding over the tokens that the index
fetched beyond each sequence. Long rows are copied one by one: their index costs more than the loop (measured for 320
rows of 80: 155 against 215 microseconds).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.config.options import Config
from prefetchd.data.arrays.array_set import ArraySet
from prefetchd.data.arrays.mapped_rows import MappedRows, MappedSet
from prefetchd.data.arrays.npy import ArrayFile

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GATHERED_LENGTH = 128


class SequenceRows:
    """The sequences of a file of tokens, cut and padded to the length of the rows that they are written into."""

    def __init__(self, config: Config, tokens: ArrayFile, offsets: ArrayFile) -> None:
        self._pad_front = config.padding == "pre"
        self._cut_front = config.truncating == "pre"
        self._pad_value = np.dtype(tokens.dtype_name).type(config.pad_value)
        self._tokens = MappedRows(tokens, shuffled=config.shuffle)
        self._offsets = MappedSet(ArraySet(offsets.name, (offsets,)), shuffled=config.shuffle)
        self._offset_dtype = np.dtype(offsets.dtype_name)
        self._token = np.dtype((np.void, tokens.row_bytes))
        self._swap = not np.dtype(tokens.dtype).isnative

    def close(self) -> None:
        """Give descriptors and maps back."""
        self._tokens.close()
        self._offsets.close()

    def confirm(self) -> None:
        """Raise `ManifestError` if a file that was read since the last call is not as it was."""
        self._tokens.confirm()
        self._offsets.confirm()

    def fill(self, ids: NDArray[np.int64], out: NDArray[Any]) -> NDArray[np.int64]:
        """Write the sequences numbered `ids` into `out`, (len(ids), max_length, ...); return their lengths there.

        Raises:
            ManifestError: if a file is not as it was.
            OSError: if a single sequence cannot be read.
        """
        if len(ids) == 1:
            return np.array([self.read(int(ids[0]), out[0])])
        return self.gather(ids, out)

    def gather(self, ids: NDArray[np.int64], out: NDArray[Any]) -> NDArray[np.int64]:
        """Write the sequences numbered `ids` into `out`, (len(ids), max_length, ...); return their lengths there.

        Raises:
            ManifestError: if a file is not as it was.
        """
        bounds = np.empty((2, len(ids)), self._offset_dtype)
        self._offsets.gather(np.concatenate((ids, ids + 1)), bounds.reshape(-1))
        max_length = out.shape[1]
        first, kept, column = self._places(bounds[0].astype(np.int64), bounds[1].astype(np.int64), max_length)
        self._tokens.prepare(first, kept)
        if max_length <= _GATHERED_LENGTH and len(self._tokens.rows):
            columns = np.arange(max_length)
            index = (first - column)[:, None] + columns
            np.take(self._tokens.rows, index, out=self._raw(out), mode="clip")
            if self._swap:
                out.byteswap(inplace=True)
            beside = columns < column[:, None] if self._pad_front else columns >= kept[:, None]
            np.copyto(out, self._pad_value, where=beside.reshape(*beside.shape, *[1] * (out.ndim - 2)))
        else:
            out[...] = self._pad_value
            places = zip(out, self._raw(out), first.tolist(), kept.tolist(), column.tolist(), strict=True)
            for row, raw, start, n, to in places:
                raw[to : to + n] = self._tokens.rows[start : start + n]
                if self._swap:
                    row[to : to + n].byteswap(inplace=True)
        self._tokens.finish()
        return kept

    def read(self, sample_id: int, out: NDArray[Any]) -> int:
        """Write one sequence into `out`, (max_length, ...), without touching a map; return its length there.

        Raises:
            ManifestError: if a file is not as it was.
            OSError: if it cannot be read.
        """
        bounds = np.empty((2, 1), self._offset_dtype)
        for place in (0, 1):
            self._offsets.read(sample_id + place, bounds[place])
        first, kept, column = self._places(bounds[0].astype(np.int64), bounds[1].astype(np.int64), len(out))
        n, to = int(kept[0]), int(column[0])
        out[...] = self._pad_value
        self._tokens.read(int(first[0]), out[to : to + n])
        if self._swap:
            out[to : to + n].byteswap(inplace=True)
        return n

    def _places(
        self, starts: NDArray[np.int64], ends: NDArray[np.int64], max_length: int
    ) -> tuple[NDArray[np.int64], ...]:
        """Return each sequence's first token that is kept, how many are, and the column that it goes to."""
        kept = np.minimum(ends - starts, max_length)
        first = ends - kept if self._cut_front else starts
        column = max_length - kept if self._pad_front else np.zeros_like(kept)
        return first, kept, column

    def _raw(self, out: NDArray[Any]) -> NDArray[np.void]:
        """Return `out` as (rows, max_length) of void items, a token each; `MappedRows` says why."""
        if out.ndim == 2:
            return out.view(self._token)
        return out.reshape(-1).view(self._token).reshape(out.shape[:2])
