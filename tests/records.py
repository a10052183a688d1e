"""Tar shards for tests, written by the standard library."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import cv2

from tests.images import photograph

Content = bytes | str | tarfile.TarInfo


def jpeg(seed: int, size: tuple[int, int] = (40, 56)) -> bytes:
    """Return a small JPEG photograph."""
    ok, encoded = cv2.imencode(".jpg", photograph(*size, seed=seed))
    assert ok
    return encoded.tobytes()


def write_tar(
    path: Path, members: Iterable[tuple[str, Content]], format: int = tarfile.PAX_FORMAT, mtime: float = 1.5
) -> str:
    """Write an archive of (name, content) and return its path; a `TarInfo` stands for a member without content.

    The time is a fraction, as WebDataset's writer makes it, so that with pax each member has an extended header.
    """
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                tar.addfile(content)
                continue
            encoded = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(encoded), mtime if format == tarfile.PAX_FORMAT else int(mtime)
            tar.addfile(info, io.BytesIO(encoded))
    return str(path)
