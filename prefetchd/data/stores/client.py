"""Reading objects: the one place that imports obstore. A store is made once a process for each bucket."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefetchd.config.units import parse_bytes
from prefetchd.data.faults import EnvironmentFault, SampleFault
from prefetchd.data.stores.faults import changed, fault_of_store
from prefetchd.data.stores.keep import KeptRanges, entry_name
from prefetchd.data.stores.urls import shown, split
from prefetchd.errors import ConfigError, ManifestError

if TYPE_CHECKING:
    from prefetchd.config.options import Config
    from prefetchd.data.files import FileBuffer
    from prefetchd.data.source import ReserveMemory

_RETRIES = 4  # of the library, in one of our attempts
_MOST_S = 15.0
_stores: dict[str, Any] = {}
_kept: KeptRanges | None = None
_limit_s = _MOST_S  # of a request, of the library's retries, and of our attempts: a read ends after three times that


def limit_retries(reader_timeout_s: float) -> None:
    """Have reads end well before a reader that makes no progress is replaced; before the first read."""
    global _limit_s
    _limit_s = min(_MOST_S, reader_timeout_s / 4)


def keep_in(config: Config) -> None:
    """Keep what is downloaded in the folder `keep`, if it is given; before the first read.

    Raises:
        ConfigError: if the folder cannot be used.
    """
    global _kept
    _kept = None
    if config.keep is not None:
        limit = None if config.keep_size == "auto" else parse_bytes(config.keep_size)
        _kept = KeptRanges(Path(config.keep).expanduser().absolute(), limit)


def store_of(url: str, options: Mapping[str, str] | None = None) -> Any:
    """Return the store of a URL (`s3://bucket`)."""
    if url not in _stores:
        try:
            from obstore.store import from_url
        except ImportError:
            raise ConfigError(
                f"cannot read {shown(url)}: obstore is not installed; pip install 'prefetchd[stores]'"
            ) from None
        limit = datetime.timedelta(seconds=_limit_s)
        retries = {"max_retries": _RETRIES, "retry_timeout": limit}
        more: Any = {
            **(options or {}),
            "retry_config": retries,
            "client_options": {"allow_http": True, "timeout": limit},
        }
        _stores[url] = from_url(url, **more)
    return _stores[url]


def head(url: str) -> list[int | str]:
    """Return an object's identity, its size and ETag; raises `ManifestError` if it cannot be looked at."""
    import obstore

    home, key = split(url)
    try:
        found = obstore.head(store_of(home), key)
    except Exception as error:
        fault = fault_of_store(error, shown(url))
        raise ManifestError(f"cannot open {shown(url)}: {fault}; check the URL and the credentials") from None
    return [found["size"], found["e_tag"] or ""]


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


def read_whole(url: str) -> bytes | None:
    """Return all of an object, or `None` if there is none; raises `ManifestError` if it cannot be read."""
    import obstore

    home, key = split(url)
    try:
        return bytes(obstore.get(store_of(home), key).bytes())
    except FileNotFoundError:
        return None
    except Exception as error:
        fault = fault_of_store(error, shown(url))
        raise ManifestError(f"cannot read {shown(url)}: {fault}; check the store, and start again") from None


def fetch(url: str, identity: Sequence[Any], start: int, n_bytes: int) -> memoryview:
    """Return `n_bytes` of an object from `start` on, whole, downloaded or kept; raises as `read`."""
    if _kept is None or not identity[1]:  # without an ETag a replaced object could look the same
        return _download(url, identity, start, n_bytes)
    name = entry_name(url, identity, start, n_bytes)
    content = _kept.find(name, n_bytes)
    if content is None:
        content = _download(url, identity, start, n_bytes)
        _kept.store(name, content)
    return content


def _download(url: str, identity: Sequence[Any], start: int, n_bytes: int) -> memoryview:
    import obstore

    home, key = split(url)
    end_s = time.monotonic() + _limit_s
    pause_s = 0.1
    while True:
        try:
            options: Any = {"range": (start, start + n_bytes)}
            if identity[1]:
                options["if_match"] = identity[1]
            found = obstore.get(store_of(home), key, options=options)
            if found.meta["size"] != identity[0]:
                raise changed(shown(url))
            content = memoryview(found.bytes())  # type: ignore[arg-type, unused-ignore]
            if len(content) == n_bytes and tuple(found.range) == (start, start + n_bytes):
                return content
            fault: SampleFault = EnvironmentFault(f"the store gave {len(content)} of {n_bytes} bytes")
        except ManifestError:
            raise
        except Exception as error:
            found_fault = fault_of_store(error, shown(url))
            if not isinstance(found_fault, EnvironmentFault):
                raise found_fault from None
            fault = found_fault
        if time.monotonic() + pause_s > end_s:
            raise fault
        time.sleep(pause_s)
        pause_s *= 2


def listing(prefix: str) -> Iterator[tuple[str, list[int | str]]]:
    """Yield URL and identity of each object whose URL begins with `prefix`, sorted within the store's pages."""
    import obstore

    home, key = split(prefix)
    for page in obstore.list(store_of(home), key or None):
        for found in page:
            yield f"{home}/{found['path']}", [found["size"], found["e_tag"] or ""]
