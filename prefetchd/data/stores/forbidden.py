"""Whether a store forbids one object, which is that sample's fault, or all of them, as after a token has expired.

Asked where an answer was 401 or 403. Another object that was read before decides: if it can still be read, the one is
forbidden. In any process that reads objects, for its threads.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from prefetchd.data.faults import SampleFault
from prefetchd.data.stores.faults import Forbidden, LastingFault

_KEPT = 2  # so that one of them is another than any given one
_MOST_HOSTS = 1024
_PAUSE_S = 0.05


class ReadBefore:
    """The objects that were read last, of each host or bucket."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waited: set[str] = set()
        self._urls: OrderedDict[str, OrderedDict[str, None]] = OrderedDict()

    def note(self, url: str) -> None:
        """An object was read."""
        with self._lock:
            urls = self._urls.setdefault(_host(url), OrderedDict())
            self._urls.move_to_end(_host(url))
            urls[url] = None
            urls.move_to_end(url)
            if len(urls) > _KEPT:
                urls.popitem(last=False)
            if len(self._urls) > _MOST_HOSTS:
                self._urls.popitem(last=False)

    def verdict(
        self, url: str, can_read: Callable[[str], bool], can_list: Callable[[], bool], wait_s: float
    ) -> SampleFault:
        """Return the fault of an object that the store forbids to read.

        Args:
            url: of the object.
            can_read: asks the store for another one.
            can_list: asks the store for the names of some objects.
            wait_s: how long to wait for the first object that other threads read.
        """
        known = self._wait_for_another(url, wait_s)
        others = [each for each in known if each != url]
        if others:
            is_readable = can_read(others[0])
        elif known:  # it was readable itself
            is_readable = False
        elif can_list():
            is_readable = True
        else:
            return LastingFault("the store forbids to read it, and no other object was read; check the credentials")
        if is_readable:
            return Forbidden("the store forbids to read it")
        return LastingFault("the store forbids to read what was read before; renew the credentials")

    def _wait_for_another(self, url: str, wait_s: float) -> list[str]:
        """Return what was read; where nothing was, wait for it, once for each host."""
        host, end_s = _host(url), time.monotonic() + wait_s
        while True:
            with self._lock:
                known = [*self._urls.get(host, ())]
                if not known and host not in self._waited and time.monotonic() >= end_s:
                    self._waited.add(host)
                if known or host in self._waited:
                    return known
            time.sleep(_PAUSE_S)


def _host(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"
