"""The one full pass over a manifest at open: every line is checked, and the sparse index of lines is written.

Called by `manifest_open`. Streams the file in blocks, so that memory does not grow with its length. The index
goes into a memfd as it is made: for every `LINES_PER_ENTRY` samples the offset and the number of a line
(int64 each), and once more for the end.

Speed is in the checks by block: numpy finds the line breaks, and whole lists of fields are checked at once. A
block that does not pass is gone through again line by line, which decides; so the quick checks may refuse too
much, and must never accept too much.
"""

from __future__ import annotations

import hashlib
import os
from itertools import chain, compress
from typing import TYPE_CHECKING

from prefetchd.errors import ManifestError
from prefetchd.manifest_format import (
    FLOAT32_MAX,
    MAX_LINE_BYTES,
    BadLine,
    Dialect,
    check_number,
    is_image,
    is_number,
    is_sample,
    parse_line,
    show,
)
from prefetchd.manifest_lines import LINES_PER_ENTRY, looks_binary, read_exactly, refuse_long_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_CLASSES = 1_000_000
_BLOCK_BYTES = 1 << 20


class Scan:
    """The state and the results of the pass: `run` fills them in.

    Attributes:
        samples: how many samples there are.
        lines: how many lines there are, comments and blank ones too.
        any_fraction: some numeric label is not an integer.
        labels: the different string labels.
        digest: of all the manifest's bytes.
    """

    def __init__(self, dialect: Dialect, name: str) -> None:
        self.samples = 0
        self.lines = 0
        self.any_fraction = False
        self.labels: set[bytes] = set()
        self.digest = hashlib.blake2b(digest_size=16)
        self._dialect = dialect
        self._name = name
        self._bad_lines = 0
        self._first_bad = ""
        self._remedy = ""

    def run(self, fd: int, size_bytes: int, start: int, first_line: int, index_fd: int) -> None:
        """Check the lines from byte `start` on, where line `first_line` begins; index them in `index_fd`.

        Raises:
            ManifestError: for a bad line (the first, and how many more there are), or a file that is no text.
        """
        import numpy as np

        for offset in range(0, start, _BLOCK_BYTES):
            self.digest.update(read_exactly(fd, offset, min(_BLOCK_BYTES, start - offset), self._name))
        self.lines = first_line - 1
        rest, offset = b"", start
        while offset < size_bytes:
            fresh = read_exactly(fd, offset, min(_BLOCK_BYTES, size_bytes - offset), self._name)
            self.digest.update(fresh)
            if b"\0" in fresh:
                raise looks_binary(self._name, offset + fresh.index(b"\0"))
            block_start = offset - len(rest)
            offset += len(fresh)
            block = rest + fresh
            cut = len(block) if offset == size_bytes else block.rfind(b"\n") + 1
            if len(block) - cut > MAX_LINE_BYTES:
                raise refuse_long_line(self._name, self.lines + block.count(b"\n") + 1)
            rest, block = block[cut:], block[:cut]
            if block:
                self._block(block if block.endswith(b"\n") else block + b"\n", block_start, index_fd)
        end = np.array([size_bytes, self.lines + 1], np.int64)
        os.write(index_fd, end.tobytes())
        if self._bad_lines:
            more = self._bad_lines - 1
            tail = f" ({more} more bad line{'s' * (more != 1)} after it)" if more else ""
            raise ManifestError(f"cannot use {self._first_bad}{tail}; {self._remedy}")

    def _block(self, block: bytes, block_start: int, index_fd: int) -> None:
        import numpy as np

        codes = np.frombuffer(block, np.uint8)
        breaks = np.flatnonzero(codes == 10)
        starts = np.empty_like(breaks)
        starts[0] = 0
        starts[1:] = breaks[:-1] + 1
        lengths = breaks - starts
        if int(lengths.max()) > MAX_LINE_BYTES:
            raise refuse_long_line(self._name, self.lines + 1 + int(lengths.argmax()))
        lines = block.split(b"\n")
        lines.pop()
        first = codes[starts]
        numbers = np.arange(self.lines + 1, self.lines + 1 + len(lines))
        self.lines += len(lines)
        odd = np.flatnonzero((first <= 32) | (first == 35))
        if odd.size:
            kept = np.ones(len(lines), bool)
            for row in odd.tolist():
                kept[row] = is_sample(lines[row])
            lines = list(compress(lines, kept.tolist()))
            starts, numbers = starts[kept], numbers[kept]
        marked = slice(-self.samples % LINES_PER_ENTRY, None, LINES_PER_ENTRY)
        entries = np.stack([starts[marked] + block_start, numbers[marked]], axis=1).astype(np.int64)
        os.write(index_fd, entries.tobytes())
        self.samples += len(lines)
        if lines:
            self._check(lines, numbers, carriage_return=b"\r" in block, quote=b'"' in block)

    def _check(self, lines: list[bytes], numbers: NDArray[np.int64], carriage_return: bool, quote: bool) -> None:
        if self._dialect.kind == "tree":
            return None
        plain = lines
        if carriage_return:
            plain = [line.rstrip(b"\r") for line in lines]
            if any(b"\r" in line for line in plain):
                return self._check_each(lines, numbers)
        if quote:
            quoted = [b'"' in line for line in plain]
            plain = [line for line in plain if b'"' not in line]
            if not self._check_all(plain):
                return self._check_each(lines, numbers)
            rows = [row for row, is_quoted in enumerate(quoted) if is_quoted]
            return self._check_each([lines[row] for row in rows], numbers[rows])
        if not self._check_all(plain):
            self._check_each(lines, numbers)
        return None

    def _check_each(self, lines: list[bytes], numbers: NDArray[np.int64]) -> None:
        dialect = self._dialect
        for row, line in enumerate(lines):
            try:
                _, labels = parse_line(dialect, line)
                if dialect.label_kind == "class":
                    self._add_labels(set(labels))
                elif dialect.label_kind == "number":
                    for label in labels:
                        self.any_fraction |= check_number(label)
            except BadLine as bad:
                self._bad_lines += 1
                if self._bad_lines == 1:
                    self._first_bad = f"line {numbers[row]} of {self._name}: {bad.what}: {show(line.strip())}"
                    self._remedy = bad.remedy

    def _check_all(self, lines: list[bytes]) -> bool:
        """Whether all `lines` (no quotes, no carriage returns) are surely good; takes their labels "
        "in if so."""
        if not lines:
            return True
        dialect = self._dialect
        if dialect.kind == "table":
            separator = dialect.separator.encode()
            rows = [line.split(separator) for line in lines]
            if set(map(len, rows)) != {dialect.columns} or not all(row[dialect.x].strip() for row in rows):
                return False
            return self._good_labels([row[column].strip() for row in rows for column in dialect.y])
        count = dialect.label_count
        if not dialect.exact:
            if count == 0:
                return True
            rows = [line.rsplit(None, count) for line in lines]
            if set(map(len, rows)) != {count + 1}:
                return False
        elif count == 0:
            return all(b" " not in line and b"\t" not in line for line in map(bytes.strip, lines))
        else:
            rows = [line.rsplit(None, count + 1) for line in lines]
            sizes = set(map(len, rows))
            if not sizes <= {count + 1, count + 2}:
                return False
            if count + 2 in sizes and any(len(row) == count + 2 and is_number(row[1]) for row in rows):
                return False
        if count == 1:
            return self._good_labels([row[-1] for row in rows])
        return self._good_labels(list(chain.from_iterable(row[-count:] for row in rows)))

    def _good_labels(self, fields: list[bytes]) -> bool:
        if self._dialect.label_kind == "none":
            return True
        if self._dialect.label_kind == "path":
            return all(map(is_image, fields))
        if self._dialect.label_kind == "class":
            found = set(fields)
            if b"" in found or any(is_image(label) for label in found - self.labels):
                return False
            self._add_labels(found)
            return True
        other = set(b"\n".join(fields).translate(None, b"0123456789\n"))
        if not other:
            return min(map(len, fields)) > 0 and max(map(len, fields)) <= 18
        try:
            if other <= set(b"+-"):
                whole = [int(field) for field in fields]
                return max(whole) < 2**63 and min(whole) >= -(2**63)
            if other <= set(b"+-.eE") and max(map(len, fields)) <= 18:
                values = [float(field) for field in fields]
                if max(values) <= FLOAT32_MAX and min(values) >= -FLOAT32_MAX:
                    # Integers too long for int64 cannot hide among them: the length was checked.
                    self.any_fraction = True
                    return True
        except ValueError:
            pass
        return False

    def _add_labels(self, found: set[bytes]) -> None:
        self.labels |= found
        if len(self.labels) > MAX_CLASSES:
            raise ManifestError(
                f"cannot use {self._name}: its string labels name more than {MAX_CLASSES} classes; if "
                "the lines hold "
                "only paths, give label_columns=0"
            )
