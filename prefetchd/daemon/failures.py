"""Failures of a daemon, in words: each of them reaches its consumers as a `PrefetchdError`.

Wraps the start of each kind of daemon and its event loop.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from prefetchd.errors import PrefetchdError
from prefetchd.ipc import messages, os_errors, sockets

log = logging.getLogger("prefetchd")


@contextlib.contextmanager
def explained(cannot: str) -> Iterator[None]:
    """Turn each exception into one line, *cannot* `cannot`: ...

    Raises:
        PrefetchdError: in place of every `Exception` but the end of a connection.
    """
    try:
        with os_errors.explained(cannot):
            yield
    except (PrefetchdError, sockets.ConnectionEnded):
        raise
    except MemoryError as error:
        raise PrefetchdError(f"cannot {cannot}: it has no memory left; free some, or raise its limits") from error
    except ImportError as error:
        raise PrefetchdError(f"cannot {cannot}: {error}; reinstall prefetchd and what it needs") from error
    except OSError as error:
        where = f" ({error.filename})" if error.filename is not None else ""
        why = error.strerror or type(error).__name__
        raise PrefetchdError(f"cannot {cannot}: {why}{where}; see to that and start it again") from error
    except Exception as error:
        log.exception("the daemon cannot %s", cannot)
        raise PrefetchdError(
            f"cannot {cannot}: {type(error).__name__}: {error}; its log has the traceback: please report it"
        ) from error


def fatal(error: PrefetchdError) -> messages.Fatal:
    """Return the message with which a consumer raises `error`."""
    return messages.Fatal(type(error).__name__, str(error))
