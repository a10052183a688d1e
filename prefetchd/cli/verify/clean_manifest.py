"""Copy a manifest without its bad lines, all other bytes unchanged.

The new file gets its name only once it is complete, so a kill leaves an older one as it was.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Container
from typing import BinaryIO

from prefetchd.errors import ConfigError, ManifestError


def check_target(source: str, target: str) -> None:
    """Raise `ConfigError` unless `source` is a list file and `target` can be written beside it, not over it."""
    if not os.path.isfile(source):
        raise ConfigError(
            f"cannot write a clean manifest of {source}: it is not a list file; leave --write-clean out, and "
            "remove what is listed as bad"
        )
    if os.path.exists(target) and os.path.samefile(source, target):
        raise ConfigError(f"cannot write the clean manifest over {source} itself; name another file")
    if os.path.exists(target) and not os.path.isfile(target):
        raise ConfigError(f"cannot write {target}: it is not a regular file, and would be replaced; name another file")
    folder = os.path.dirname(os.path.realpath(target))
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise ConfigError(f"cannot write {target}: {folder} is not a writable folder; name another file")


def write_clean(source: str, target: str, bad_lines: Container[int]) -> tuple[int, int]:
    """Copy the lines of `source` whose numbers, from 1, are not in `bad_lines`; return how many were kept and left out.

    A symbolic link at `target` stays one: its target is replaced.

    Raises:
        ManifestError: if it cannot be written.
    """
    temporary = ""
    whole = os.path.realpath(target)
    try:
        with open(source, "rb") as lines:
            fd, temporary = tempfile.mkstemp(prefix=".prefetchd-", dir=os.path.dirname(whole))
            with os.fdopen(fd, "wb") as clean:
                counts = _copy(lines, clean, bad_lines)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, whole)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise ManifestError(f"cannot write {target}: {error.strerror}; check the disk and the permissions") from None
    return counts


def _copy(lines: BinaryIO, clean: BinaryIO, bad_lines: Container[int]) -> tuple[int, int]:
    kept = left_out = 0
    for number, line in enumerate(lines, 1):  # binary lines end with \n alone, as the manifest counts them
        if number in bad_lines:
            left_out += 1
        else:
            kept += 1
            clean.write(line)
    return kept, left_out
