"""The one full pass over a list at open: checks every line, writes the sparse index of lines, digests the bytes.

Called by `open`. Streams the file in blocks of whole lines, so that memory does not grow with its length:

    read, digest (this thread) -> check (another thread, `block_check`) -> index, parse doubtful lines (this thread)

The index goes into a memfd as it is made: for every `LINES_PER_ENTRY` samples the offset and the number of a line
(int64 each), and once more for the end. The thread ends with the pass.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

from prefetchd.data.files import read_exactly
from prefetchd.data.labels import MAX_CLASSES, refuse_large
from prefetchd.data.manifest.dialect import (
    LINES_PER_ENTRY,
    MAX_LINE_BYTES,
    BadLine,
    Dialect,
    MalformedLine,
    is_sample,
    looks_binary,
    refuse_long_line,
    sample_lines,
    show,
)
from prefetchd.data.manifest.line import check_line, is_changed_by_float32, parse_line
from prefetchd.data.stores.urls import is_url
from prefetchd.errors import ManifestError

if TYPE_CHECKING:
    from prefetchd.data.manifest.block_check import Checked

_BLOCK_BYTES = 1 << 19
_BLOCKS_AHEAD = 3
_SHOWN_BAD_LINES = 3
_MAY_BE_URL = re.compile(rb":(//|\\/)")  # JSON may escape a slash
_MAX_BAD_LINES = 10_000  # with so many the file is something else; parsing them all takes long


class Scan:
    """The state and the results of the pass: `run` fills them in.

    Args:
        dialect: how the lines are written.
        name: the list's name in errors.
        tolerant: leave malformed lines out, up to 10,000, in place of refusing the list for them.

    Attributes:
        samples: number of samples.
        lines: number of lines, comments and blank ones too.
        any_fraction: some numeric label is not an integer.
        any_long: some label may be a whole number that float32 does not hold.
        any_url: some path, or label that is one, is the URL of an object.
        labels: the different string labels.
        digest: of all the bytes of the list.
        malformed: the malformed lines.
    """

    def __init__(self, dialect: Dialect, name: str, *, tolerant: bool = False) -> None:
        self.samples = 0
        self.lines = 0
        self.any_fraction = self.any_long = self.any_url = False
        self.labels: set[bytes] = set()
        self.digest = hashlib.sha256()
        self._dialect = dialect
        self._name = name
        self._tolerant = tolerant
        self.malformed: list[MalformedLine] = []
        self._remedy = ""

    def run(self, fd: int, size_bytes: int, start: int, first_line: int, index_fd: int) -> None:
        """Check the lines from byte `start` on, where line `first_line` begins; index them in `index_fd`.

        Raises:
            ManifestError: for bad lines (the first ones, and how many more there are), or a file that is no text.
        """
        import numpy as np

        self.digest.update(read_exactly(fd, 0, start, self._name))
        self.lines = first_line - 1
        with closing(self._checked_blocks(fd, size_bytes, start)) as blocks:  # so that its threads end on an error too
            for block, block_start, checked in blocks:
                self._take(block, block_start, checked, index_fd)
                if len(self.malformed) >= _MAX_BAD_LINES:
                    raise self._refusal()
        if self.malformed and not (self._tolerant and self.samples):
            raise self._refusal()
        os.write(index_fd, np.array([size_bytes, self.lines + 1], np.int64).tobytes())
        if self.any_fraction and self.any_long:
            self._check_float32(fd, size_bytes, start, first_line)

    def _check_float32(self, fd: int, size_bytes: int, start: int, first_line: int) -> None:
        """Refuse a whole label that the fractions among the others would change."""
        rows = sample_lines(fd, start, size_bytes, first_line, self._name, hash_rows=self._dialect.hash_rows)
        for number, line, _, _ in rows:
            try:
                labels, _ = check_line(self._dialect, line)
            except BadLine:
                continue  # left out
            for label in labels:
                if is_changed_by_float32(label):
                    raise ManifestError(refuse_large(f"line {number} of {self._name}", label.decode()))

    def _blocks(self, fd: int, size_bytes: int, start: int) -> Iterator[tuple[bytes, int]]:
        """Yield blocks of whole lines, each ended by a line break, with the offset of each; digest them."""
        rest, offset = b"", start
        while offset < size_bytes:
            fresh = read_exactly(fd, offset, min(_BLOCK_BYTES, size_bytes - offset), self._name)
            self.digest.update(fresh)
            if b"\0" in fresh:
                raise looks_binary(self._name, offset + fresh.index(b"\0"))
            block_start = offset - len(rest)
            offset += len(fresh)
            if offset == size_bytes:
                last = rest + fresh
                yield last if last.endswith(b"\n") else last + b"\n", block_start
                return
            cut = fresh.rfind(b"\n") + 1
            block, rest = (rest + fresh[:cut], fresh[cut:]) if cut else (b"", rest + fresh)
            if block:
                yield block, block_start
            if len(rest) > MAX_LINE_BYTES:
                # `_take` refuses it: the line's number is known once all blocks before it were counted.
                yield rest + b"\n", offset - len(rest)
                return

    # One thread checks. A second would gain nothing: while a daemon starts, its readers take the other core.
    def _checked_blocks(
        self, fd: int, size_bytes: int, start: int
    ) -> Generator[tuple[bytes, int, Checked], None, None]:
        """Yield each block, its offset and what `BlockCheck` found, in the order of the file."""
        from prefetchd.data.manifest.block_check import BlockCheck

        check = BlockCheck(self._dialect)
        if size_bytes - start <= _BLOCK_BYTES:
            for block, block_start in self._blocks(fd, size_bytes, start):
                yield block, block_start, check(block)
            return
        with ThreadPoolExecutor(1) as thread:
            under_way: deque[tuple[bytes, int, Future[Checked]]] = deque()
            for block, block_start in self._blocks(fd, size_bytes, start):
                under_way.append((block, block_start, thread.submit(check, block)))
                if len(under_way) >= _BLOCKS_AHEAD:
                    first, first_start, future = under_way.popleft()
                    yield first, first_start, future.result()
            for first, first_start, future in under_way:
                yield first, first_start, future.result()

    def _take(self, block: bytes, block_start: int, checked: Checked, index_fd: int) -> None:
        """Count the lines of a block, index its samples, add its labels, and parse its doubtful lines."""
        import numpy as np

        row, longest_bytes = checked.longest
        if longest_bytes > MAX_LINE_BYTES:
            raise self._refusal() if self.malformed else refuse_long_line(self._name, self.lines + 1 + row)
        if not self.any_url and _MAY_BE_URL.search(block) is not None:
            self.any_url = any(map(self._names_object, block.split(b"\n")))
        first_line = self.lines + 1
        self.lines += checked.n_lines
        self.any_fraction |= checked.any_fraction
        self.any_long |= checked.any_long
        self._add_labels(checked.labels)
        malformed = []
        for sample in checked.doubtful.tolist():
            line = block[checked.starts[sample] : checked.ends[sample]]
            if not self._parse(line, first_line + int(checked.rows[sample])):
                malformed.append(sample)
        starts, rows = checked.starts, checked.rows
        if malformed:
            starts, rows = np.delete(starts, malformed), np.delete(rows, malformed)
        marked = slice(-self.samples % LINES_PER_ENTRY, None, LINES_PER_ENTRY)
        entries = np.stack([starts[marked] + block_start, rows[marked] + first_line], axis=1)
        os.write(index_fd, entries.astype(np.int64).tobytes())
        self.samples += len(starts)

    def _names_object(self, line: bytes) -> bool:
        """Return whether a line is a sample whose path is a URL; captions and comments hold some that are none."""
        if _MAY_BE_URL.search(line) is None or not is_sample(line, hash_rows=self._dialect.hash_rows):
            return False
        try:
            path, labels = parse_line(self._dialect, line)
        except BadLine:
            return False
        names = [path, *(labels if self._dialect.label_kind == "path" else ())]
        return any(is_url(name.decode("utf-8", "surrogateescape")) for name in names)

    def _parse(self, line: bytes, number: int) -> bool:
        """Parse one line; add its labels, or record what is wrong with it; return whether it is good."""
        try:
            labels, is_fraction = check_line(self._dialect, line)
        except BadLine as bad:
            self.malformed.append(MalformedLine(number, f"{bad.what}: {show(line.strip())}"))
            self._remedy = self._remedy or bad.remedy
            return False
        self.any_fraction |= is_fraction
        if self._dialect.label_kind == "number":
            self.any_long |= any(map(is_changed_by_float32, labels))
        if self._dialect.label_kind in ("class", "classes"):
            self._add_labels(set(labels))
        return True

    def _refusal(self) -> ManifestError:
        """Return the error for the bad lines."""
        first, *others = self.malformed[:_SHOWN_BAD_LINES]
        shown = f"line {first.number} of {self._name}: {first.reason}"
        shown += "".join(f"; line {number}: {reason}" for number, reason in others)
        more = len(self.malformed) - _SHOWN_BAD_LINES
        if more > 0:
            least = "at least " if len(self.malformed) >= _MAX_BAD_LINES else ""
            shown += f"; and {least}{more} more bad line{'s' * (more != 1)}"
        remedy = self._remedy
        if others and len(self.malformed) < min(_MAX_BAD_LINES, self.samples):  # most lines are good
            remedy += ", or let prefetchd verify --write-clean FILE write the list without such lines"
        return ManifestError(f"cannot use {shown}; {remedy}")

    def _add_labels(self, found: set[bytes]) -> None:
        self.labels |= found
        if len(self.labels) > MAX_CLASSES:
            raise ManifestError(
                f"cannot use {self._name}: its string labels name more than {MAX_CLASSES} classes; if "
                "the lines hold only paths, give label_columns=0"
            )
