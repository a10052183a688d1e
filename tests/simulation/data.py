"""The data sets of simulated worlds: real sources over one small image, or over a sparse array. No row is ever read."""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from tests.simulation.spec import DatasetSpec

_LEAST_ROW_BYTES = 192  # 8 x 8 x 3


def options(folder: Path, spec: DatasetSpec, slot_bytes: int) -> dict[str, object]:
    """Return the options of a data set whose batches take about `slot_bytes`; its files are made in `folder`."""
    row_bytes = max(_LEAST_ROW_BYTES, (slot_bytes - 4096 - 64 * 2) // spec.batch_size - 16)
    if spec.kind == "arrays":
        path = folder / f"x-{spec.n_samples}-{row_bytes}.npy"
        if not path.exists():
            _write_array(path, spec.n_samples, row_bytes)
        return {"source": str(path)}
    height = max(1, int((row_bytes // 3) ** 0.5))
    path = folder / f"list-{spec.n_samples}.txt"
    if not path.exists():
        (folder / "image.png").write_bytes(_png())
        path.write_text("".join(f"image.png {number}\n" for number in range(spec.n_samples)))
    return {"source": str(path), "image_size": (height, row_bytes // 3 // height)}


def _write_array(path: Path, n_samples: int, row_bytes: int) -> None:
    with open(path, "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (n_samples, row_bytes)}
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
        os.ftruncate(file.fileno(), file.tell() + n_samples * row_bytes)


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
            is_source = name.startswith((f"{folder}/", "/memfd:prefetchd-manifest", "/memfd:prefetchd-array"))
            if is_source or name.startswith(("/memfd:prefetchd-", "/memfd:simulated-", "/dev/null")):
                os.close(fd)
                left += [] if is_source else [name]
    return left
