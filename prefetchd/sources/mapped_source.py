"""What sources of mapped array files have in common: the table of files for readers, and looking after the files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Protocol

from prefetchd.config.validate import MAX_BATCH_SIZE
from prefetchd.sources.array_set import ArraySet


class Mapped(Protocol):
    """What a reader has mapped."""

    def confirm(self) -> None:
        """Raise `ManifestError` if a file that was read since the last call is not as it was."""

    def close(self) -> None:
        """Give descriptors and maps back."""


class MappedSource:
    """The base of sources whose rows come from maps of array files. Owns the table's descriptor, and a reader's maps.

    Args:
        files: what it is made of, for the looks at whether it has changed.
        table_fd: a memfd with the files for the readers; -1 until there is one.
    """

    def __init__(self, files: Sequence[ArraySet | None], table_fd: int) -> None:
        self._files = [each for each in files if each is not None]
        self._table_fd = table_fd
        self._digest = ""
        self._turn = 0
        self._maps: list[Mapped] = []

    def close(self) -> None:
        """Give all descriptors back, and a reader's maps."""
        os.close(self._table_fd)
        while self._maps:
            self._maps.pop().close()

    @property
    def digest(self) -> str:
        """Digest of headers, sizes and sampled data of all files; see `ArrayFile.digest`."""
        return self._digest

    @property
    def classes(self) -> tuple[str, ...] | None:
        """None: labels are numbers."""
        return None

    @property
    def shared_bytes(self) -> int:
        """The table of files, a memfd."""
        return os.fstat(self._table_fd).st_blocks * 512

    @property
    def reader_bytes(self) -> int:
        """Nothing of note: files are mapped."""
        return 0

    @property
    def max_task_rows(self) -> int:
        """Any number: there are no bad rows to report."""
        return MAX_BATCH_SIZE

    @property
    def read_s(self) -> float:
        """Nothing: the kernel reads ahead in a mapped file."""
        return 0.0

    @property
    def waited_s(self) -> float:
        """Not known: whoever touches a page waits for it."""
        return 0.0

    def expect(self, sample_ids: Iterable[int]) -> None:
        """Nothing; see `read_s`."""

    @property
    def answers_together(self) -> bool:
        """Yes: a batch of rows costs as much as a message."""
        return True

    @property
    def cache(self) -> None:
        """None: nothing is decoded."""
        return

    def check_unchanged(self) -> None:
        """Raise `ManifestError` if a file was written to, replaced or removed."""
        self._turn += 1
        for each in self._files:
            each.check_unchanged(self._turn)

    def confirm(self) -> None:
        """Raise `ManifestError` if a file that rows were taken from since the last call is not as it was."""
        for maps in self._maps:
            maps.confirm()
