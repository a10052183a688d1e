"""Ragged sequences in files: one array of all tokens end to end, and one of where each sequence begins.

Sequence i is `tokens[offsets[i]:offsets[i + 1]]`. Readers cut and pad it to one length as Keras' `pad_sequences` does,
with its defaults (`pre`, `pre`, 0). The daemon reads all offsets once, in blocks, to check them, and no tokens.
"""

from __future__ import annotations

import logging
import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.config.options import Config
from prefetchd.data.arrays.array_set import (
    ArraySet,
    array_set_from_wire,
    combined_digest,
    open_array_set,
    read_table,
    write_table,
)
from prefetchd.data.arrays.mapped_rows import MappedSet
from prefetchd.data.arrays.npy import ArrayFile, open_npy, opened
from prefetchd.data.arrays.sequence_rows import SequenceRows
from prefetchd.data.arrays.source import MappedSource, check_counts, read_rows, refuse_far_labels
from prefetchd.data.files import read_exactly
from prefetchd.data.kinds import (
    COLUMN_OPTIONS,
    IMAGE_OPTIONS,
    LIST_OPTIONS,
    refuse_given,
)
from prefetchd.data.source import Bucketing, Saving
from prefetchd.errors import ConfigError, ManifestError, one_line
from prefetchd.ring.layout import FieldLayout, xy_fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

log = logging.getLogger("prefetchd")

_BLOCK_BYTES = 1 << 20
# What y becomes where the length goes with it.
_WITH_LENGTH = {
    **dict.fromkeys(("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "int64"), "int64"),
    "float16": "float32", "float32": "float32", "float64": "float64",
}  # fmt: skip


class SequenceSource(MappedSource):
    """Sequences of tokens, padded or truncated, with labels or their own numbers as y."""

    _kind = "sequences"

    def __init__(
        self, config: Config, tokens: ArraySet, offsets: ArraySet, labels: ArraySet | None, max_length: int, fd: int
    ) -> None:
        """Take over `fd`, which has the three for the readers. Use `open` or `attach`."""
        super().__init__((tokens, offsets, labels), fd)
        self._config = config
        self._tokens = tokens
        self._offsets = offsets
        self._labels = labels
        self._max_length = max_length
        self._rows: SequenceRows
        self._label_rows: MappedSet | None = None

    @classmethod
    def open(cls, config: Config) -> SequenceSource:
        """Check headers, sizes and all offsets of what the configuration names."""
        assert config.offsets is not None
        refuse_given(config, IMAGE_OPTIONS, "images")
        refuse_given(config, LIST_OPTIONS, "lists of images")
        refuse_given(config, COLUMN_OPTIONS, "tables and .npz files")
        refuse_far_labels(config)
        tokens, offsets = single_array(config.source, "tokens"), single_array(config.offsets, "offsets")
        longest = check_offsets(offsets.files[0], tokens.files[0])
        max_length = config.length_buckets[-1] if config.length_buckets else config.max_length or max(1, longest)
        labels = None if config.labels is None else open_array_set(config.labels)
        check_counts(tokens, max(0, offsets.n_rows - 1), labels)
        check_pad_value(config, tokens)
        table = [tokens.to_wire(), offsets.to_wire(), None if labels is None else labels.to_wire()]
        source = cls(config, tokens, offsets, labels, max_length, -1)
        source._check_lengths()
        tokens.check_batch(config.batch_size * max_length)
        if labels is not None:
            labels.check_batch(config.batch_size)
        source._table_fd = write_table(table)
        digest = combined_digest("sequences", tokens, offsets, labels)
        source.facts = source._make_facts(
            digest,
            offsets.n_rows - 1,
            source._fields(),
            bucket_fields=tuple(source._fields(length) for length in config.length_buckets),
        )
        return source

    @classmethod
    def attach(cls, config: Config, handle: dict[str, Any], fds: list[int]) -> SequenceSource:
        """Map the files, in a reader."""
        tokens, offsets, labels = (None if wire is None else array_set_from_wire(wire) for wire in read_table(fds[0]))
        assert tokens is not None
        assert offsets is not None
        source = cls(config, tokens, offsets, labels, handle["max_length"], fds[0])
        source.facts = source._make_facts(handle["digest"], offsets.n_rows - 1, source._fields())
        source._rows = SequenceRows(config, tokens.files[0], offsets.files[0])
        source._maps.append(source._rows)
        if labels is not None:
            source._label_rows = MappedSet(labels, shuffled=config.shuffle)
            source._maps.append(source._label_rows)
        return source

    def handle(self) -> tuple[dict[str, Any], list[int]]:
        """Plain values and descriptors from which a reader attaches."""
        handle = {"kind": self._kind, "digest": self.facts.digest, "max_length": self._max_length}
        return handle, [self._table_fd]

    def _fields(self, length: int | None = None) -> tuple[FieldLayout, ...]:
        """Return the fields, of the bucket of that length if it is given.

        The option `lengths` makes x, (max_length, *token shape), or y one longer.
        """
        tokens, labels, lengths = self._tokens, self._labels, self._config.lengths
        x = ((length or self._max_length) + (lengths == "x"), *tokens.row_shape), tokens.dtype_name
        shape, dtype = ((), "int64") if labels is None else (labels.row_shape, labels.dtype_name)
        y = (shape, dtype) if lengths != "y" else ((math.prod(shape) + 1,), _WITH_LENGTH[dtype])
        return xy_fields(x, y)

    def put_into_buckets(self) -> Bucketing:
        """Return the first bucket that each sequence fits in; the last one for what is longer, which is cut."""
        starts = read_rows(self._offsets).astype(np.int64, copy=False)
        lengths = np.diff(starts)
        buckets = np.array(self._config.length_buckets, np.int64)
        numbers = np.minimum(np.searchsorted(buckets, lengths), len(buckets) - 1).astype(np.uint8)

        def saving(ids: NDArray[np.int64] | slice) -> Saving | None:
            served = lengths[ids]
            kept = int(np.minimum(served, buckets[-1]).sum())
            padded = int(np.bincount(numbers[ids], minlength=len(buckets)) @ buckets)
            return Saving("padding", 1 - kept / (len(served) * int(buckets[-1])), 1 - kept / padded)

        n_cut = int((lengths > buckets[-1]).sum())
        if n_cut:
            log.info("%d of %d sequences are longer than %d, and are cut", n_cut, len(lengths), buckets[-1])
        names = [str(length) for length in self._config.length_buckets]
        return Bucketing(numbers, names, saving, f"{names[-1]} long")

    def where(self, sample_id: int) -> str:
        """File and number of a sequence."""
        return f"{self._tokens.name} sequence {sample_id}"

    def labels(self) -> NDArray[Any] | None:
        """Return the labels, read whole; see `MappedSource.labels`."""
        return None if self._labels is None else read_rows(self._labels)

    def _fill(self, epoch: int, ids: NDArray[np.int64], arrays: Sequence[NDArray[Any]]) -> None:
        del epoch
        x, y = arrays
        tokens = x[:, 1:] if self._config.lengths == "x" else x
        labels = y if self._config.lengths != "y" else self._empty_labels(len(ids))
        lengths = self._rows.fill(ids, tokens)
        if self._label_rows is None:
            labels[:] = ids
        else:
            self._label_rows.fill(ids, labels)
        if self._config.lengths == "x":
            x[:, 0] = lengths
        elif self._config.lengths == "y":
            y[:, :-1] = labels.reshape(len(ids), -1)
            y[:, -1] = lengths

    def _empty_labels(self, n: int) -> NDArray[Any]:
        if self._labels is None:
            return np.empty(n, np.int64)
        return np.empty((n, *self._labels.row_shape), self._labels.dtype_name)

    def _check_lengths(self) -> None:
        """Raise `ConfigError` if the lengths do not fit where they are to go."""
        where = self._config.lengths
        shape, dtype = ((), "int64") if self._labels is None else (self._labels.row_shape, self._labels.dtype_name)
        if where == "y" and (len(shape) > 1 or dtype not in _WITH_LENGTH):
            raise ConfigError(
                f"cannot put lengths into y: a label of {shape} {dtype} takes no length beside it; "
                'use lengths="x", or labels that are numbers or vectors'
            )
        if where == "x":
            tokens = np.dtype(self._tokens.dtype_name)
            largest = np.iinfo(tokens).max if tokens.kind in "iu" else 0
            if tokens.kind == "f":
                largest = 2 ** (np.finfo(tokens).nmant + 1)
            if self._tokens.row_shape or largest < self._max_length:
                raise ConfigError(
                    f"cannot put lengths of up to {self._max_length} into x: its tokens are {tokens.name}, of shape "
                    f'{self._tokens.row_shape}; use lengths="y", or tokens that are numbers of a larger dtype'
                )


def single_array(path: str, what: str) -> ArraySet:
    """Return the array of one `.npy` file."""
    if os.path.isdir(os.path.expanduser(path)) or not path.lower().endswith(".npy"):
        raise ManifestError(f"cannot take {what} from {one_line(path)}: they must be one array; give a .npy file")
    file = open_npy(path)
    return ArraySet(file.name, (file,))


def check_pad_value(config: Config, tokens: ArraySet) -> None:
    """Raise `ConfigError` unless the tokens can hold `pad_value`."""
    dtype, value = np.dtype(tokens.dtype_name), config.pad_value
    fits = True
    if dtype.kind in "iu":
        fits = value.is_integer() and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max
    elif dtype.kind == "b":
        fits = value in (0, 1)
    if not fits:
        raise ConfigError(
            f"cannot pad {tokens.name} with pad_value={value:g}: it is {dtype.name}; give a value of that dtype"
        )


def check_offsets(offsets: ArrayFile, tokens: ArrayFile) -> int:
    """Read all offsets, in blocks, and return the length of the longest sequence.

    Raises:
        ManifestError: unless they are whole numbers in one column that never fall and stay within the tokens.
    """
    dtype = np.dtype(offsets.dtype)
    if offsets.row_shape or dtype.kind not in "iu":
        raise ManifestError(
            f"cannot use {offsets.name} as offsets: it is {offsets.shape} {dtype.name}; give whole numbers in one "
            "dimension: np.save(path, np.concatenate(([0], np.cumsum(lengths))))"
        )
    longest, before = 0, 0
    with opened(offsets.path, offsets.name) as fd:
        for start in range(0, offsets.n_bytes, _BLOCK_BYTES):
            raw = read_exactly(
                fd, offsets.offset_bytes + start, min(_BLOCK_BYTES, offsets.n_bytes - start), offsets.name
            )
            block = np.frombuffer(raw, dtype)
            first = start // dtype.itemsize
            outside = (block > tokens.n_rows) | (block < 0)
            if outside.any():
                place = int(outside.argmax())
                raise ManifestError(
                    f"cannot use {offsets.name}: offsets[{first + place}] is {block[place]}, and {tokens.name} has "
                    f"{tokens.n_rows} tokens; make both anew from the same sequences"
                )
            block = block.astype(np.int64)
            lengths = np.diff(block, prepend=block[0] if not start else before)
            if (lengths < 0).any():
                place = int((lengths < 0).argmax())
                raise ManifestError(
                    f"cannot use {offsets.name}: offsets[{first + place}] = {block[place]} is less than the one "
                    f"before it; sequences must follow one another: np.concatenate(([0], np.cumsum(lengths)))"
                )
            longest, before = max(longest, int(lengths.max())), int(block[-1])
    offsets.check_path()
    return longest
