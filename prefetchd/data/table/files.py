"""The Arrow files that a table leads into: opened on demand, a few at a time, and checked to be what was indexed."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prefetchd.data.faults import UnreadableFile, fault_of
from prefetchd.data.files import check_unchanged, read_into
from prefetchd.errors import ManifestError, one_line

if TYPE_CHECKING:
    from prefetchd.data.files import FileBuffer
    from prefetchd.data.source import ReserveMemory

_MAX_OPEN = 16
_CHECKED_AT_ONCE = 256


class IndexedFiles:
    """Files by number. Owns the descriptors that it opened.

    Args:
        files: path, device, inode, size and times of change of each.
        name: of the data set, in errors.
    """

    def __init__(self, files: Sequence[Sequence[Any]], name: str) -> None:
        self._files = files
        self._name = name
        self._open: OrderedDict[int, int] = OrderedDict()
        self._next_checked = 0

    def path(self, number: int) -> str:
        """Return the absolute path of a file."""
        path: str = self._files[number][0]
        return path

    def descriptor(self, number: int) -> int:
        """Return a descriptor of a file that is unchanged, borrowed until the next call.

        Raises:
            ManifestError: if it is not what was indexed, or is gone.
            SampleFault: if the machine fails.
        """
        path, *expected = self._files[number]
        if number in self._open:
            self._open.move_to_end(number)
        else:
            try:
                self._open[number] = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
                raise ManifestError(
                    f"cannot go on with {self._shown(path)}: it cannot be opened any more ({error.strerror}) while in "
                    "use; start again to serve it as it is"
                ) from None
            except OSError as error:
                raise fault_of(error) from None
            if len(self._open) > _MAX_OPEN:
                os.close(self._open.popitem(last=False)[1])
        check_unchanged(self._open[number], expected, self._shown(path))
        return self._open[number]

    def read(self, number: int, offset: int, n_bytes: int, buffer: FileBuffer, reserve: ReserveMemory) -> memoryview:
        """Return a piece of a file, in `buffer` until the next read; raises as `descriptor` does, and `reserve`."""
        fd = self.descriptor(number)
        if n_bytes <= 0:
            raise UnreadableFile("it is empty (0 bytes)")
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

    def check_all(self) -> None:
        """Raise `ManifestError` if a file is not what was indexed."""
        for path, *expected in self._files:
            check_unchanged(path, expected, self._shown(path))

    def check_unchanged(self) -> None:
        """Check the next few files by their paths, all in turn; raise `ManifestError` if one has changed."""
        for _ in range(min(_CHECKED_AT_ONCE, len(self._files))):
            path, *expected = self._files[self._next_checked]
            self._next_checked = (self._next_checked + 1) % len(self._files)
            check_unchanged(path, expected, self._shown(path))

    def _shown(self, path: str) -> str:
        return f"{self._name}: {one_line(path)}"

    def close(self) -> None:
        """Close the files; may be called twice."""
        while self._open:
            os.close(self._open.popitem()[1])
