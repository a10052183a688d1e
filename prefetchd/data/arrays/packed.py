"""Packed sequences: several documents a row, in place of one padded to the length of a row.

A sample is a row of the epoch. The daemon reads all offsets once, makes the table of documents (see
`sampling.packing`) and leaves it to the readers in a memfd, 16 bytes a document. Readers copy the documents of each row
from the map of the tokens; they need no offsets.
"""

from __future__ import annotations

import logging
import os
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.config.options import Config
from prefetchd.config.units import format_count
from prefetchd.data.arrays.array_set import ArraySet, array_set_from_wire, combined_digest, read_table, write_table
from prefetchd.data.arrays.packed_rows import PackedRows
from prefetchd.data.arrays.sequences import check_offsets, check_pad_value, single_array
from prefetchd.data.arrays.source import MappedSource, read_rows
from prefetchd.data.kinds import COLUMN_OPTIONS, IMAGE_OPTIONS, LIST_OPTIONS, refuse_given
from prefetchd.errors import ConfigError, ManifestError
from prefetchd.ring.layout import FieldLayout
from prefetchd.sampling.first_fit import bins_from_wire, class_sizes, first_fit, length_classes
from prefetchd.sampling.packing import Concatenation, Documents, Fitting, Packing, block_totals, dealt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from prefetchd.columns.store import Columns

log = logging.getLogger("prefetchd")

_READER_BYTES = 8 << 20  # of a reader's own: the blocks of an epoch, and a plan
_INT32_END = 1 << 31


class PackedSource(MappedSource):
    """Rows of `max_length` tokens, with the document and the position in it of each."""

    _kind = "packed_sequences"

    def __init__(self, config: Config, tokens: ArraySet, columns: Columns, fd: int) -> None:
        """Take over `fd`, which has the file of tokens for the readers, and the table. Use `open` or `attach`."""
        super().__init__((tokens,), fd)
        self._config = config
        self._tokens = tokens
        self._columns = columns
        self._rows: PackedRows

    @classmethod
    def open(cls, config: Config) -> PackedSource:
        """Check headers, sizes and all offsets of what the configuration names, and plan the rows.

        Raises:
            ManifestError: if the arrays do not fit, or have no tokens.
            ConfigError: if an option means nothing here, or no row is left.
        """
        assert config.offsets is not None
        assert config.max_length is not None
        refuse_given(config, IMAGE_OPTIONS, "images")
        refuse_given(config, LIST_OPTIONS, "lists of images")
        refuse_given(config, COLUMN_OPTIONS, "tables and .npz files")
        tokens, offsets = single_array(config.source, "tokens"), single_array(config.offsets, "offsets")
        check_offsets(offsets.files[0], tokens.files[0])
        check_pad_value(config, tokens)
        tokens.check_batch(config.batch_size * config.max_length)
        bounds = read_rows(offsets).astype(np.int64)
        offsets.files[0].check_path()
        documents = _documents(bounds)
        if not len(documents):
            raise ManifestError(
                f"cannot pack {tokens.name}: its {format_count(max(0, len(bounds) - 1), 'document')} have no tokens; "
                "give offsets of documents that have some"
            )
        make = _concatenated if config.pack == "concat" else _fitted
        table, attributes = make(config, documents)
        attributes |= {"documents": len(bounds) - 1, "tokens": int(documents.lengths.sum(dtype=np.int64))}
        source = cls(config, tokens, _write(table, attributes), write_table([tokens.to_wire()]))
        source._files.append(offsets)
        digest = combined_digest("packed", tokens) + source._columns.digest
        source._set_facts(blake2b(digest.encode(), digest_size=8).hexdigest())
        if not source.facts.n_samples:
            source.close()
            raise ConfigError(
                f"cannot pack {tokens.name}: its {attributes['tokens']} tokens make no row of {config.max_length} "
                "with drop_last=True; lower max_length or leave drop_last out"
            )
        log.info("%s", source._describe(len(documents)))
        return source

    @classmethod
    def attach(cls, config: Config, handle: dict[str, Any], fds: list[int]) -> PackedSource:
        """Map the tokens and the table, in a reader."""
        from prefetchd.columns.store import Columns

        (wire,) = read_table(fds[0])
        source = cls(config, array_set_from_wire(wire), Columns.attach(handle["documents"], fds[1]), fds[0])
        source._set_facts(handle["digest"])
        source._rows = PackedRows(config, source._tokens.files[0], source._packing())
        source._maps.append(source._rows)
        return source

    def handle(self) -> tuple[dict[str, Any], list[int]]:
        """Plain values and descriptors from which a reader attaches."""
        description, fd = self._columns.handle()
        handle = {"kind": self._kind, "digest": self.facts.digest, "documents": description}
        return handle, [self._table_fd, fd]

    def close(self) -> None:
        """Give all descriptors back, and a reader's maps."""
        super().close()
        self._columns.close()

    def where(self, sample_id: int) -> str:
        """File and number of a row."""
        return f"{self._tokens.name} packed row {sample_id}"

    @property
    def has_labels(self) -> bool:
        """False: rows have documents and positions."""
        return False

    def _fill(self, epoch: int, ids: NDArray[np.int64], arrays: Sequence[NDArray[Any]]) -> None:
        tokens, documents, positions = arrays
        self._rows.fill(epoch, ids, tokens, documents, positions)

    def _set_facts(self, digest: str) -> None:
        length, facts = self._config.max_length, self._columns.attributes
        assert length is not None
        n_rows, n_tokens = int(facts["rows"]), int(facts["tokens"])
        padding = max(0.0, 1 - n_tokens / (n_rows * length)) if n_rows else 0.0
        fields = (
            FieldLayout("tokens", (length, *self._tokens.row_shape), self._tokens.dtype_name),
            FieldLayout("document_ids", (length,), "int32" if facts["documents"] < _INT32_END else "int64"),
            FieldLayout("positions", (length,), "int32" if length < _INT32_END else "int64"),
        )
        shared_bytes = os.fstat(self._columns.fd).st_size
        self.facts = self._make_facts(
            digest, n_rows, fields, more_shared_bytes=shared_bytes, reader_bytes=_READER_BYTES, padding=padding
        )

    def _packing(self) -> Packing:
        """Return which documents lie in which row."""
        table = Documents(*(self._columns[name].values for name in ("numbers", "starts", "lengths")))
        config, facts = self._config, self._columns.attributes
        seed = config.seed if config.shuffle else None
        assert config.max_length is not None
        if config.pack == "concat":
            return Concatenation(table, np.array(facts["totals"], np.int64), config.max_length, seed)
        bins = [bins_from_wire(each) for each in facts["bins"]]
        return Fitting(table, np.array(facts["class_starts"], np.int64), bins, seed)

    def _describe(self, n_served: int) -> str:
        """Return a line with what was packed, and how much of it is padding."""
        facts, length = self._columns.attributes, self._config.max_length
        n_empty = facts["documents"] - n_served
        empty = f" ({n_empty} are empty and left out)" if n_empty else ""
        assert self.facts.padding is not None
        return (
            f"{format_count(facts['documents'], 'document')}{empty} of {facts['tokens']} tokens are packed into "
            f"{format_count(self.facts.n_samples, 'row')} of {length}: {100 * self.facts.padding:.2f}% is padding"
        )


def _documents(bounds: NDArray[np.int64]) -> Documents:
    """Return the documents that have tokens, of checked offsets."""
    lengths = np.diff(bounds)
    numbers = np.arange(len(lengths), dtype=_narrow(len(lengths)))
    lengths = lengths.astype(_narrow(int(lengths.max(initial=0))))
    documents = Documents(numbers, bounds[:-1], lengths)
    return documents if lengths.all() else documents.at(np.flatnonzero(lengths))


def _narrow(largest: int) -> np.dtype[Any]:
    """Return the dtype of the table's numbers up to `largest`: half the bytes, wherever they are enough."""
    return np.dtype(np.uint32 if largest < 1 << 32 else np.int64)


def _concatenated(config: Config, documents: Documents) -> tuple[Documents, dict[str, Any]]:
    """Return the table of a `Concatenation`, and what else it takes."""
    assert config.max_length is not None
    if config.shuffle:
        documents = documents.at(dealt(len(documents), config.seed))
    totals = block_totals(documents.lengths)
    n_tokens = int(totals.sum())
    n_rows = n_tokens // config.max_length if config.drop_last else -(-n_tokens // config.max_length)
    return documents, {"rows": n_rows, "totals": totals.tolist()}


def _fitted(config: Config, documents: Documents) -> tuple[Documents, dict[str, Any]]:
    """Return the table of a `Fitting`, and what else it takes.

    A document that is longer than a row becomes parts: full rows, and the rest.
    """
    length = config.max_length
    assert length is not None
    if int(documents.lengths.max()) > length:
        documents = _parts(documents, length)
    class_of = length_classes(documents.lengths)
    class_of = (int(class_of.max()) - class_of).astype(np.uint16)  # 0 for the longest; numpy sorts these by radix
    counts = np.bincount(class_of)
    present = np.flatnonzero(counts)
    order = class_of.argsort(kind="stable")
    ends = counts.cumsum()
    documents = documents.at(order)
    sizes = class_sizes(length_classes(documents.lengths[ends[present] - 1]))
    bins, n_rows = first_fit(np.minimum(sizes, length).tolist(), counts[present].tolist(), length)
    starts = [0, *ends[present].tolist()]
    return documents, {"rows": n_rows, "class_starts": starts, "bins": [each.to_wire() for each in bins]}


def _parts(documents: Documents, length: int) -> Documents:
    """Return documents cut into parts of at most `length` tokens."""
    whole = documents.lengths.astype(np.int64)
    n_parts = -(-whole // length)
    of = np.repeat(np.arange(len(documents)), n_parts)
    before = (np.arange(len(of)) - np.repeat(n_parts.cumsum() - n_parts, n_parts)) * length
    lengths = np.minimum(whole[of] - before, length).astype(_narrow(length))
    return Documents(documents.numbers[of], documents.starts[of] + before, lengths)


def _write(table: Documents, attributes: dict[str, Any]) -> Columns:
    """Return the table in a sealed memfd, which the caller owns."""
    from prefetchd.columns.store import Columns
    from prefetchd.columns.writer import ColumnsWriter

    with ColumnsWriter(len(table)) as writer:
        for name in ("numbers", "starts", "lengths"):
            writer.add_numbers(name, getattr(table, name))
        return Columns.attach(*writer.finish(attributes))
