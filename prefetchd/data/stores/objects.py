"""Whole objects that a list names, each by one request. In readers, where several threads read at once.

With `keep`, an object is kept in one entry, named by its URL alone: a list does not know its state. The entry says it:

    | length of what follows, 2 bytes | size and ETag, as JSON | zeros up to 1 KiB | the object |

In a later run the store is asked at the first read whether the object is still that, by a request that brings no bytes
(If-None-Match). From then on the run knows its identity (`pins`), and asks nothing.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from prefetchd.data.faults import EnvironmentFault, SampleFault, UnreadableFile
from prefetchd.data.stores.client import get, kept, store_of, with_retries
from prefetchd.data.stores.faults import changed, lost
from prefetchd.data.stores.identity import has_etag, identity_of
from prefetchd.data.stores.keep import entry_name
from prefetchd.data.stores.next_use import needed_s
from prefetchd.data.stores.pins import word_of
from prefetchd.data.stores.urls import shown, split

if TYPE_CHECKING:
    from prefetchd.data.files import FileBuffer
    from prefetchd.data.source import ReserveMemory
    from prefetchd.data.stores.keep import KeptRanges
    from prefetchd.data.stores.pins import Pins

_AT_ONCE_BYTES = 1 << 20  # a larger object is taken in pieces, so that it is not in memory twice
_HEAD_BYTES = 1 << 10


class _Kept(NamedTuple):
    """A kept object: its identity when it was downloaded, and its bytes."""

    identity: list[Any]
    content: memoryview


def read_object(url: str, buffer: FileBuffer, reserve: ReserveMemory, pins: Pins, place: int) -> memoryview:
    """Return the bytes of the object at `url`, in `buffer` until its next use.

    Args:
        url: of the object.
        buffer: where the bytes go.
        reserve: called with the object's size before `buffer` grows to it; may raise to refuse.
        pins: the identities of the list's objects.
        place: of this object's there.

    Raises:
        SampleFault: if it cannot be read, or is empty.
        ManifestError: if it is not what it was when it was first read.
    """
    from obstore.exceptions import NotModifiedError

    keep, name = kept(), ""
    found: _Kept | None = None
    if keep is not None:
        name = entry_name(url, (), 0, 0)
        found = _find(keep, name, buffer, reserve)
        if found is not None and pins.word(place) == word_of(found.identity):
            return _copy(found.content, buffer)
    options: Any = {}
    if found is not None and not pins.word(place):
        options["if_none_match"] = found.identity[1]

    def attempt() -> tuple[memoryview, list[Any]]:
        try:
            answer = get(url, options)
        except NotModifiedError:
            assert found is not None
            if not pins.note(place, found.identity, is_read=True):
                raise changed(shown(url)) from None
            return _copy(found.content, buffer), []
        identity = identity_of(answer.meta)
        n_bytes = int(identity[0])
        if not pins.note(place, identity, is_read=n_bytes > 0):
            raise changed(shown(url))
        if not n_bytes:
            raise UnreadableFile("the object is empty (0 bytes)")
        if n_bytes > buffer.capacity_bytes:
            reserve(n_bytes)
        return _take(answer, buffer.view(n_bytes)), identity

    try:
        content, identity = with_retries(url, attempt, is_sample=True)
    except UnreadableFile as fault:
        if pins.was_read(place):
            raise lost(url, fault) from None
        raise
    if keep is not None and identity and has_etag(identity):
        if found is not None:
            keep.discard(name)
        _store(keep, name, identity, content)
    return content


def note_state(url: str, pins: Pins, place: int) -> None:
    """Note which state of the object at `url` there is, by a request without its bytes, if it can be read."""
    import obstore

    home, key = split(url)
    try:
        identity = identity_of(with_retries(url, lambda: obstore.head(store_of(home), key)))
    except SampleFault:
        return  # reading it says why
    if identity[0]:
        pins.note(place, identity)


def _find(keep: KeptRanges, name: str, buffer: FileBuffer, reserve: ReserveMemory) -> _Kept | None:
    n_bytes = keep.size_of(name)
    if n_bytes is None:
        return None
    if n_bytes <= _HEAD_BYTES:  # as a loss of power leaves it
        keep.discard(name)
        return None
    if n_bytes > buffer.capacity_bytes:
        reserve(n_bytes)
    whole = keep.find(name, n_bytes, needed_s())
    if whole is None:
        return None
    try:
        size, etag = identity = json.loads(bytes(whole[2 : 2 + int.from_bytes(whole[:2], "little")]))
    except (ValueError, TypeError):
        return None
    if size != n_bytes - _HEAD_BYTES or not isinstance(etag, str):
        return None
    return _Kept(identity, whole[_HEAD_BYTES:])


def _store(keep: KeptRanges, name: str, identity: list[Any], content: memoryview) -> None:
    head = json.dumps(identity).encode()
    if len(head) > _HEAD_BYTES - 2:  # no server's ETag is so long
        return
    whole = bytearray(_HEAD_BYTES + len(content))
    whole[: 2 + len(head)] = len(head).to_bytes(2, "little") + head
    whole[_HEAD_BYTES:] = content
    keep.store(name, memoryview(whole), needed_s())


def _copy(content: memoryview, buffer: FileBuffer) -> memoryview:
    view = buffer.view(len(content))
    view[:] = content
    return view


def _take(found: Any, view: memoryview) -> memoryview:
    """Fill `view` with the body of an answer, which has its length."""
    pieces = (found.bytes(),) if len(view) <= _AT_ONCE_BYTES else found.stream(min_chunk_size=_AT_ONCE_BYTES)
    at = 0
    for each in pieces:
        piece = memoryview(each)
        end = at + len(piece)
        if end > len(view):
            raise EnvironmentFault(f"the store gave more than {len(view)} bytes")
        view[at:end] = piece
        at = end
    if at < len(view):
        raise EnvironmentFault(f"the store gave {at} of {len(view)} bytes")
    return view
