"""Reading objects: the one place that imports obstore. A store is made once a process for each bucket."""

from __future__ import annotations

import datetime
import importlib
import logging
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from prefetchd.config.units import parse_bytes
from prefetchd.data.faults import EnvironmentFault, SampleFault, UnreadableFile
from prefetchd.data.stores import places
from prefetchd.data.stores.faults import (
    Forbidden,
    IgnoredRange,
    LastingFault,
    changed,
    fault_of_store,
    refusal,
)
from prefetchd.data.stores.forbidden import ReadBefore
from prefetchd.data.stores.identity import condition, has_etag, identity_of, is_same
from prefetchd.data.stores.keep import KeptRanges, entry_name
from prefetchd.data.stores.next_use import needed_s
from prefetchd.data.stores.options import arguments_of, explain, wanted_profile
from prefetchd.data.stores.urls import basic, is_web, shown, split, split_user
from prefetchd.errors import ConfigError, ManifestError

if TYPE_CHECKING:
    from prefetchd.config.options import Config
    from prefetchd.data.files import FileBuffer
    from prefetchd.data.source import ReserveMemory

log = logging.getLogger("prefetchd")

Result = TypeVar("Result")

_RETRIES = 4  # of the library, in one of our attempts
_MOST_S = 15.0
_MOST_STORES = 64  # a list may name many hosts, and a store holds some 100 KiB and its connections
_FIRST_READ_S = 2.0  # for which one that is forbidden waits for others
_RANGE_TRIES = 3  # of a server that ignores ranges: perhaps one of several does
_stores: OrderedDict[str, Any] = OrderedDict()
_given: dict[str, str] = {}  # the options for stores
_has_warned = False
_read_before = ReadBefore()
_lock = threading.Lock()  # of `_stores`
_kept: KeptRanges | None = None
_limit_s = _MOST_S  # of a request, of the library's retries, and of our attempts: a read ends after three times that


def set_up(config: Config) -> None:
    """Take what of the options concerns stores, in each process that reads them; before the first read.

    Reads end well before a reader that makes no progress is replaced. What is downloaded is kept in the folder `keep`,
    if that is given.

    Raises:
        ConfigError: if obstore is not installed, or the folder cannot be used.
    """
    global _limit_s, _kept, _given
    try:
        importlib.import_module("obstore")
    except ImportError as error:
        raise ConfigError(
            f"cannot read objects by URL: obstore cannot be imported ({error}); pip install 'prefetchd[stores]'"
        ) from None
    _limit_s = min(_MOST_S, config.reader_timeout / 4)
    given = config.store_options.values_by_key()
    if given != _given:
        _given = given
        places.set_up(given)
        with _lock:
            _stores.clear()
    folder = None if config.keep is None else Path(config.keep).expanduser().absolute()
    limit = None if config.keep_size == "auto" else parse_bytes(config.keep_size)
    if folder is None:
        _kept = None
    elif _kept is None or (_kept.folder, _kept.limit_bytes) != (folder, limit):
        _kept = KeptRanges(folder, limit)


def kept() -> KeptRanges | None:
    """Return what keeps downloads, if they are kept."""
    return _kept


def store_of(url: str) -> Any:
    """Return the store of a URL (`s3://bucket`); the last used ones are kept."""
    with _lock:
        if url not in _stores:
            _stores[url] = _make_store(url)
            if len(_stores) > _MOST_STORES:
                _stores.popitem(last=False)
        _stores.move_to_end(url)
        return _stores[url]


def _make_store(url: str) -> Any:
    from obstore.exceptions import BaseError
    from obstore.store import HTTPStore, from_url

    scheme, _, home = url.partition("://")
    if not is_web(url) and ":" in (home.rpartition("@")[0] or home):  # the library would leave that out
        raise ConfigError(
            f"cannot read {scheme}://...: a bucket's URL has neither keys nor a port; give keys by the usual variables "
            "or store_options, and a server as store_options={'endpoint': 'http://host:9000'}"
        )
    limit = datetime.timedelta(seconds=_limit_s)
    own, connections = arguments_of(url, _given)
    more: Any = {
        "retry_config": {"max_retries": _RETRIES, "retry_timeout": limit},
        "client_options": {"timeout": limit, **connections},
    }
    try:
        if is_web(url):
            address, user = split_user(url)
            if user:  # the library leaves it out
                more["client_options"]["default_headers"] = {"authorization": basic(user)}
            return HTTPStore(address, **more)
        profile = wanted_profile(url, _given)
        if profile is not None:
            from prefetchd.data.stores.profile import ProfileCredentials

            more["credential_provider"] = ProfileCredentials(profile)
        return from_url(url, **own, **more)
    except (BaseError, TypeError, ValueError) as error:
        raise explain(error, url) from None


def get(url: str, options: Any = None) -> Any:
    """Return the store's answer to one request for an object; raises what the library raises."""
    import obstore

    home, key = split(url)
    return obstore.get(store_of(home), key, options=options)


def head(url: str) -> list[int | str]:
    """Return an object's identity, its size and ETag; raises `ManifestError` if it cannot be looked at."""
    import obstore

    home, key = split(url)
    try:
        found = identity_of(with_retries(url, lambda: obstore.head(store_of(home), key)))
        _warn_without_identity(url, found)
        return found
    except SampleFault as fault:
        if isinstance(fault, EnvironmentFault) and not isinstance(fault, LastingFault):
            raise refusal("open", shown(url), fault) from None
    try:  # such an answer has no words: asked for the object, the store says more
        return look(url)
    except SampleFault as fault:
        raise refusal("open", shown(url), fault) from None


def _warn_without_identity(url: str, identity: Sequence[Any]) -> None:
    global _has_warned
    if not identity[1] and not _has_warned:
        _has_warned = True
        log.warning(
            "objects such as %s have neither an ETag nor a time: one that is replaced by another of the same size is "
            "not noticed; leave them as they are while they are served",
            shown(url),
        )


def look(url: str) -> list[int | str]:
    """Return an object's identity, without its content.

    Raises:
        SampleFault: if it cannot be read.
    """
    # Not HEAD, which a signed URL may not allow, and whose answer has no words.
    return identity_of(with_retries(url, lambda: get(url)).meta)


def read(
    url: str, identity: Sequence[Any], start: int, n_bytes: int, buffer: FileBuffer, reserve: ReserveMemory
) -> memoryview:
    """Return `n_bytes` of an object from `start` on, whole, in `buffer` until its next use.

    Raises:
        SampleFault: if they cannot be read.
        ManifestError: if the object has another identity.
    """
    if n_bytes > buffer.capacity_bytes:
        reserve(n_bytes)
    content = fetch(url, identity, start, n_bytes)
    view = buffer.view(n_bytes)
    view[:] = content
    return view


def read_bytes(url: str, start: int, n_bytes: int, identity: Sequence[Any]) -> bytes:
    """Return bytes of an object, whole; raises as `read`, but for a fault a `ManifestError`."""
    if n_bytes <= 0:
        return b""
    try:
        return bytes(fetch(url, identity, start, n_bytes))
    except SampleFault as fault:
        raise ManifestError(f"cannot read {shown(url)}: {fault.reason}; check the store, and start again") from None


def read_whole(url: str, *, is_optional: bool = False) -> bytes | None:
    """Return all of an object, or `None` if there is none; raises `ManifestError` if it cannot be read.

    S3 forbids to read what is not there, where names may not be listed: if it `is_optional` that counts as none.
    """

    def attempt() -> bytes | None:
        try:
            found = get(url)
            content = bytes(found.bytes())
        except FileNotFoundError as error:
            if isinstance(fault_of_store(error, shown(url)), UnreadableFile):
                return None
            raise
        if len(content) != found.meta["size"]:
            raise EnvironmentFault(f"the store gave {len(content)} of {found.meta['size']} bytes")
        return content

    try:
        return with_retries(url, attempt)
    except SampleFault as fault:
        if is_optional and isinstance(fault, Forbidden):
            return None
        raise refusal("read", shown(url), fault) from None


def read_start(url: str, n_bytes: int) -> bytes:
    """Return the first bytes of an object, at most so many; nothing if there is none, or it is forbidden.

    Raises:
        ManifestError: if the store cannot be asked.
    """
    try:
        found = with_retries(url, lambda: get(url))
        if not found.meta["size"]:
            return b""
        n_bytes = min(n_bytes, found.meta["size"])
        return bytes(fetch(url, identity_of(found.meta), 0, n_bytes))
    except UnreadableFile:
        return b""
    except SampleFault as fault:
        raise ManifestError(f"cannot open {shown(url)}: {fault}; check the URL and the credentials") from None


def fetch(url: str, identity: Sequence[Any], start: int, n_bytes: int) -> memoryview:
    """Return `n_bytes` of an object from `start` on, whole, downloaded or kept; raises as `read`."""
    if _kept is None or not has_etag(identity):  # without an ETag a replaced object could look the same
        return _download(url, identity, start, n_bytes)
    name = entry_name(url, identity, start, n_bytes)
    content = _kept.find(name, n_bytes, needed_s())
    if content is None:
        content = _download(url, identity, start, n_bytes)
        _kept.store(name, content, needed_s())
    return content


def _download(url: str, identity: Sequence[Any], start: int, n_bytes: int) -> memoryview:
    options: Any = {"range": (start, start + n_bytes), **condition(identity)}

    def attempt() -> memoryview:
        found = get(url, options)
        if not is_same(found.meta, identity):
            raise changed(shown(url))
        content = memoryview(found.bytes())  # type: ignore[arg-type, unused-ignore]  # before 3.12 there is no Buffer
        if len(content) == n_bytes and tuple(found.range) == (start, start + n_bytes):
            return content
        raise EnvironmentFault(f"the store gave {len(content)} of {n_bytes} bytes")

    return with_retries(url, attempt, is_sample=True)


def with_retries(url: str, attempt: Callable[[], Result], *, is_sample: bool = False) -> Result:
    """Return what `attempt` returns, which reads the object at `url`; what may pass is tried again for some time.

    Args:
        url: of the object.
        attempt: reads it, or of it.
        is_sample: whether it is known of the objects of this store that some can be read. One that is forbidden is then
            told from a store that forbids all.

    Raises:
        SampleFault: if it cannot be read.
        ManifestError: if it was replaced.
        Exception: what is no fault of a store, such as a lack of memory.
    """
    end_s = time.monotonic() + _limit_s
    pause_s, n_tries = 0.1, 0
    while True:
        n_tries += 1
        try:
            result = attempt()
            _read_before.note(url)
            return result
        except EnvironmentFault as error:
            fault = error
        except (SampleFault, ManifestError, ConfigError, MemoryError):
            raise
        except BaseException as error:  # a panic of the library is no `Exception`
            found = fault_of_store(error, shown(url))
            if found is None:
                raise
            if isinstance(found, Forbidden) and is_sample:
                found = _read_before.verdict(url, _can_read, partial(_can_list, url), min(_FIRST_READ_S, _limit_s / 4))
                raise found from None
            if isinstance(found, LastingFault) or not isinstance(found, EnvironmentFault):
                raise found from None
            fault = found
        is_in_vain = isinstance(fault, IgnoredRange) and n_tries >= _RANGE_TRIES
        if is_in_vain or time.monotonic() + pause_s > end_s:
            raise fault.with_traceback(None) from None
        time.sleep(pause_s * random.uniform(0.5, 1))  # not all threads at once
        pause_s *= 2


def _can_read(url: str) -> bool:
    """Return whether a byte of an object can be read."""
    try:
        get(url, {"range": (0, 1)})
    except Exception:
        return False
    return True


def _can_list(url: str) -> bool:
    """Return whether the store tells the names of objects beside one: it takes the credentials then."""
    import obstore

    home, key = split(url)
    if is_web(url):
        return False
    try:
        next(iter(obstore.list(store_of(home), key.rpartition("/")[0] or None, chunk_size=1)), None)
    except Exception:
        return False
    return True
