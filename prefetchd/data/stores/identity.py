"""What tells one state of an object from any other: its size, and its ETag, or the time of its last change.

A weak ETag (`W/"..."`) serves too, but no server matches it in `If-Match`. So each answer is compared as well, which
also finds servers that do not look at that header.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

_MODIFIED = "modified "
_WEAK = "W/"


def identity_of(found: Any) -> list[int | str]:
    """Return the size, and what else is known, of what the store says of an object.

    The second is its ETag, else the time of its last change to the second, else nothing. Azure's listings leave out the
    quotes, which its other answers have.
    """
    tag = found["e_tag"]
    if not tag:
        return [found["size"], _time_of(found)]
    return [found["size"], tag if tag.endswith('"') else f'"{tag}"']


def _time_of(found: Any) -> str:
    changed = found["last_modified"]
    return f"{_MODIFIED}{changed.replace(microsecond=0).isoformat()}" if changed.timestamp() > 0 else ""


def has_etag(identity: Sequence[Any]) -> bool:
    """Return whether an identity has an ETag: what a time tells holds for a second only, and a size for nothing."""
    return bool(identity[1]) and not identity[1].startswith(_MODIFIED)


def state_of(identity: Sequence[Any]) -> bytes | None:
    """Return what tells this state from any other in a later run; `None` where nothing but the size is known."""
    return json.dumps([*identity]).encode() if identity[1] else None


def condition(identity: Sequence[Any]) -> dict[str, str]:
    """Return the conditions of a request for an object in this state."""
    return {"if_match": identity[1]} if has_etag(identity) and not identity[1].startswith(_WEAK) else {}


def is_same(found: Any, identity: Sequence[Any]) -> bool:
    """Return whether what the store says of an object is of this state."""
    size, tag = identity[0], identity[1]
    if found["size"] != size:
        return False
    if not has_etag(identity):
        return not tag or _time_of(found) == tag
    # A server may send an object now with a weak and now with a strong tag, as it compresses it or not.
    return str(identity_of(found)[1]).removeprefix(_WEAK) == str(tag).removeprefix(_WEAK)
