"""How a list is written (`Dialect`), how lines are judged, and the lines of a stretch of the file by position.

Four kinds of line:

- `text`: `path label`, fields separated by white space, labels last; the path may hold spaces. A path or label in
  double quotes is taken as it stands; `""` is a quote inside.
- `table`: a constant number of columns separated by a tab, comma or semicolon, quoted as in CSV.
- `json`: an object, with the path and the labels under keys.
- `tree`: what `folder` writes for a directory: `class number <tab> escaped path`.

`sniff` finds the dialect out once, at open; `line` parses lines by it, at open and in readers. Holds no state.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from prefetchd.data.files import read_exactly
from prefetchd.data.kinds import IMAGE_SUFFIXES
from prefetchd.data.labels import LabelKind
from prefetchd.errors import ManifestError

MAX_LINE_BYTES = 1 << 20
LINES_PER_ENTRY = 64  # samples between two lines of the index
_CHUNK_BYTES = 1 << 16
_IMAGE_SUFFIXES = tuple(suffix.encode() for suffix in IMAGE_SUFFIXES)

# Remedies.
MEND = "mend the line, or put '# ' before it to leave it out"
FILL = "mend the line, give missing_label=-1 (or another) where there is none, or put '# ' before it to leave it out"
_COMMENT = re.compile(rb"#+(\s|!|$)")
_NUMBER = re.compile(rb"[+-]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|nan|inf|infinity)", re.IGNORECASE)


class BadLine(Exception):
    """Says what is wrong with a line (`what`), and what to do about it (`remedy`)."""

    def __init__(self, what: str, remedy: str = MEND) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy


class MalformedLine(NamedTuple):
    """A line that cannot be read as a sample: its number from 1, and what is wrong with it."""

    number: int
    reason: str


class Line(NamedTuple):
    """A sample line (neither blank nor comment) of the file."""

    number: int
    raw: bytes
    offset: int
    end: int


@dataclass(frozen=True, slots=True)
class Dialect:
    """How the lines of one list are read; plain values, so that it can be sent to readers.

    Attributes:
        kind: `text`, `table`, `json` or `tree`.
        label_kind: no labels, numbers, one string that names a class or several, or one path of a mask.
        label_count: how many label fields a line has.
        exact: a text line must end in exactly `label_count` numbers, and a `json` object hold nothing but the path (it
            was found out, not given).
        separator: between the columns of a table.
        columns: how many columns every line of a table has.
        x: the table's column with the path.
        y: the table's label columns.
        keys: of a `json` object: the path's, then the labels'; dots lead into nested objects.
        label_separator: between the names of a field with several classes.
        missing: the label of lines without one; `None` refuses such lines.
        hash_rows: a line that begins with `#` is a sample unless white space follows, as files have such names.
    """

    kind: Literal["text", "table", "json", "tree"]
    label_kind: LabelKind
    label_count: int
    exact: bool = False
    separator: str = ""
    columns: int = 0
    x: int = 0
    y: tuple[int, ...] = ()
    keys: tuple[str, ...] = ()
    label_separator: str = ""
    missing: str | None = None
    hash_rows: bool = False


def is_number(field: bytes) -> bool:
    """Return whether `field` is written like a number; `nan` and `inf` are, and are refused as labels later."""
    return _NUMBER.fullmatch(field) is not None


def is_image(field: bytes) -> bool:
    """Return whether `field` ends with the suffix of an image file, in any case."""
    return field.lower().endswith(_IMAGE_SUFFIXES)


def is_sample(line: bytes, *, hash_rows: bool = False) -> bool:
    """Return whether `line` is neither blank nor a comment; for `hash_rows` see `Dialect`."""
    bare = line.strip()
    if not bare.startswith(b"#"):
        return bool(bare)
    return hash_rows and _COMMENT.match(bare) is None


def show(field: bytes, longest: int = 100) -> str:
    """Return `field` quoted, on one line, printable for any bytes, and shortened."""
    text = field.decode("utf-8", "surrogateescape")
    return repr(text if len(text) <= longest else text[: longest - 3] + "...")


def refuse_long_line(name: str, number: int) -> ManifestError:
    """Return the error for a line over the limit."""
    return ManifestError(
        f"cannot use line {number} of {name}: it is longer than {MAX_LINE_BYTES} bytes; is this a list of images?"
    )


def sample_lines(
    fd: int, start: int, end: int, number: int, name: str, *, hash_rows: bool = False
) -> Iterator[tuple[int, bytes, int, int]]:
    """Yield (line number, line, its offset, the offset after it) for sample lines in bytes `start` to `end`.

    `number` is the line at `start`; for `hash_rows` see `Dialect`.

    Raises:
        ManifestError: if a line is too long, there is a NUL byte, or the file is shorter.
    """
    rest, offset, position = b"", start, start
    while position < end or rest:
        at_end = position >= end
        if not at_end:
            fresh = read_exactly(fd, position, min(_CHUNK_BYTES, end - position), name)
            if b"\0" in fresh:
                raise looks_binary(name, position + fresh.index(b"\0"))
            position += len(fresh)
            rest += fresh
        lines = rest.split(b"\n")
        rest = b"" if at_end else lines.pop()
        for line in lines:
            after = min(offset + len(line) + 1, end)
            if len(line) > MAX_LINE_BYTES:
                raise refuse_long_line(name, number)
            if is_sample(line, hash_rows=hash_rows):
                yield number, line, offset, after
            offset, number = after, number + 1
        if len(rest) > MAX_LINE_BYTES:
            raise refuse_long_line(name, number)


def looks_binary(name: str, offset: int) -> ManifestError:
    """Return the error for a file with NUL bytes."""
    return ManifestError(
        f"cannot read {name} as a list of images: it has a NUL byte (at byte {offset}) and looks binary; "
        "give a text, CSV, TSV or JSONL file, saved as UTF-8"
    )
