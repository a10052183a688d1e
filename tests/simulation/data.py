"""The data sets of simulated worlds: real sources over one small image, or over sparse arrays. No row is ever read.

Sequences are in buckets, so that their batches have layouts of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prefetchd.sampling.buckets import Buckets, places_in_order, sorted_by_bucket
from prefetchd.sampling.order import Order

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tests.simulation.spec import DatasetSpec

_LEAST_ROW_BYTES = 192  # 8 x 8 x 3
_N_BUCKETS = 3


def options(folder: Path, spec: DatasetSpec, slot_bytes: int) -> dict[str, object]:
    """Return the options of a data set whose batches take about `slot_bytes`; its files are made in `folder`."""
    row_bytes = max(_LEAST_ROW_BYTES, (slot_bytes - 4096 - 64 * 2) // spec.batch_size - 16)
    if spec.kind == "arrays":
        path = folder / f"x-{spec.n_samples}-{row_bytes}.npy"
        if not path.exists():
            _write_array(path, spec.n_samples, row_bytes)
        return {"source": str(path)}
    if spec.kind == "sequences":
        buckets = [row_bytes // 4, row_bytes // 2, row_bytes]
        path, offsets = (
            folder / f"tokens-{spec.n_samples}-{row_bytes}.npy",
            folder / f"offsets-{spec.n_samples}-{row_bytes}.npy",
        )
        lengths = np.array(buckets)[bucket_numbers(spec)]
        _write_array(path, int(lengths.sum()), 0)
        np.save(offsets, np.concatenate(([0], np.cumsum(lengths))))
        return {"source": str(path), "offsets": str(offsets), "length_buckets": buckets}
    height = max(1, int((row_bytes // 3) ** 0.5))
    path = folder / f"list-{spec.n_samples}.txt"
    if not path.exists():
        (folder / "image.png").write_bytes(_png())
        path.write_text("".join(f"image.png {number}\n" for number in range(spec.n_samples)))
    return {"source": str(path), "image_size": (height, row_bytes // 3 // height)}


def bucket_numbers(spec: DatasetSpec) -> NDArray[np.int64]:
    """Return the bucket of each sequence of a data set."""
    return np.arange(spec.n_samples) % _N_BUCKETS


def order_of(spec: DatasetSpec) -> Order:
    """Return the order of a data set."""
    order = Order(spec.n_samples, spec.batch_size, spec.drop_last, spec.shuffle, 0)
    if spec.kind != "sequences":
        return order
    positions, counts = sorted_by_bucket(bucket_numbers(spec), _N_BUCKETS)
    in_order = places_in_order(positions, counts, spec.batch_size, drop_last=spec.drop_last)
    seed = 0 if spec.shuffle else None
    buckets = Buckets(positions, counts, spec.batch_size, drop_last=spec.drop_last, seed=seed, in_order=in_order)
    return dataclasses.replace(order, buckets=buckets)


def _write_array(path: Path, n_rows: int, row_bytes: int) -> None:
    """Write an array of bytes, (n_rows, row_bytes), or (n_rows,) where that is 0."""
    with open(path, "wb") as file:
        shape = (n_rows, row_bytes) if row_bytes else (n_rows,)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})  # type: ignore[arg-type]
        os.ftruncate(file.fileno(), file.tell() + n_rows * (row_bytes or 1))


def _png() -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    rows = (b"\0" + bytes(24)) * 8
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def open_descriptors() -> set[int]:
    """Return the descriptors that this process has open."""
    return set(map(int, os.listdir("/proc/self/fd")))


def close_new(before: set[int], folder: Path) -> list[str]:
    """Close the descriptors of a world that were not open `before`; return what they are of, without sources' files.

    A daemon leaves the files of its sources to the end of its process.
    """
    left = []
    for fd in open_descriptors() - before:
        with contextlib.suppress(OSError):
            name = os.readlink(f"/proc/self/fd/{fd}")
            of_sources = ("manifest", "array", "columns")
            is_source = name.startswith((f"{folder}/", *(f"/memfd:prefetchd-{each}" for each in of_sources)))
            if is_source or name.startswith(("/memfd:prefetchd-", "/memfd:simulated-", "/dev/null")):
                os.close(fd)
                left += [] if is_source else [name]
    return left
