"""The layout of one slot: where the pixels, labels and sample ids of a batch are. Pure.

    | x: batch_size rows | y: batch_size labels | sample ids: batch_size int64 |
    0                    ^ each part starts on a 64-byte boundary

Readers write through `BatchLayout.xy` and `sample_ids` over a writable map. Consumers read through the same views over
a read-only map. Both sides derive the layout from the same few numbers (`to_wire`), and check them before they take
any memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALIGNMENT_BYTES = 64
PAGE_BYTES = 4096
MAX_SLOT_BYTES = 1 << 40
_SAMPLE_ID_BYTES = 8
_ITEM_BYTES = {
    "bool": 1, "uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "float16": 2, "uint32": 4, "int32": 4,
    "float32": 4, "uint64": 8, "int64": 8, "float64": 8, "complex64": 8, "complex128": 16,
}  # fmt: skip
DTYPES = tuple(_ITEM_BYTES)  # numpy names of the dtypes that a slot can hold


def _aligned(n_bytes: int, to: int = ALIGNMENT_BYTES) -> int:
    return -(-n_bytes // to) * to


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """Shapes, dtypes and offsets of a batch of at most `batch_size` samples.

    Attributes:
        batch_size: rows in a full batch.
        x_shape: shape of one sample, without the batch dimension.
        x_dtype: numpy name of the samples' dtype.
        y_shape: shape of one label; `()` for a scalar.
        y_dtype: numpy name of the labels' dtype.
        x_bytes: bytes of the pixels of a full batch.
        y_offset_bytes: where the labels start.
        ids_offset_bytes: where the sample ids start.
        slot_bytes: bytes of a whole slot, rounded up to pages.
    """

    batch_size: int
    x_shape: tuple[int, ...]
    x_dtype: str
    y_shape: tuple[int, ...]
    y_dtype: str
    # Computed once: every batch calls `xy`.
    x_bytes: int = field(init=False)
    y_offset_bytes: int = field(init=False)
    ids_offset_bytes: int = field(init=False)
    slot_bytes: int = field(init=False)
    _x: np.dtype[Any] = field(init=False, repr=False)
    _y: np.dtype[Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for dtype in (self.x_dtype, self.y_dtype):
            if dtype not in _ITEM_BYTES:
                raise ValueError(f"unknown dtype {dtype!r}")
        if self.batch_size < 1 or any(side < 0 for side in (*self.x_shape, *self.y_shape)):
            raise ValueError(f"impossible shape {(self.batch_size, *self.x_shape)}, {self.y_shape}")
        x_bytes = self.batch_size * math.prod(self.x_shape) * _ITEM_BYTES[self.x_dtype]
        y_bytes = self.batch_size * math.prod(self.y_shape) * _ITEM_BYTES[self.y_dtype]
        y_offset_bytes = _aligned(x_bytes)
        ids_offset_bytes = _aligned(y_offset_bytes + y_bytes)
        slot_bytes = _aligned(ids_offset_bytes + self.batch_size * _SAMPLE_ID_BYTES, PAGE_BYTES)
        if slot_bytes > MAX_SLOT_BYTES:
            raise ValueError(f"a slot of {slot_bytes} bytes is larger than {MAX_SLOT_BYTES}")
        for name, value in (
            ("x_bytes", x_bytes),
            ("y_offset_bytes", y_offset_bytes),
            ("ids_offset_bytes", ids_offset_bytes),
            ("slot_bytes", slot_bytes),
            ("_x", np.dtype(self.x_dtype)),
            ("_y", np.dtype(self.y_dtype)),
        ):
            object.__setattr__(self, name, value)

    def xy(self, root: NDArray[np.uint8], rows: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return x (rows, *x_shape) and y (rows, *y_shape), views of `root`.

        Args:
            root: the slot's bytes, shape (slot_bytes,), uint8; it lives as long as any of its views.
            rows: how many samples the batch holds, 0 to `batch_size`.
        """
        return (
            np.ndarray((rows, *self.x_shape), self._x, root),
            np.ndarray((rows, *self.y_shape), self._y, root, self.y_offset_bytes),
        )

    def sample_ids(self, root: NDArray[np.uint8], rows: int) -> NDArray[np.int64]:
        """Return the sample ids, (rows,) int64, a view of `root`; see `xy`."""
        return np.ndarray((rows,), np.int64, root, self.ids_offset_bytes)

    def to_wire(self) -> dict[str, Any]:
        """Return the layout as plain values; `layout_from_wire` is the inverse."""
        return {
            "batch_size": self.batch_size,
            "x_shape": list(self.x_shape),
            "x_dtype": self.x_dtype,
            "y_shape": list(self.y_shape),
            "y_dtype": self.y_dtype,
        }


def layout_from_wire(wire: dict[str, Any]) -> BatchLayout:
    """Return the layout that `wire` describes.

    Raises:
        ValueError, KeyError or TypeError: if the values are no layout.
    """
    return BatchLayout(
        batch_size=int(wire["batch_size"]),
        x_shape=tuple(int(side) for side in wire["x_shape"]),
        x_dtype=str(wire["x_dtype"]),
        y_shape=tuple(int(side) for side in wire["y_shape"]),
        y_dtype=str(wire["y_dtype"]),
    )
