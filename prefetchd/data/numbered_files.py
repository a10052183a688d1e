"""Larger files or objects that samples are pieces of, by number, checked to be what was indexed.

Files are opened on demand, a few at a time. Of an object each piece is a request, which the store refuses if the object
is another one; several threads may read pieces at once.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from prefetchd.data.faults import UnreadableFile, fault_of
from prefetchd.data.files import check_unchanged, read_into
from prefetchd.errors import ManifestError, one_line

if TYPE_CHECKING:
    from prefetchd.data.files import FileBuffer
    from prefetchd.data.source import ReserveMemory

_MAX_OPEN = 16
_CHECKED_AT_ONCE = 256


class NumberedFiles(ABC):
    """Files by number. Owns the descriptors that it opened.

    Args:
        name: of the data set, in errors.
        n_files: how many there are.
        at_random: whether pieces are read in no order, so that the kernel should read nothing ahead.
    """

    def __init__(self, name: str, n_files: int, *, at_random: bool = False) -> None:
        self._name = name
        self._n_files = n_files
        self._at_random = at_random
        self._open: OrderedDict[int, tuple[int, list[int], str]] = OrderedDict()
        self._objects: dict[int, tuple[str, list[Any]]] = {}
        self._next_checked = 0

    @abstractmethod
    def _entry(self, number: int) -> tuple[str, list[Any]]:
        """Return the absolute path or the URL of a file, and its identity when it was indexed."""

    def path(self, number: int) -> str:
        """Return the absolute path or the URL of a file."""
        return self._entry(number)[0]

    def descriptor(self, number: int) -> int:
        """Return a descriptor of a file that is unchanged, borrowed until the next call.

        Raises:
            ManifestError: if it is not what was indexed, or is gone.
            SampleFault: if the machine fails.
        """
        if number in self._open:
            self._open.move_to_end(number)
            fd, expected, shown = self._open[number]
        else:
            path, expected = self._entry(number)
            shown = self._shown(path)
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
                raise ManifestError(
                    f"cannot go on with {shown}: it cannot be opened any more ({error.strerror}) while in use; "
                    "start again to serve it as it is"
                ) from None
            except OSError as error:
                raise fault_of(error) from None
            if self._at_random:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            self._open[number] = fd, expected, shown
            if len(self._open) > _MAX_OPEN:
                os.close(self._open.popitem(last=False)[1][0])
        # Sees a replaced file too: losing its name changes the times of the old one.
        check_unchanged(fd, expected, shown)
        return fd

    def read(
        self, number: int, offset: int, n_bytes: int, buffer: FileBuffer, reserve: ReserveMemory, what: str = "it"
    ) -> memoryview:
        """Return a piece of a file, in `buffer` until the next read; a fault calls it `what`.

        Raises:
            ManifestError: as `descriptor` does, or if the file ends before the piece does.
            SampleFault: if the piece is empty, or the machine fails.
            Exception: what `reserve` raises.
        """
        if n_bytes <= 0:
            raise UnreadableFile(f"{what} is empty (0 bytes)")
        if (found := self.object(number)) is not None:
            from prefetchd.data.stores.client import read
            from prefetchd.data.stores.faults import lost

            try:
                return read(*found, offset, n_bytes, buffer, reserve)
            except UnreadableFile as fault:
                raise lost(found[0], fault) from None
        fd = self.descriptor(number)
        if n_bytes > buffer.capacity_bytes:
            reserve(n_bytes)
        try:
            view = buffer.view(n_bytes)
            n_read = read_into(fd, view, offset)
        except (OSError, MemoryError) as error:
            raise fault_of(error) from None
        if n_read < n_bytes:
            raise ManifestError(
                f"cannot go on with {self._shown(self.path(number))}: it became shorter while in use (ends at byte "
                f"{offset + n_read}); start again"
            )
        return view

    def object(self, number: int) -> tuple[str, list[Any]] | None:
        """Return URL and identity of a file that is an object; `None` for a file."""
        if number in self._open:
            return None
        if number not in self._objects:
            path, identity = self._entry(number)
            if path.startswith("/"):
                return None
            self._objects[number] = path, identity
        return self._objects[number]

    def check_all(self) -> None:
        """Raise `ManifestError` if a file is not what was indexed."""
        self._check(self._n_files)

    def check_unchanged(self) -> None:
        """Check the next few files by their paths, all in turn; raise `ManifestError` if one has changed."""
        self._check(min(_CHECKED_AT_ONCE, self._n_files))

    def _check(self, n_files: int) -> None:
        for _ in range(n_files):
            number = self._next_checked
            self._next_checked = (number + 1) % self._n_files
            path, expected = self._entry(number)
            if path.startswith("/"):  # each request for an object says which it must be
                check_unchanged(path, expected, self._shown(path))

    def _shown(self, path: str) -> str:
        return f"{self._name}: {one_line(path)}"

    def close(self) -> None:
        """Close the files; may be called twice."""
        while self._open:
            os.close(self._open.popitem()[1][0])
