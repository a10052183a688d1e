"""The files that the rows of a table lead into: Arrow files, and tar shards with fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefetchd.data.numbered_files import NumberedFiles


class IndexedFiles(NumberedFiles):
    """The files of a table's attributes; see `NumberedFiles`.

    Args:
        files: path or URL of each, and its identity behind it.
        name: of the data set, in errors.

    Attributes:
        is_far: whether they are objects of a store.
    """

    def __init__(self, files: Sequence[Sequence[Any]], name: str) -> None:
        super().__init__(name, len(files))
        self._files = files
        self._states: dict[str, bytes | None] = {}
        self.is_far = bool(files) and not files[0][0].startswith("/")

    def state(self, path: str) -> bytes | None:
        """Return what tells this state of the object at a URL from any other; `None` if it is none of
        them, or nothing but its size is known."""
        if not self._states:
            from prefetchd.data.stores.identity import state_of

            self._states = {str(name): state_of(found) for name, *found in self._files}
        return self._states.get(path)

    def _entry(self, number: int) -> tuple[str, list[int]]:
        path, *found = self._files[number]
        return path, found
