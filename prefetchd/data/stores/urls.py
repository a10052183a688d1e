"""URLs of objects as text: which text is one, its store and key, what a list's lines mean, how it is shown. Pure.

A URL of a bucket (`s3://bucket/a b.jpg`) is taken as it is written: keys hold any characters. A URL of the web is
percent-encoded, and may have a query.
"""

from __future__ import annotations

import base64
import glob
import os
import re
from urllib.parse import unquote

_URL = re.compile(r"(s3|s3a|gs|gcs|az|azure|abfs|abfss|adl|http|https)://", re.IGNORECASE)
_WEB = re.compile(r"https?://", re.IGNORECASE)
_DOTS = re.compile(r"(^|/)\.\.?(/|$)")
# What the store's library cannot take for a key: it is left in the URL of the store.
_ODD = re.compile(r"[?]|//|%2f|%00|(^|/)\.\.?(/|$)|/$", re.IGNORECASE)


def is_url(text: str) -> bool:
    """Return whether `text` names an object or a prefix of a store, and no file."""
    return _URL.match(text) is not None


def is_web(url: str) -> bool:
    """Return whether a URL is that of a web server, which lists nothing."""
    return _WEB.match(url) is not None


# Parameters of a query that sign a URL: other ones each time, for the same object. Of short names those beside a
# signature alone: elsewhere they may say which object it is.
_SIGNING = re.compile(r"x-(amz|goog|oss|cos|obs)-.*")
_BESIDE = {
    "sig": frozenset(
        (
            "sv", "ss", "srt", "sr", "sp", "st", "se", "sip", "spr", "sig", "skoid", "sktid", "skt", "ske", "sks",
            "skv", "saoid", "suoid", "scid", "sdd", "ses",
        )
    ),
    "signature": frozenset(
        (
            "awsaccesskeyid", "googleaccessid", "ossaccesskeyid", "key-pair-id", "policy", "signature", "expires",
        )
    ),
}  # fmt: skip


def split(url: str) -> tuple[str, str]:
    """Return the URL of the store (`s3://bucket`) and the key in it.

    What of a URL of the web cannot be a key, such as one with a query, is a store of its own with an empty key.
    """
    scheme, _, rest = url.partition("://")
    home, _, key = rest.partition("/")
    if not is_web(url):
        return f"{scheme}://{home}", key
    key = key.partition("#")[0]
    if "?" in home or _ODD.search(key) or not _is_text(key):
        return f"{scheme}://{rest.partition('#')[0]}", ""
    return f"{scheme}://{home}", unquote(key)


def _is_text(key: str) -> bool:
    """Return whether a percent-encoded key is UTF-8, so that it is the same one encoded again."""
    try:
        unquote(key, errors="strict")
    except UnicodeDecodeError:
        return False
    return True


def lasting(url: str) -> str:
    """Return what names an object on disk: its URL without user and signature, and with the rest of its query.

    `?id=7` is another object than `?id=8`, and a signature says nothing of the object.
    """
    if not is_web(url):
        return url
    query = url.partition("#")[0].partition("?")[2]
    given = [(each.partition("=")[0].lower(), each) for each in query.split("&") if each]
    names = {name for name, _ in given}
    signing = {name for mark, beside in _BESIDE.items() if mark in names for name in beside}
    kept = [each for name, each in given if name not in signing and not _SIGNING.fullmatch(name)]
    return f"{shown(url)}?{'&'.join(kept)}" if kept else shown(url)


def shown(url: str) -> str:
    """Return a URL for people: that of the web without user, query and fragment, which may be secrets."""
    if not is_web(url):
        return url
    return split_user(_without_query(url))[0]


def split_user(url: str) -> tuple[str, str]:
    """Return a URL of the web without its user, and that: `name:password`, no longer percent-encoded, or nothing."""
    match = re.match(r"(https?://)([^/@?#]*)@", url, re.IGNORECASE)
    return (url, "") if match is None else (match[1] + url[match.end() :], unquote(match[2]))


def basic(user: str) -> str:
    """Return the header `Authorization` of a request for a user with a password (`name:password`)."""
    return "Basic " + base64.b64encode((user if ":" in user else f"{user}:").encode()).decode()


def _without_query(url: str) -> str:
    return re.split("[?#]", url, maxsplit=1)[0] if is_web(url) else url


def join(root: str, path: str) -> str:
    """Return the path or URL of what a list names as `path`, where relative ones start from `root`.

    A URL is taken as it stands, and a path that begins with a slash is a file of this machine.
    """
    if path.startswith("/") or is_url(path):
        return path
    if _DOTS.search(path):
        scheme, _, rest = root.partition("://")
        parts = [part for part in rest.split("/") if part]
        for part in path.split("/"):
            if part == "..":
                del parts[max(1, len(parts) - 1) :]  # never the bucket or host
            elif part != ".":
                parts.append(part)
        return f"{scheme}://{'/'.join(parts)}"
    return f"{root.rstrip('/')}/{path}"


def parent(url: str) -> str:
    """Return what the relative paths of a list start from, by its URL or path: with its user, and without a query."""
    return _without_query(url).rpartition("/")[0] if is_url(url) else os.path.dirname(url)


def file_name(url: str) -> str:
    """Return the last part of a URL or path, without a query: what says of which kind it is, and may be shown."""
    return shown(url).rpartition("/")[2]


def with_suffix(name: str, suffix: str) -> str:
    """Return the path or URL of a file that differs in its suffix; a query stays behind it."""
    stem = _without_query(name)
    return os.path.splitext(stem)[0] + suffix + name[len(stem) :]


def has_wildcard(source: str) -> bool:
    """Return whether a path or URL is a pattern of names; the query of a URL is none."""
    return glob.has_magic(_without_query(source))
