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
        self.is_far = bool(files) and not files[0][0].startswith("/")

    def _entry(self, number: int) -> tuple[str, list[int]]:
        path, *found = self._files[number]
        return path, found
