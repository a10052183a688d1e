"""The batch that a loader delivers: a named tuple that also reads as a mapping.

    for x, y in loader: ...                         # without the option fields
    batch.depth, batch["depth"], dict(batch), f(**batch), batch["caption"]["length"]

A class is made once for each list of fields. A named tuple is a tree to every framework: `jax.tree`,
`torch.utils._pytree`, `optree`, `keras.tree` and `tf.nest` map over it, and Lightning, Accelerate and `jax.device_put`
move it between devices as it is. A subclass of dict, or a tuple of any other class, would be one opaque leaf to some of
them. A field with several arrays, such as text and its lengths, is a named tuple within the batch.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self

from prefetchd.errors import PrefetchdError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prefetchd.ring.layout import BatchLayout
    from prefetchd.ring.queues import Grant


class InEpoch:
    """The place of a batch: epoch and number. A mixin of the named tuples that loaders deliver.

    A batch that a framework's tree function has made from another one has no place.
    """

    _grant: Grant | None = None

    @property
    def place(self) -> Grant:
        """The grant that the batch came with."""
        if self._grant is None:
            raise AttributeError(
                "cannot tell the batch's place in the epoch: it was made from another batch; ask the one that the "
                "loader delivered"
            )
        return self._grant

    @property
    def epoch(self) -> int:
        """Number of the epoch, from 0."""
        return self.place.epoch

    @property
    def index(self) -> int:
        """Number of the batch in the epoch, from 0, over all shards."""
        return self.place.batch

    @property
    def repeated(self) -> bool:
        """Whether the batch was wrapped round past the end of the epoch, for even shards."""
        return bool(self.place.repeated)


class Named(tuple["NDArray[Any]", ...]):
    """What named tuples of fields share: they read as mappings. Iteration is that of a tuple: over the arrays."""

    __slots__ = ()
    _fields: tuple[str, ...]

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return tuple.__getitem__(self, key)
        try:
            return tuple.__getitem__(self, self._fields.index(key))
        except ValueError:
            raise KeyError(f"{key!r}: there are {', '.join(self._fields)}") from None

    def __contains__(self, key: object) -> bool:
        return key in self._fields if isinstance(key, str) else any(key is value for value in self)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

        @classmethod
        def _make(cls, iterable: Iterable[Any]) -> Self: ...

    def get(self, key: str, default: Any = None) -> Any:
        """Return the field `key`, or `default` if there is none."""
        return self[key] if key in self._fields else default

    def keys(self) -> tuple[str, ...]:
        """Return the names of the fields, in order."""
        return self._fields

    def values(self) -> Iterator[Any]:
        """Return an iterator over the fields' arrays."""
        return iter(self)

    def items(self) -> Iterator[tuple[str, Any]]:
        """Return an iterator over names and arrays."""
        return zip(self._fields, self, strict=True)

    def text_parts(self, name: str) -> Any:
        """Return the bytes and the lengths of a field of text; raises as `Batch.strings` does."""
        field = self[name]
        if not isinstance(field, Named) or field._fields != ("bytes", "length"):
            raise PrefetchdError(f"cannot read the field {name} as text: it is none; give it the kind text")
        return field


class Batch(InEpoch, Named):  # type: ignore[misc]  # index hides tuple.index, on purpose
    """One batch: unpacks as `x, y`, or has the fields of the option `fields`, and has its place in the epoch.

    Making one is part of the handoff of every batch, so it computes nothing before it is asked.

    Attributes:
        x: the samples: (rows, height, width, channels), or as the `layout` option says.
        y: the labels: (rows,) or (rows, k), int64 or float32; masks; or what `target_transform` makes.
        root: (bytes,) uint8, all the bytes of the batch, which the others are views of.
        first_row: how many samples of the slot stand before these; 0 except right after some resumes.
    """

    root: NDArray[np.uint8]
    _layout: BatchLayout
    first_row = 0

    if TYPE_CHECKING:
        x: NDArray[Any]
        y: NDArray[Any]

    @classmethod
    def over(cls, root: NDArray[np.uint8], rows: int, layout: BatchLayout) -> Self:
        """Return the batch of `rows` samples in `root`, the bytes of its slot; the caller adds its grant."""
        batch = tuple.__new__(cls, layout.arrays(root, rows))
        batch.root, batch._layout = root, layout
        return batch

    @staticmethod
    def of(grant: Grant, root: NDArray[np.uint8], layout: BatchLayout) -> Batch:
        """Return the batch of `grant` over `root`."""
        batch = batch_class(layout).over(root, grant.rows, layout)
        batch._grant = grant
        return batch

    def copy(self) -> Batch:
        """Return the same batch in memory of its own."""
        batch = Batch.of(self.place, self.root.copy(), self._layout)
        return batch.from_row(self.first_row) if self.first_row else batch

    def from_row(self, row: int) -> Batch:
        """Return the rows from `row` on, over the same bytes; its place is that of the whole batch."""
        batch = tuple.__new__(type(self), rows_from(self, row))
        batch.root, batch._layout = self.root, self._layout
        batch._grant, batch.first_row = self._grant, self.first_row + row
        return batch

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the slot's bytes once, and the place of the batch."""
        if self._grant is None:
            return _again, (False, self._fields, tuple(self))
        if self.first_row:
            return _rest_of, (self._grant, self.root, self._layout, self.first_row)
        return Batch.of, (self._grant, self.root, self._layout)

    @property
    def sample_ids(self) -> NDArray[np.int64]:
        """(rows,) int64: the number of each sample in the data set, from 0."""
        return self._layout.sample_ids(self.root, self.place.rows)[self.first_row :]

    @property
    def source(self) -> NDArray[np.int64]:
        """(rows,) int64: the number of each sample's source, with the option `mix`; 0 without it."""
        return self._layout.source_numbers(self.sample_ids)

    def strings(self, name: str) -> list[str]:
        """Return the text of each sample in the field `name`, of kind `text`.

        Raises:
            KeyError: if there is no such field.
            PrefetchdError: if it holds no text.
        """
        field = self.text_parts(name)
        return decode_rows(field.bytes, field.length)


class _NestedBatch(Batch):
    """A batch in which some field has several arrays, whose names in the layout have dots."""

    @classmethod
    def over(cls, root: NDArray[np.uint8], rows: int, layout: BatchLayout) -> Self:
        batch = tuple.__new__(cls, joined(layout, layout.arrays(root, rows)))
        batch.root, batch._layout = root, layout
        return batch


class _Parts(Named):
    """A field with several arrays."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (True, self._fields, tuple(self))


def batch_class(layout: BatchLayout) -> type[Batch]:
    """Return the class of the batches of `layout`."""
    fields = tuple(dict.fromkeys(name.partition(".")[0] for name in layout.names))
    return class_of(fields, _NestedBatch if any("." in name for name in layout.names) else Batch)


@lru_cache(maxsize=1024)
def class_of(names: tuple[str, ...], base: type[Named]) -> type[Any]:
    """Return a named tuple of `names` that is a `base`."""
    made: Any = namedtuple("Batch", names)  # type: ignore[misc]  # the names are known at run time only
    return type("Batch", (base, made), {"__slots__": ()} if base is _Parts else {})


@lru_cache(maxsize=256)
def _joins(names: tuple[str, ...]) -> list[tuple[int, int, type[Named] | None]]:
    """Return for each field its first array, the one after its last, and the class that joins several."""
    joins: list[tuple[int, int, type[Named] | None]] = []
    first = 0
    while first < len(names):
        name, dot, _ = names[first].partition(".")
        end = first + 1
        while dot and end < len(names) and names[end].startswith(name + "."):
            end += 1
        parts = class_of(tuple(each.partition(".")[2] for each in names[first:end]), _Parts) if dot else None
        joins.append((first, end, parts))
        first = end
    return joins


def leaves_of(batch: Named) -> list[Any]:
    """Return the arrays of a batch, those of a field with several one by one; the inverse of `joined`."""
    return [leaf for value in batch for leaf in (value if isinstance(value, Named) else (value,))]


def rows_from(batch: Named, row: int) -> list[Any]:
    """Return the fields of `batch` from `row` on, as views."""
    return [
        tuple.__new__(type(value), rows_from(value, row)) if isinstance(value, Named) else value[row:]
        for value in batch
    ]


def as_dict(batch: Named) -> dict[str, Any]:
    """Return a batch as a dictionary, and fields with several arrays as dictionaries in it."""
    return {name: as_dict(value) if isinstance(value, Named) else value for name, value in batch.items()}


def decode_rows(content: NDArray[np.uint8], lengths: NDArray[np.int64]) -> list[str]:
    """Return the text in each row of `content`, (rows, bytes), which has `lengths` bytes of UTF-8."""
    return [row[:length].tobytes().decode() for row, length in zip(content, lengths.tolist(), strict=True)]


def joined(layout: BatchLayout, leaves: Sequence[Any]) -> tuple[Any, ...]:
    """Return what stands for the arrays of `layout`, one a leaf, in the structure of its batches."""
    return tuple(
        [
            leaves[first] if parts is None else tuple.__new__(parts, leaves[first:end])
            for first, end, parts in _joins(layout.names)
        ]
    )


def _rest_of(grant: Grant, root: NDArray[np.uint8], layout: BatchLayout, row: int) -> Batch:
    """Return a pickled batch without its first rows."""
    return Batch.of(grant, root, layout).from_row(row)


def _again(is_parts: bool, names: tuple[str, ...], values: tuple[Any, ...]) -> Any:
    """Return a pickled named tuple that has no place."""
    return tuple.__new__(class_of(names, _Parts if is_parts else Batch), values)
