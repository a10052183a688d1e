"""Which objects there are: whether there is one of a name, and the names below a prefix. In the daemon, at open."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from prefetchd.data.faults import SampleFault, UnreadableFile
from prefetchd.data.stores.client import get, store_of, with_retries
from prefetchd.data.stores.faults import fault_of_store, refusal
from prefetchd.data.stores.identity import identity_of
from prefetchd.data.stores.urls import is_web, shown, split
from prefetchd.errors import ManifestError

log = logging.getLogger("prefetchd")

_SAY_EVERY_S = 10.0


def exists(url: str) -> bool:
    """Return whether there is such an object; raises `ManifestError` if the store cannot be asked."""

    def attempt() -> bool:
        try:
            get(url)
        except FileNotFoundError as error:
            if isinstance(fault_of_store(error, url), UnreadableFile):
                return False
            raise
        return True

    try:
        return with_retries(url, attempt)
    except SampleFault as fault:
        raise refusal("open", shown(url), fault) from None


def listing(prefix: str) -> Iterator[tuple[str, list[int | str]]]:
    """Yield URL and identity of each object below `prefix`, which ends in a slash, sorted within the store's pages.

    A store tells a thousand names a request, one after another: a long listing says how far it is.

    Raises:
        ManifestError: if they cannot be listed.
    """
    import obstore

    home, key = split(prefix)
    if is_web(prefix):
        raise ManifestError(
            f"cannot list {shown(prefix)}: a web server tells no names; give a list of URLs, or braces ({{000..099}})"
        )
    n_found, said_s = 0, time.monotonic()
    try:
        for page in obstore.list(store_of(home), key or None):
            for found in page:
                yield f"{home}/{found['path']}", identity_of(found)
            n_found += len(page)
            if time.monotonic() - said_s > _SAY_EVERY_S:
                said_s = time.monotonic()
                log.warning("listing %s: %d objects so far", shown(prefix), n_found)
    except BaseException as error:  # a panic of the library is no `Exception`
        fault = fault_of_store(error, shown(prefix))
        if fault is None:
            raise
        raise refusal("list", shown(prefix), fault) from None
