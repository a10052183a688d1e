"""A child that ends with its parent, however that ends: the kernel sends it a signal."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent_pid: int, number: signal.Signals) -> bool:
    """Have the kernel send this process a signal when the thread that started it ends; return whether it still runs.

    Args:
        parent_pid: the parent, which may have ended before this call.
        number: the signal.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    return os.getppid() == parent_pid
