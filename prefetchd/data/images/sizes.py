"""Sizes of images: the table that the header pass fills, and the file that keeps them. Pure but for that file.

A row has the key of a file's state, of 16 bytes (`cache.keys.key_of`), and the height and width in pixels of the
upright image; 0 where a header cannot be read. Images whose file cannot be told from a later state of it have the key 0
and are not kept.

    magic | rows, sorted by key | digest of the rows

The file appears whole, or not at all. Where it is damaged, or of another user, the headers are read anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.data.cache.directory import SIZES, open_regular

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.options import Config

ROW = np.dtype([("high", "<u8"), ("low", "<u8"), ("height", "<u4"), ("width", "<u4")])
_MAGIC = b"prefetchd sizes 1\n".ljust(24, b"\0")
_DIGEST_BYTES = 16
_MOST_ROWS = 100_000_000  # that are kept of other data sets


def path_of(config: Config) -> Path | None:
    """Return where sizes are kept: `bucket_file`, or in the folder of the cache, or beside the index; else `None`."""
    if config.bucket_file is not None:
        return Path(config.bucket_file).expanduser().absolute()
    if config.cache is not None:
        return Path(config.cache).expanduser().absolute() / SIZES
    if config.index is not None and "://" not in config.index:
        return Path(config.index + ".sizes").expanduser().absolute()
    return None


def load(path: Path) -> NDArray[Any]:
    """Return the rows of the file at `path`, (rows,) of `ROW`, sorted by key; none if there is no good one."""
    nothing = np.zeros(0, ROW)
    try:
        fd = open_regular(path)
    except OSError:
        return nothing
    try:
        with open(fd, "rb", closefd=True) as file:
            content = memoryview(file.read())
    except (OSError, MemoryError):
        return nothing
    body, digest = content[len(_MAGIC) : -_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if content[: len(_MAGIC)] != _MAGIC or len(body) % ROW.itemsize or _digest(body) != digest:
        return nothing
    return np.frombuffer(body, ROW)


def save(path: Path, kept: NDArray[Any], table: NDArray[Any]) -> None:
    """Keep the rows of `table` that have a key, beside those of `kept`.

    Raises:
        OSError: if the file cannot be written.
    """
    new = table[(table["high"] != 0) & (table["height"] != 0)]
    rows = new if len(kept) > _MOST_ROWS else np.concatenate([kept, new])
    rows = rows[np.lexsort((rows["low"], rows["high"]))]
    again = (rows["high"][1:] == rows["high"][:-1]) & (rows["low"][1:] == rows["low"][:-1])
    rows = np.ascontiguousarray(rows[np.concatenate([[True], ~again])] if len(rows) else rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.{os.urandom(8).hex()}")
    try:
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            body = memoryview(rows.tobytes())
            file.writelines((_MAGIC, body, _digest(body)))
        scratch.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise


def look_up(kept: NDArray[Any], table: NDArray[Any]) -> NDArray[np.bool_]:
    """Write the sizes of rows of `table` whose keys are in `kept`; return which those are, (rows,)."""
    if not len(kept):
        return np.zeros(len(table), bool)
    # Keys whose first halves are the same are too rare to look for: such an image is read again.
    at = np.minimum(np.searchsorted(kept["high"], table["high"]), len(kept) - 1)
    found = kept[at]
    known = (found["high"] == table["high"]) & (found["low"] == table["low"]) & (table["high"] != 0)
    for name in ("height", "width"):
        table[name][known] = found[name][known]
    known_rows: NDArray[np.bool_] = known
    return known_rows


def _digest(body: memoryview) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()
