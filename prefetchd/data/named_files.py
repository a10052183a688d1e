"""Files and objects that a list names, one a sample and part: read by path or by URL."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from prefetchd.data.files import read_file
from prefetchd.data.stores.urls import is_url, join

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefetchd.columns.store import Column
    from prefetchd.data.files import FileBuffer
    from prefetchd.data.source import ReserveMemory


_MAY_BE_URL = re.compile(rb"://")


def has_urls(column: Column) -> bool:
    """Return whether a column of text has the URL of an object."""
    if _MAY_BE_URL.search(column.values.data) is None:
        return False
    return any(map(is_url, column))


def absolute_root(root: str) -> str:
    """Return the folder or prefix that relative paths start from: an absolute path, or a URL."""
    return root if is_url(root) else os.path.abspath(os.path.expanduser(root))


def whole_path(root: str, name: str) -> str:
    """Return the absolute path or the URL of what a list names so; `root` is absolute."""
    return join(root, name) if is_url(root) or is_url(name) else os.path.join(root, name)


def pins_for(n_objects: int, words: Sequence[int] = (), *, is_far: bool) -> int:
    """Return the descriptor, the caller's, of the identities of so many objects; -1 where there are none.

    `words` are those that are known.
    """
    if not is_far:
        return -1
    from prefetchd.data.stores.pins import make_pins

    return make_pins(n_objects, words)


class NamedFiles:
    """Reads what a list names. `close()` ends it.

    Args:
        root: what relative names start from: an absolute path, or a URL.
        pins_fd: descriptor, owned from here on, of the identities of objects (`stores.pins`); -1 if the list names
            files alone.
    """

    def __init__(self, root: str, pins_fd: int = -1) -> None:
        self._root = root
        self._folder = os.path.join(root, "")
        self._pins = None
        if pins_fd >= 0:
            from prefetchd.data.stores.pins import Pins

            self._pins = Pins(pins_fd)

    @property
    def is_far(self) -> bool:
        """Whether some of them are objects."""
        return self._pins is not None

    @property
    def fds(self) -> list[int]:
        """The descriptor of the identities, if there is one; it stays this object's."""
        return [] if self._pins is None else [self._pins.fd]

    def path(self, name: str) -> str:
        """Return the absolute path or the URL of what the list names so."""
        if self._pins is None:
            return name if name.startswith("/") else self._folder + name
        return whole_path(self._root, name)

    def read(self, path: str, pin: int, buffer: FileBuffer, reserve: ReserveMemory) -> memoryview:
        """Return the bytes of a file or object, in `buffer` until its next use.

        Args:
            path: what `path` returned.
            pin: place of its identity.
            buffer: where the bytes go.
            reserve: called with its size in bytes before `buffer` grows to it; may raise to refuse.

        Raises:
            SampleFault: if it cannot be read, or is empty.
            ManifestError: if it is an object, and not what it was when it was first read.
        """
        if self._pins is None or not is_url(path):
            return read_file(path, buffer, reserve=reserve)
        from prefetchd.data.stores.objects import read_object

        return read_object(path, buffer, reserve, self._pins, pin)

    def state(self, path: str, pin: int, ask: bool) -> bytes | None:
        """Return the state of an object that was read, or is asked for now; `None` for a file or without one."""
        if self._pins is None or not is_url(path):
            return None
        if not self._pins.word(pin) and ask:
            from prefetchd.data.stores.objects import note_state

            note_state(path, self._pins, pin)
        return self._pins.state(pin)

    def close(self) -> None:
        """Give the descriptor back; may be called twice."""
        if self._pins is not None:
            self._pins.close()
            self._pins = None
