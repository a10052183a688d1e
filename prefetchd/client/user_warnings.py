"""Warnings that point at the user's line, not at ours, and not at a library that runs the loop for the user."""

from __future__ import annotations

import sys
import sysconfig
import warnings
from types import FrameType

_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def warn_user(text: str) -> None:
    """Warn (`RuntimeWarning`) at the line of the user's code that led here.

    That is the first frame outside this package and all installed packages: under `model.fit(...)`, that line. Without
    such a frame, as in a console script, it is the first frame outside this package.
    """
    level, first_outside = 1, 0
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if not _is_ours(frame):
            first_outside = first_outside or level
            if not frame.f_code.co_filename.startswith(_LIBRARIES):
                break
        frame, level = frame.f_back, level + 1
    else:
        level = first_outside or 1
    warnings.warn(text, RuntimeWarning, stacklevel=level)


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).startswith("prefetchd.")
