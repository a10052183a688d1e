"""JSON lines into a table: the keys that the fields name. In the daemon, once a data set.

A key may be a path through objects, `annotation.boxes`, where there is none of that whole name.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import msgspec

from prefetchd.columns.store import Columns
from prefetchd.columns.values import add_values
from prefetchd.columns.writer import ColumnsWriter
from prefetchd.data.files import cannot_open
from prefetchd.data.table.class_lists import class_lists
from prefetchd.data.table.text import TextColumn
from prefetchd.errors import ConfigError, ManifestError

_BLOCK_ROWS = 1 << 14
_BOM = b"\xef\xbb\xbf"
_MISSING = object()


def read_jsonl(path: str, name: str, keys: Sequence[str], labels: Collection[str] = ()) -> tuple[Columns, int]:
    """Return the table, which the caller owns, and the line of its first row; 0 if rows are not lines.

    Args:
        path: of the file.
        name: of the file in errors.
        keys: the columns.
        labels: those of them with lists of class numbers or names, which become numbers.

    Raises:
        ManifestError: if the file cannot be read, a line is no object, or a value is missing or of another type.
        ConfigError: if no line has one of the keys.
    """
    columns = {key: _Values() for key in keys}
    row, line = 0, 0
    try:
        with open(path, "rb") as file:
            for line, found in _objects(file, name):
                row += 1
                for key, values in columns.items():
                    value = _value(found, key)
                    if value is _MISSING or value is None:
                        raise _absent(key, found, row, line, name)
                    values.add(value)
    except OSError as error:
        raise cannot_open(name, error) from None
    classes: dict[str, list[str]] = {}
    with ColumnsWriter(row) as writer:
        for key, values in columns.items():
            try:
                names = values.write(writer, key, is_labels=key in labels)
                if names is not None:
                    classes[key] = names
            except ValueError as error:
                raise ManifestError(f"cannot serve {name}: the key {key!r}: {error}; mend the lines") from None
        return Columns.attach(*writer.finish({"classes": classes})), 1 if line == row else 0


class _Values:
    """The values of one key: text is kept compactly, all else as it is."""

    def __init__(self) -> None:
        self._text = TextColumn()
        self._pending: list[Any] = []
        self._is_text = True

    def add(self, value: Any) -> None:
        self._pending.append(value)
        if self._is_text and len(self._pending) >= _BLOCK_ROWS:
            self._pack()

    def _pack(self) -> None:
        if set(map(type, self._pending)) <= {str}:
            self._text.extend(self._pending)
            self._pending = []
        else:
            self._is_text = False
            self._pending = [*self._text, *self._pending]

    def write(self, writer: ColumnsWriter, key: str, *, is_labels: bool) -> list[str] | None:
        """Add the column; return the classes' names if it has lists of them."""
        if self._is_text:
            self._pack()
        if self._is_text:
            writer.add_strings(key, self._text.blocks)
            return None
        pending, names = class_lists(self._pending) if is_labels else (self._pending, None)
        add_values(writer, key, pending)
        return names


def _objects(lines: Iterator[bytes], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the object of each line that is not blank."""
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    for number, line in enumerate(lines, 1):
        text = line.removeprefix(_BOM) if number == 1 else line
        if text.isspace() or not text:
            continue
        try:
            yield number, decode(text)
        except msgspec.DecodeError as error:
            raise ManifestError(
                f"cannot serve {name}: line {number} is no JSON object ({error}); write one object a line"
            ) from None
        except (UnicodeDecodeError, RecursionError) as error:
            raise ManifestError(f"cannot serve {name}: line {number}: {error}; write it as UTF-8") from None


def _value(found: dict[str, Any], key: str) -> Any:
    if key in found:
        return found[key]
    value: Any = found
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return _MISSING
        value = value[part]
    return value


def _absent(key: str, found: dict[str, Any], row: int, line: int, name: str) -> ManifestError | ConfigError:
    if row == 1 and _value(found, key) is _MISSING:
        near = difflib.get_close_matches(key, found, 1)
        hint = f"did you mean {near[0]!r}" if near else f"there are {', '.join(map(repr, list(found)[:20]))}"
        return ConfigError(f"cannot find the key {key!r} in {name}: {hint}; give each field its column")
    return ManifestError(f"cannot serve {name}: line {line} has no value for {key!r}; complete it, or remove the line")
