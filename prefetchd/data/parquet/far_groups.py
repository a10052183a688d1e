"""Row groups of Parquet files that are objects, in a reader: each is fetched by one range, and shared by threads.

`ParquetRecords` owns them. The threads that read ahead ask for rows of several groups at once; those that ask for the
same group wait for the one that fetches it. As many groups are held as the plan has memory for (`groups_held`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefetchd.data.faults import UnreadableFile
from prefetchd.data.parquet.row_group import RowBlock, column_range, describe_column, read_metadata, read_rows
from prefetchd.data.stores.faults import lost
from prefetchd.data.stores.range_file import TAIL_BYTES, RangeFile

if TYPE_CHECKING:
    from prefetchd.data.numbered_files import NumberedFiles

FAR_BYTES = 96 << 20  # of groups, in each reader
_MOST_GROUPS = 32
METADATA_BYTES = 8 << 20  # of files' descriptions of themselves, in each reader


def groups_held(group_bytes: int) -> int:
    """Return how many groups a reader holds at once, each of which takes `group_bytes` while it is read."""
    return max(1, min(_MOST_GROUPS, FAR_BYTES // max(1, group_bytes)))


@dataclass(slots=True)
class _Group:
    users: int = 0
    block: RowBlock | None = None
    error: BaseException | None = None

    @property
    def is_done(self) -> bool:
        return self.block is not None or self.error is not None


class FarGroups:
    """The groups of `files`, which are borrowed; `column` is what is read of them. For any number of threads."""

    def __init__(self, files: NumberedFiles, column: str, n_groups: int) -> None:
        self._files = files
        self._column = column
        self._n_groups = n_groups
        self._changed = threading.Condition()
        self._groups: OrderedDict[tuple[int, int], _Group] = OrderedDict()
        self._described: OrderedDict[int, Any] = OrderedDict()

    def image(self, file: int, group: int, row: int) -> bytes:
        """Return the bytes of a row's image.

        Raises:
            SampleFault: if they cannot be read.
            ManifestError: if the object is another one.
        """
        found, is_mine = self._take((file, group))
        try:
            if is_mine:
                self._fetch(found, file, group)
            with self._changed:
                self._changed.wait_for(lambda: found.is_done)
            if found.error is not None:
                raise found.error
            assert found.block is not None
            return bytes(found.block.image(row))
        finally:
            with self._changed:
                found.users -= 1
                self._changed.notify_all()

    def _take(self, key: tuple[int, int]) -> tuple[_Group, bool]:
        """Return a group that is there or coming, or a new one, which the caller is to fetch."""
        with self._changed:
            while (found := self._groups.get(key)) is None and not self._has_room():
                self._changed.wait()
            is_new = found is None
            if found is None:
                found = self._groups[key] = _Group()
            self._groups.move_to_end(key)
            found.users += 1
            return found, is_new

    def _has_room(self) -> bool:
        if len(self._groups) >= self._n_groups:
            unused = next((key for key, group in self._groups.items() if not group.users), None)
            if unused is None:
                return False
            del self._groups[unused]
        return True

    def _fetch(self, found: _Group, file: int, group: int) -> None:
        try:
            block = self._read(file, group)
        except BaseException as error:
            if isinstance(error, UnreadableFile):  # it has other samples too
                error = lost(self._files.path(file), error)
            with self._changed:
                found.error = error.with_traceback(None)
                del self._groups[file, group]
                self._changed.notify_all()
        else:
            with self._changed:
                found.block = block
                self._changed.notify_all()

    def _read(self, file: int, group: int) -> RowBlock:
        known = self._files.object(file)
        assert known is not None
        content = RangeFile(*known)
        metadata = self._metadata(file, group, content)
        content.keep(*column_range(metadata, group, self._column))
        column = describe_column(content, metadata, group, self._column)
        return read_rows(content, metadata, group, self._column, column, 0, column.bytes)

    def _metadata(self, file: int, group: int, content: RangeFile) -> Any:
        with self._changed:
            if file in self._described:
                self._described.move_to_end(file)
                return self._described[file]
        content.keep(int(self._files.object(file)[1][0]) - TAIL_BYTES, TAIL_BYTES)  # type: ignore[index]
        found = read_metadata(content, group)
        with self._changed:
            self._described[file] = found
            while sum(each.serialized_size for each in self._described.values()) > METADATA_BYTES:
                self._described.popitem(last=False)
        return found
