"""Several caches as one: those of the image fields of one data set, or of the sources of a mixture. In the daemon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefetchd.data.cache.daemon_side import CacheInDaemon

_SUMMED = ("hits", "misses", "rows_written", "bytes_written")  # of this run
_OF_FOLDERS = ("rows", "bytes")


class SeveralCaches:
    """Caches by the number of their field, or source; owned."""

    def __init__(self, caches: Mapping[int, CacheInDaemon | SeveralCaches]) -> None:
        self._caches = caches

    def handle(self) -> tuple[dict[str, Any], list[int]]:
        """Plain values, and descriptors that stay this object's, from which a reader attaches."""
        parts = {number: cache.handle() for number, cache in self._caches.items()}
        fds = [fd for _, each in parts.values() for fd in each]
        return {"fields": [[number, facts, len(each)] for number, (facts, each) in parts.items()]}, fds

    @property
    def shared_bytes(self) -> int:
        """What all of them hold in memory."""
        return sum(cache.shared_bytes for cache in self._caches.values())

    def report(self) -> dict[str, Any]:
        """Return what `status` shows of all together; two of one pipeline have one folder."""
        reports = [cache.report() for cache in self._caches.values()]
        merged = dict(reports[0])
        folders = {report["folder"]: report for report in reports}
        merged.update({name: sum(report[name] for report in reports) for name in _SUMMED})
        merged.update({name: sum(report[name] for report in folders.values()) for name in _OF_FOLDERS})
        merged["stopped"] = next((report["stopped"] for report in reports if report["stopped"] is not None), None)
        return merged

    def tick(self) -> None:
        """Let each log that it is not filled any more."""
        for cache in self._caches.values():
            cache.tick()

    def drop_pages(self) -> None:
        """Have the kernel forget the pages of the rows."""
        for cache in self._caches.values():
            cache.drop_pages()

    def close(self) -> None:
        """Give the descriptors back."""
        for cache in self._caches.values():
            cache.close()
