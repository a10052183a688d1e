"""How a process ended, in words. Pure."""

from __future__ import annotations

import signal

RAISED_STATUS = 213  # of a reader that an exception of ours ended, such as for lack of memory


def describe_exit(exit_code: int) -> str:
    """Describe how a process ended: `exit status 3`, `killed by SIGSEGV`."""
    if exit_code == RAISED_STATUS:
        return f"exit status {exit_code}, after an exception that the log has"
    if exit_code >= 0:
        return f"exit status {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"killed by signal {-exit_code}"
