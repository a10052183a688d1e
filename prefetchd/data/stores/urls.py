"""URLs of objects as text: which text is one, its store and key, and how it is shown. Pure."""

from __future__ import annotations

import re

_URL = re.compile(r"(s3|s3a|gs|gcs|az|azure|abfs|abfss|adl|http|https)://", re.IGNORECASE)


def is_url(text: str) -> bool:
    """Return whether `text` names an object or a prefix of a store, and no file."""
    return _URL.match(text) is not None


def split(url: str) -> tuple[str, str]:
    """Return the URL of the store (`s3://bucket`) and the key in it."""
    scheme, _, rest = url.partition("://")
    home, _, key = rest.partition("/")
    return f"{scheme}://{home}", key


def shown(url: str) -> str:
    """Return a URL for people: without user, query and fragment, which may be secrets."""
    return re.sub(r"://[^/@]*@", "://", url.partition("?")[0].partition("#")[0])
