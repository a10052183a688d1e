"""Warnings that point at the user's line, not at ours."""

from __future__ import annotations

import sys
import warnings


def warn_user(text: str) -> None:
    """Warn (`RuntimeWarning`) at the first frame outside this package: the line of the user's loop."""
    level = 1
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("prefetchd."):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, RuntimeWarning, stacklevel=level)
