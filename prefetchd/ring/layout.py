"""The layout of one slot: where the fields and sample ids of a batch are. Pure.

    | x: batch_size rows | y: batch_size rows | ... | sample ids: batch_size int64 |
    0                    ^ each part starts on a 64-byte boundary

A field is an array of rows of one shape and dtype. Without the option `fields` a batch has two, `x` and `y`. A name
with a dot, `y.boxes`, is a leaf of a nested mapping: users see `y`, which has `boxes`.

Readers write through `BatchLayout.arrays` and `sample_ids` over a writable map. Consumers read through the same views
over a read-only map. Both sides derive the layout from the same few numbers (`to_wire`), and check them before they
take any memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALIGNMENT_BYTES = 64
PAGE_BYTES = 4096
MAX_SLOT_BYTES = 1 << 40
MAX_FIELDS = 64
_SAMPLE_ID_BYTES = 8
_ITEM_BYTES = {
    "bool": 1, "uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "float16": 2, "uint32": 4, "int32": 4,
    "float32": 4, "uint64": 8, "int64": 8, "float64": 8, "complex64": 8, "complex128": 16,
}  # fmt: skip
DTYPES = tuple(_ITEM_BYTES)  # numpy names of the dtypes that a slot can hold


def _aligned(n_bytes: int, to: int = ALIGNMENT_BYTES) -> int:
    return -(-n_bytes // to) * to


@dataclass(frozen=True, slots=True)
class FieldLayout:
    """One field of a batch.

    Attributes:
        name: its name, or `y.boxes` for a leaf of `y`.
        shape: of one row, without the batch dimension; `()` for a number.
        dtype: numpy's name of it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


def xy_fields(
    x: tuple[tuple[int, ...], str], y: tuple[tuple[int, ...], str] = ((), "int64")
) -> tuple[FieldLayout, FieldLayout]:
    """Return the two fields of a batch `x, y`, each of a shape and a dtype."""
    return FieldLayout("x", *x), FieldLayout("y", *y)


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """Shapes, dtypes and offsets of a batch of at most `batch_size` samples.

    Attributes:
        batch_size: rows in a full batch.
        fields: the fields, in the order in which they lie in the slot.
        sources: of a mixture, the name of each source and the number of its first sample.
        names: of the fields.
        ids_offset_bytes: where the sample ids start.
        slot_bytes: bytes of a whole slot, rounded up to pages.
    """

    batch_size: int
    fields: tuple[FieldLayout, ...]
    sources: tuple[tuple[str, int], ...] = ()
    # Computed once: every batch calls `arrays`.
    names: tuple[str, ...] = field(init=False, repr=False)
    ids_offset_bytes: int = field(init=False)
    slot_bytes: int = field(init=False)
    _parts: tuple[tuple[tuple[int, ...], np.dtype[Any], int], ...] = field(init=False, repr=False)  # and the offset
    _pair: tuple[Any, ...] = field(init=False, repr=False)  # the same of two fields

    def __post_init__(self) -> None:
        names = tuple(each.name for each in self.fields)
        if not 1 <= len(names) <= MAX_FIELDS or len(set(names)) != len(names):
            raise ValueError(f"impossible fields {list(names)}")
        parts = []
        offset_bytes = 0
        for each in self.fields:
            if each.dtype not in _ITEM_BYTES:
                raise ValueError(f"unknown dtype {each.dtype!r}")
            if self.batch_size < 1 or any(side < 0 for side in each.shape):
                raise ValueError(f"impossible shape {(self.batch_size, *each.shape)} of {each.name}")
            parts.append((each.shape, np.dtype(each.dtype), offset_bytes))
            offset_bytes = _aligned(offset_bytes + self.batch_size * each.row_bytes)
        slot_bytes = _aligned(offset_bytes + self.batch_size * _SAMPLE_ID_BYTES, PAGE_BYTES)
        if slot_bytes > MAX_SLOT_BYTES:
            raise ValueError(f"a slot of {slot_bytes} bytes is larger than {MAX_SLOT_BYTES}")
        for name, value in (
            ("names", names),
            ("ids_offset_bytes", offset_bytes),
            ("slot_bytes", slot_bytes),
            ("_parts", tuple(parts)),
            ("_pair", (*parts[0][:2], *parts[1]) if len(parts) == 2 else ()),
        ):
            object.__setattr__(self, name, value)

    def arrays(self, root: NDArray[np.uint8], rows: int) -> tuple[NDArray[Any], ...]:
        """Return the fields in order, each (rows, *shape), views of `root`.

        Args:
            root: the slot's bytes, shape (slot_bytes,), uint8; it lives as long as any of its views.
            rows: how many samples the batch holds, 0 to `batch_size`.
        """
        if self._pair:  # as most batches are: a loop takes half as long again
            x, x_dtype, y, y_dtype, y_bytes = self._pair
            return np.ndarray((rows, *x), x_dtype, root), np.ndarray((rows, *y), y_dtype, root, y_bytes)
        return tuple([np.ndarray((rows, *shape), dtype, root, at) for shape, dtype, at in self._parts])

    def sample_ids(self, root: NDArray[np.uint8], rows: int) -> NDArray[np.int64]:
        """Return the sample ids, (rows,) int64, a view of `root`; see `arrays`."""
        return np.ndarray((rows,), np.int64, root, self.ids_offset_bytes)

    def source_numbers(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of each sample's source in a mixture, (rows,) int64; 0 where there is one source."""
        firsts = np.array([first for _, first in self.sources[1:]], np.int64)
        return np.searchsorted(firsts, sample_ids, "right")

    def to_wire(self) -> dict[str, Any]:
        """Return the layout as plain values; `layout_from_wire` is the inverse."""
        fields = [[each.name, list(each.shape), each.dtype] for each in self.fields]
        wire: dict[str, Any] = {"batch_size": self.batch_size, "fields": fields}
        return wire | {"sources": [list(each) for each in self.sources]} if self.sources else wire


def layout_from_wire(wire: dict[str, Any]) -> BatchLayout:
    """Return the layout that `wire` describes.

    Raises:
        ValueError, KeyError or TypeError: if the values are no layout.
    """
    fields = [FieldLayout(str(name), tuple(map(int, shape)), str(dtype)) for name, shape, dtype in wire["fields"]]
    sources = tuple((str(name), int(first)) for name, first in wire.get("sources", ()))
    return BatchLayout(int(wire["batch_size"]), tuple(fields), sources)


def open_shapes(layouts: Sequence[BatchLayout]) -> list[tuple[int | None, ...]]:
    """Return the shape of each field's rows, in order; `None` for a side that differs between the layouts."""
    return [
        tuple(sides[0] if len(set(sides)) == 1 else None for sides in zip(*shapes, strict=True))
        for shapes in zip(*([each.shape for each in layout.fields] for layout in layouts), strict=True)
    ]
