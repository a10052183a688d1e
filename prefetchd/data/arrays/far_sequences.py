"""Ragged sequences whose tokens are an object: each by a request for its range, cut and padded as in a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.config.options import Config
from prefetchd.data.arrays.array_set import ArraySet, array_set_from_wire, read_table, write_table
from prefetchd.data.arrays.far_file import SmallArray, check_large, far_digest, mapped, open_far_set, open_small
from prefetchd.data.arrays.far_rows import FarRows, Span
from prefetchd.data.arrays.far_source import FarSource
from prefetchd.data.arrays.sequences import check_offsets, check_pad_value
from prefetchd.data.arrays.source import check_counts
from prefetchd.data.kinds import COLUMN_OPTIONS, IMAGE_OPTIONS, LIST_OPTIONS, refuse_given
from prefetchd.data.source import ReserveMemory
from prefetchd.errors import ConfigError, ManifestError
from prefetchd.ring.layout import FieldLayout, xy_fields

if TYPE_CHECKING:
    from numpy.typing import NDArray


class FarSequences(FarSource):
    """Sequences of tokens, padded or truncated, with labels or their own numbers as y."""

    _kind = "sequences"
    _wire_kind = "far_sequences"

    def __init__(
        self, config: Config, tokens: ArraySet, table_fd: int, small: Sequence[SmallArray | None], max_length: int
    ) -> None:
        super().__init__(tokens, table_fd, small)
        self._config = config
        self._max_length = max_length

    @classmethod
    def open(cls, config: Config) -> FarSequences:
        """Check headers, sizes and all offsets of what the configuration names."""
        assert config.offsets is not None
        refuse_given(config, IMAGE_OPTIONS, "images")
        refuse_given(config, LIST_OPTIONS, "lists of images")
        refuse_given(config, COLUMN_OPTIONS, "tables and .npz files")
        tokens = open_far_set(config.source)
        if len(tokens.files) > 1:
            raise ManifestError(f"cannot take tokens from {tokens.name}: they must be one array; give a .npy file")
        if config.lengths != "none" or config.length_buckets:
            raise ConfigError(
                f"cannot use lengths or length_buckets with {tokens.name}: not with sequences in a store; download them"
            )
        small: list[SmallArray | None] = []
        try:
            small.append(offsets := open_small(config.offsets, "offsets"))
            small.append(labels := None if config.labels is None else open_small(config.labels, "labels"))
            longest = check_offsets(offsets.files.files[0], tokens.files[0])
            n_samples = max(0, offsets.files.n_rows - 1)
            check_counts(tokens, n_samples, None if labels is None else labels.files)
            places = mapped(offsets)
            n_tokens = int(places[-1]) - int(places[0])
            check_large(n_tokens / n_samples * tokens.files[0].row_bytes, tokens.name, "sequences")
            check_pad_value(config, tokens)
            max_length = config.max_length or max(1, longest)
            tokens.check_batch(config.batch_size * max_length)
            wire = [tokens.to_wire(), *(None if each is None else each.files.to_wire() for each in small)]
            source = cls(config, tokens, write_table(wire), small, max_length)
        except BaseException:
            for each in small:
                if each is not None:
                    os.close(each.fd)
            raise
        digests = b"sequences" + far_digest(tokens) + offsets.digest + (b"none" if labels is None else labels.digest)
        digest = blake2b(digests, digest_size=8).hexdigest()
        source.facts = source._far_facts(digest, n_samples, source._fields())
        return source

    @classmethod
    def attach(cls, config: Config, handle: dict[str, Any], fds: list[int]) -> FarSequences:
        """Return, in a reader, the source that the daemon opened; owns `fds`."""
        tokens, *wires = read_table(fds[0])
        rest = list(fds[1:])
        small = [None if wire is None else SmallArray(array_set_from_wire(wire), rest.pop(0), b"") for wire in wires]
        source = cls(config, array_set_from_wire(tokens), fds[0], small, handle["max_length"])
        offsets = source._values[0]
        assert offsets is not None
        source.facts = source._far_facts(handle["digest"], len(offsets) - 1, source._fields())
        source._rows = FarRows(source._x.files, source._span, source._span_of_run)
        return source

    def _more(self) -> dict[str, Any]:
        return {"max_length": self._max_length}

    def _fields(self) -> tuple[FieldLayout, ...]:
        labels = self._values[1]
        y = ((), "int64") if labels is None else (labels.shape[1:], labels.dtype.name)
        return xy_fields(((self._max_length, *self._x.row_shape), self._x.dtype_name), y)

    def _kept(self, sample_id: int) -> tuple[int, int]:
        """Return the first token of a sequence that is kept, and how many are."""
        offsets = self._values[0]
        assert offsets is not None
        start, end = int(offsets[sample_id]), int(offsets[sample_id + 1])
        n = min(end - start, self._max_length)
        return (end - n if self._config.truncating == "pre" else start), n

    def _span(self, sample_id: int) -> Span:
        first, n = self._kept(sample_id)
        file = self._x.files[0]
        return 0, file.offset_bytes + first * file.row_bytes, n * file.row_bytes

    def _span_of_run(self, first: int, count: int) -> Span:
        _, start, n_bytes = self._span(first)
        if count > 1:
            _, last, last_bytes = self._span(first + count - 1)
            n_bytes = last + last_bytes - start
        return 0, start, n_bytes

    def _row(self, sample_id: int, arrays: Sequence[NDArray[Any]], reserve: ReserveMemory) -> None:
        x, y = arrays
        assert self._rows is not None, "only in a process that attached"
        _, n = self._kept(sample_id)
        content = self._rows.row(sample_id, reserve)
        to = self._max_length - n if self._config.padding == "pre" else 0
        x[...] = np.dtype(self._x.dtype_name).type(self._config.pad_value)
        x[0, to : to + n] = np.frombuffer(content, self._x.files[0].dtype).reshape(n, *self._x.row_shape)
        labels = self._values[1]
        y[0] = sample_id if labels is None else labels[sample_id]

    def where(self, sample_id: int) -> str:
        """File and number of a sequence."""
        return f"{self._x.name} sequence {sample_id}"

    def labels(self) -> NDArray[Any] | None:
        """Return the labels; see `MappedSource.labels`."""
        return self._values[1]
