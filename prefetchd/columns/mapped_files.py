"""Which file a piece of this process's memory is a map of: images in mapped Arrow files are served from there.

A column of encoded images may be larger than memory. Where its library has mapped the file, each image is in the file
as it is in memory, so its place in the file is all that readers need. The kernel lists the maps; no library is asked.
"""

from __future__ import annotations

import bisect
import os
import re
from typing import Any

_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r\S* ([0-9a-f]+) [0-9a-f]+:[0-9a-f]+ (\d+) +(/.*)")
_ESCAPED = re.compile(r"\\([0-7]{3})")


class MappedFiles:
    """The files that this process maps now.

    Attributes:
        files: of those that `find` has found: path, then device, inode, size and times of change.
    """

    def __init__(self) -> None:
        self.files: list[list[Any]] = []
        self._numbers: dict[str, int | None] = {}  # in `files`; `None` for a file that is not what is mapped
        self._maps: list[tuple[int, int, int, int, str]] = []
        with open("/proc/self/maps", errors="surrogateescape") as lines:
            for line in lines:
                if match := _LINE.fullmatch(line.rstrip("\n")):
                    start, end, offset = (int(match[number], 16) for number in (1, 2, 3))
                    path = _ESCAPED.sub(lambda escaped: chr(int(escaped[1], 8)), match[5])
                    self._maps.append((start, end, offset, int(match[4]), path))

    def find(self, address: int, n_bytes: int) -> tuple[int, int] | None:
        """Return the number of the file that `n_bytes` from `address` on are a map of, and where in it; else `None`."""
        at = bisect.bisect_right(self._maps, (address, 1 << 64)) - 1
        if at < 0 or address + n_bytes > self._maps[at][1]:
            return None
        start, _, offset, inode, path = self._maps[at]
        if path not in self._numbers:
            self._numbers[path] = self._add(path, inode)
        number = self._numbers[path]
        return None if number is None else (number, offset + address - start)

    def _add(self, path: str, inode: int) -> int | None:
        try:
            found = os.stat(path)
        except OSError:  # deleted
            return None
        if found.st_ino != inode:  # replaced
            return None
        identity = [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
        self.files.append([path, *identity])
        return len(self.files) - 1
