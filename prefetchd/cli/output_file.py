"""Writes a file that a command was told to make."""

from __future__ import annotations

import contextlib
import os
import tempfile


def write_whole(path: str, content: bytes) -> None:
    """Write `content` to `path`, which has its name only once it is complete.

    An older file stays as it was if that fails. A symbolic link stays one, and a device or a pipe is written to.

    Raises:
        OSError: if it cannot be written.
    """
    whole = os.path.realpath(path)
    if os.path.exists(whole) and not os.path.isfile(whole):
        with open(whole, "wb") as device:
            device.write(content)
        return
    fd, temporary = tempfile.mkstemp(prefix=".prefetchd-", dir=os.path.dirname(whole))
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, whole)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
