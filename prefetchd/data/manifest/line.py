"""Parses one line by its `Dialect`: its fields, its path and labels, and whether the labels can be served. Pure.

`sniff` calls it to find the dialect out, `scan` for every doubtful line at open, and `records` for the line of a sample
on demand. Lines are bytes, without their line break, so that file names that are not UTF-8 pass through unharmed.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache

from prefetchd.data.labels import FLOAT32_MAX, MISSING, fits_float32, is_changed_whole
from prefetchd.data.manifest.dialect import FILL, MEND, BadLine, Dialect, is_image, is_number, show
from prefetchd.data.manifest.json import parse_json

NOT_A_NUMBER = frozenset(map(str.encode, MISSING))  # what lines hold where labels are missing
_LIST = re.compile(rb"[+-]?[\d.]+(,[+-]?[\d.]+)+")
_INTEGER = re.compile(rb"[+-]?\d+")
_TOKEN = re.compile(rb'"([^"]*(?:""[^"]*)*)"(?=\s|$)|(\S+)')
_TREE_ESCAPE = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r"}
_FILL_NAME = "mend the line, or give missing_label='none' (or another name) for such lines"
_UNCLOSED = 'a quote is not closed (or holds a quote that is not doubled, "")'


def tokens(line: bytes) -> list[tuple[bytes, bool, int, int]]:
    """Return the fields of a text line, each as (value without quotes, was it quoted, start, end)."""
    found = []
    for match in _TOKEN.finditer(line):
        quoted = match[1] is not None
        value = match[1].replace(b'""', b'"') if quoted else match[2]
        found.append((value, quoted, match.start(), match.end()))
    return found


def trailing_numbers(values: list[bytes]) -> int:
    """Return how many of the last fields are numbers, the first field (the path) never counted."""
    count = 0
    while count < len(values) - 1 and is_number(values[-1 - count]):
        count += 1
    return count


def split_columns(line: bytes, separator: str) -> list[bytes]:
    """Return the columns of a table's line; those without quotes are stripped of white space.

    Raises:
        BadLine: if a quote is not closed.
    """
    if b'"' not in line:
        return [field.strip() for field in line.split(separator.encode())]
    pattern = _column_pattern(separator.encode())
    fields, position = [], 0
    while True:
        match = pattern.match(line, position)
        assert match is not None  # the second alternative matches anything
        if match[1] is not None:
            fields.append(match[1].replace(b'""', b'"'))
        else:
            field = match[2].strip()
            if field.startswith(b'"'):
                raise BadLine(_UNCLOSED, "close it on the same line: a field cannot hold a line break")
            fields.append(field)
        if match.end() == len(line) and not match[3]:
            return fields
        position = match.end()


@lru_cache(maxsize=4)
def _column_pattern(separator: bytes) -> re.Pattern[bytes]:
    mark = re.escape(separator)
    return re.compile(rb'(?: *"([^"]*(?:""[^"]*)*)"[ \r]*|([^' + mark + rb"]*))(" + mark + rb"|\Z)")


def parse_line(dialect: Dialect, line: bytes) -> tuple[bytes, list[bytes]]:
    """Return the path and the label fields of `line`, which `is_sample`; the dialect's label where one is missing.

    Raises:
        BadLine: if the line does not fit the dialect.
    """
    if dialect.kind == "tree":
        label, _, path = line.partition(b"\t")
        return unescape_path(path), [label] if dialect.label_count else []
    bare = line.strip()
    if dialect.kind == "json":
        path, labels = parse_json(dialect, bare)
        if dialect.missing is not None and dialect.label_kind == "class":
            labels = [_or_missing(dialect, label) for label in labels]
        _check_name(dialect, labels)
        return path, labels
    if b"\r" in bare:
        raise BadLine("there is a carriage return in it", "end lines with LF or CR LF")
    if dialect.kind == "table":
        fields = split_columns(line, dialect.separator)
        if len(fields) != dialect.columns:
            wanted = f"{dialect.columns} column{'s' * (dialect.columns != 1)}"
            raise BadLine(f"it has {len(fields)} where the others have {wanted}")
        path, labels = fields[dialect.x], [fields[column] for column in dialect.y]
        if not path:
            raise BadLine(f"there is no path in column {dialect.x}")
        if dialect.missing is not None:
            labels = [_or_missing(dialect, label) for label in labels]
        if not all(labels) and dialect.label_kind != "classes":
            raise BadLine(f"there is no label in column {dialect.y[labels.index(b'')]}", FILL)
    else:
        path, labels = _parse_text(dialect, bare)
    _check_name(dialect, labels)
    if dialect.label_kind in ("class", "classes") and is_image(labels[0]):
        raise BadLine(f"there is no label: {show(labels[0], 60)} is an image")
    if dialect.label_kind == "path" and not is_image(labels[0]):
        raise BadLine(f"there is no mask: {show(labels[0], 60)} is not named as an image")
    return path, labels


def _or_missing(dialect: Dialect, label: bytes) -> bytes:
    """Return a label field, or the dialect's label for missing ones in its place."""
    assert dialect.missing is not None
    return dialect.missing.encode("utf-8", "surrogateescape") if label.lower() in NOT_A_NUMBER else label


def _check_name(dialect: Dialect, labels: list[bytes]) -> None:
    """Raise `BadLine` where the name of a class says that there is none; `missing_label` may give it all the same."""
    if dialect.label_kind in ("class", "classes") and dialect.missing is None and labels:
        label = labels[0].strip()
        if label and label.lower() in NOT_A_NUMBER:
            raise BadLine(f"the label {show(label, 60)} says that there is none", _FILL_NAME)


def _parse_text(dialect: Dialect, bare: bytes) -> tuple[bytes, list[bytes]]:
    count = dialect.label_count
    if b'"' not in bare and not dialect.exact:
        path, *labels = bare.rsplit(None, count) if count else (bare,)
        if len(labels) == count and dialect.missing is None:
            return path, labels
    found = tokens(bare)
    values = [token[0] for token in found]
    if not found[0][1] and bare.startswith(b'"'):
        raise BadLine(_UNCLOSED)
    if dialect.missing is not None and count:
        if len(values) == 1 or is_image(values[-1]):
            return (values[0] if len(values) == 1 else bare), [_or_missing(dialect, b"")] * count
        for place, value in enumerate(values[-count:], len(values) - count):
            values[place] = _or_missing(dialect, value)
    if dialect.exact:
        _check_count(dialect, values)
    words = len(found) - count
    if words < 1:
        if len(found) == 1:
            raise BadLine("there is no label", FILL)
        raise BadLine(f"it has only {len(found)} fields")
    if not found[0][1]:
        return bare[: found[words - 1][3]], values[words:]
    if words > 1:
        raise BadLine(f"{show(values[1], 40)} stands between the quoted path and the label")
    if not values[0]:
        raise BadLine("the path is empty")
    return values[0], values[words:]


def _check_count(dialect: Dialect, values: list[bytes]) -> None:
    """Raise `BadLine` where the label fields found in a line are not as many as in the other lines."""
    settle = f"mend the line, or give label_columns={dialect.label_count} if it is right"
    if dialect.label_kind == "none":
        if len(values) > 1 and not is_image(values[-1]) and trailing_numbers(values):
            raise BadLine(f"it ends in the number {show(values[-1], 40)} where the others have no label", settle)
        for value in values[:-1]:
            if is_image(value) and is_image(values[-1]):
                raise BadLine(
                    f"it names two images, {show(value, 60)} and {show(values[-1], 60)}",
                    "give target=mask if the last is the first one's mask, a line each if not, or label_columns=0 if "
                    "they are one path",
                )
            if is_image(value):
                raise BadLine(f"more follows the image {show(value, 60)}, and other lines have no label", settle)
    elif dialect.label_kind == "number":
        count = trailing_numbers(values)
        if count == 0 and (len(values) == 1 or is_image(values[-1])):
            raise BadLine("there is no label", FILL)
        if count == 0:
            raise _no_number(values[-1])
        if count != dialect.label_count:
            wanted = f"{dialect.label_count} number{'s' * (dialect.label_count != 1)}"
            raise BadLine(f"it ends in {count} where the others end in {wanted}", settle)


def split_classes(field: bytes, separator: str) -> list[bytes]:
    """Return the names in a field with several classes, without the white space, brackets and quotes around them."""
    bare = field.strip()
    if bare[:1] + bare[-1:] in (b"[]", b"()", b"{}"):
        bare = bare[1:-1]
    parts = bare.split(separator.encode("utf-8", "surrogateescape"))
    return [name for part in parts if (name := part.strip().strip(b"'\""))]


def check_number(field: bytes) -> bool:
    """Return whether the label `field` is a fraction; else it is an integer.

    Raises:
        BadLine: if it is no number, is not finite, or fits neither int64 nor float32.
    """
    if not is_number(field):
        raise _no_number(field)
    if _INTEGER.fullmatch(field):
        if len(field) > 20 or not -(2**63) <= int(field) < 2**63:
            raise BadLine(f"the label {show(field, 60)} does not fit 64 bits")
        return False
    value = float(field)
    if not math.isfinite(value) and not any(c in b"0123456789" for c in field):
        raise BadLine(f"the label {show(field, 60)} is not finite", FILL if math.isnan(value) else MEND)
    if abs(value) > FLOAT32_MAX:
        raise BadLine(f"the label {show(field, 60)} does not fit float32")
    return True


def is_changed_by_float32(label: bytes) -> bool:
    """Return whether a numeric label is a whole number, with a point or without, that float32 changes."""
    if _INTEGER.fullmatch(label):
        return not fits_float32(int(label))
    value = float(label)
    return math.isfinite(value) and is_changed_whole(value)


def _no_number(field: bytes) -> BadLine:
    if _LIST.fullmatch(field):
        remedy = "give label_separator=',' if labels are lists, or write fractions with a point"
    else:
        remedy = FILL if field.lower() in NOT_A_NUMBER else MEND
    return BadLine(f"the label {show(field, 60)} is not a number, as the others are", remedy)


def check_line(dialect: Dialect, line: bytes) -> tuple[list[bytes], bool]:
    """Return the labels of `line`, which `is_sample`, and whether one of them is a fraction.

    Raises:
        BadLine: if the line does not fit the dialect, or a label is no number that can be served.
    """
    _, labels = parse_line(dialect, line)
    is_fraction = False
    if dialect.label_kind == "number":
        for label in labels:
            # A missing label may be given as NaN, which a line may not hold.
            is_nan = dialect.missing is not None and label.lower() == b"nan"
            is_fraction |= is_nan or check_number(label)
    return labels, is_fraction


def escape_path(path: bytes) -> bytes:
    """Return `path` without line breaks, for a `tree` line; `unescape_path` is the inverse."""
    if b"\\" in path or b"\n" in path or b"\r" in path:
        return re.sub(rb"[\\\n\r]", lambda match: _TREE_ESCAPE[match[0]], path)
    return path


def unescape_path(path: bytes) -> bytes:
    """Return the path that `escape_path` wrote."""
    if b"\\" not in path:
        return path
    back = {b"\\\\": b"\\", b"\\n": b"\n", b"\\r": b"\r"}
    return re.sub(rb"\\[\\nr]", lambda match: back[match[0]], path)
