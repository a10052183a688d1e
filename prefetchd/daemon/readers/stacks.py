"""What the stack of a reader says of how it hung or crashed, as `faulthandler` writes it. Pure.

Threads are apart by an empty line, each with its innermost frame first. A reader's main thread is the one that
`reader/process.py` runs in. The innermost frame of ours there shows what it did.
"""

from __future__ import annotations

from pathlib import Path

_DATA = str(Path(__file__).parents[2] / "data")
_MAIN = "/prefetchd/reader/process.py"
_READING = ("stores", "read_ahead.py", "read_threads.py", "buffer_pool.py", "numbered_files.py", "files.py")
_FATAL = "Fatal Python error"
_CRASHED = "Current thread"


def at_content(stack: str) -> bool:
    """Return whether a reader was at work on a sample's content, such as decoding it, and not waiting for a read.

    A user's function is no part of the sample.
    """
    for thread in stack.split("\n\n"):
        ours = _ours(thread)
        if any(_MAIN in line for line in ours):
            return f'"{_DATA}/images/' in ours[0] and "/user_functions.py" not in ours[0]
    return False


def crashed_thread(stack: str) -> str:
    """Return the lines of the thread that a signal ended, from the last crash on; of all threads if it is none of
    Python's, and nothing without a crash.
    """
    before, fatal, after = stack.rpartition(_FATAL)
    del before
    if not fatal:
        return ""
    threads = after.split("\n\n")
    return next((thread for thread in threads if thread.startswith(_CRASHED)), after).strip()


def aborted_reading(stack: str) -> bool:
    """Return whether a reader that aborted was reading, and no decoder did it.

    The store's library aborts where it gets no memory, in the thread that asks or in one of its own. In the latter case
    the reader's main thread may be decoding meanwhile.
    """
    _, fatal, after = stack.rpartition(_FATAL)
    threads = after.split("\n\n") if fatal else []
    crashed = next((_ours(thread) for thread in threads if thread.startswith(_CRASHED)), None)
    if crashed is None:
        return any(ours and f'"{_DATA}/stores/' in ours[0] for ours in map(_ours, threads))
    if not crashed or not any(_MAIN in line for line in crashed):
        return True
    return any(f'"{_DATA}/{part}' in crashed[0] for part in _READING) or _MAIN in crashed[0]


def _ours(thread: str) -> list[str]:
    return [line for line in thread.splitlines() if "/prefetchd/" in line]
