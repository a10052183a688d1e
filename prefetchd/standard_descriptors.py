"""Descriptors 0, 1 and 2, which a process may be started without."""

from __future__ import annotations

import os
import sys


def open_standard_descriptors() -> None:
    """Put /dev/null where 0, 1 or 2 are closed: a socket that came to be 2 would be written to as stderr."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), fd)
            os.set_inheritable(fd, True)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - for the life of the process
