"""Text from outside (paths, column names, what a user's function raised) as errors and logs show it. Pure."""

from __future__ import annotations


def one_line(text: str) -> str:
    """Return `text` printable and on one line: a line break becomes `\\n`, a terminal's escape code `\\x1b`.

    A path may hold any byte but NUL, and a JSON string any character at all. Bytes that are not UTF-8, surrogate
    escapes here, could not even be sent.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
