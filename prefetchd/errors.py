"""The exceptions that users can catch: one family under `PrefetchdError`.

Every message is one printable line in the form *cannot X: Y (the numbers); do Z*. The classes cross the socket by name
(`error_from_name`), never as pickled objects, so a consumer raises the daemon's error. Pure.
"""

from __future__ import annotations

import re

# Of a URL the user before the host, of one that is not of the web if it has a password; `container@account` is none.
_USER = re.compile(r"(?i)(https?://|[a-z][a-z0-9+.-]*://(?=[^/@:\s\"'<>?]*:))[^/\s\"'<>?]*@")
# Of a URL of the web query and fragment up to the end of the word.
_QUERY = re.compile(
    r"(?i)(https?://[^\s?#\"'<>]*[?#])(?!\.\.\.(?:[\s\"'<>;:,.)]|$))[^\s\"'<>]*?(?=[;:,.)]*(?:[\s\"'<>]|$))"
)


def one_line(text: str) -> str:
    """Return `text` printable and on one line: a line break becomes `\\n`, a terminal's escape code `\\x1b`.

    A path may hold any byte but NUL, and a JSON string any character. Bytes that are not UTF-8 (surrogate escapes)
    could not be sent. What of a URL may be a secret, user and password, and of the web query and fragment, is left out.
    """
    if "://" in text:
        text = _QUERY.sub(r"\1...", _USER.sub(r"\1", text))
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class PrefetchdError(Exception):
    """Base class of everything that prefetchd raises on purpose.

    Its message is made one printable line here, with all the names and paths that it quotes.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


class ConfigError(PrefetchdError):
    """An option is unknown, malformed, or contradicts another option or the daemon attached to."""


class ManifestError(PrefetchdError):
    """The manifest or array cannot be read, is malformed or empty, or changed on disk while it was served."""


class SampleError(PrefetchdError):
    """A sample cannot be read or decoded, and the policy (`on_error="raise"`) does not skip it."""


class BudgetError(PrefetchdError):
    """The memory budget cannot hold the work; the message names the smallest budget that can."""


class DaemonNotFound(PrefetchdError):
    """No daemon of that name answered within the time-out, or it is another user's."""


class DaemonLost(PrefetchdError):
    """The daemon that served this loader ended. Arrays already delivered stay valid."""


class RingExhausted(PrefetchdError):
    """The loop holds more batches than the ring can spare; the message says who holds what."""


_BY_NAME: dict[str, type[PrefetchdError]] = {
    cls.__name__: cls
    for cls in (
        PrefetchdError,
        ConfigError,
        ManifestError,
        SampleError,
        BudgetError,
        DaemonNotFound,
        DaemonLost,
        RingExhausted,
    )
}


def error_from_name(name: str, message: str) -> PrefetchdError:
    """Return the exception of the class called `name` (or the base class if unknown) with `message`."""
    return _BY_NAME.get(name, PrefetchdError)(message)
