"""JSONL lists: the object of a line, the path and the labels under its keys, and which keys those are. Pure.

`manifest.line` parses lines with it, `manifest.sniff` finds the keys out with it once, at open. Tar shards take labels
from JSON members with `json_object` and `json_value`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import msgspec

from prefetchd.config.options import Config
from prefetchd.data.labels import (
    MASK_NAMES,
    PATH_NAMES,
    LabelKind,
    find_label,
    is_pandas_index,
    json_kind,
    known_label,
)
from prefetchd.data.manifest.dialect import FILL, MEND, BadLine, Dialect, Line, is_image, show
from prefetchd.errors import ManifestError

JSON_SUFFIXES = (".jsonl", ".ndjson")


class NoObject(BadLine):
    """The line is JSON, but no object."""


def json_object(line: bytes) -> dict[str, Any]:
    """Parse `line` as a JSON object; the last of equal keys counts.

    Raises:
        BadLine: if it is no object.
    """
    try:
        found = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        found = _with_nan(line)
        if found is None:
            raise BadLine(f"it is not JSON ({error})") from None
    except RecursionError:
        raise BadLine("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise NoObject("it is JSON but no object")
    return found


def _with_nan(line: bytes) -> Any:
    """Return what a line with NaN is, which Python's `json` writes though it is no JSON; `None` if that is not why."""
    if b"NaN" not in line:
        return None
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def json_value(found: dict[str, Any], key: str) -> Any:
    """Return the value under `key`; dots lead into nested objects where no key has that name.

    Raises:
        BadLine: if there is no such key.
    """
    if key in found:
        return found[key]
    value: Any = found
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise BadLine(f"there is no key {key!r}")
        value = value[part]
    return value


def parse_json(dialect: Dialect, line: bytes) -> tuple[bytes, list[bytes]]:
    """Return the path and the labels of a JSON line; the labels' numbers written as in other lines.

    Raises:
        BadLine: if the line does not fit the dialect.
    """
    found = json_object(line)
    path = json_value(found, dialect.keys[0])
    if not isinstance(path, str) or not path:
        raise BadLine(f"the path under {dialect.keys[0]!r} is {json_kind(path)}")
    if dialect.exact and (key := _possible_label(found, dialect.keys[0])):
        raise BadLine(f"it has the key {key!r} where other lines have no label", _settle(key))
    fields: list[bytes] = []
    for key in dialect.keys[1:]:
        fields += _label_fields(dialect, found, key)
    if len(fields) != dialect.label_count:
        raise BadLine(f"it has {len(fields)} label numbers where the others have {dialect.label_count}")
    return path.encode(), fields


def _possible_label(found: dict[str, Any], path_key: str) -> str | None:
    """Return the key beside the path's that may hold a label, a usual one first; `None` if there is none."""
    path_keys = (path_key, path_key.partition(".")[0])
    keys = [key for key, value in found.items() if key not in path_keys and value is not None]
    return known_label(keys) or next((key for key in keys if not is_pandas_index(key)), None)


def _settle(key: str) -> str:
    return f"give y_column={key!r}, with missing_label=-1 (or another) for lines without, or label_columns=0 for none"


def _label_fields(dialect: Dialect, found: dict[str, Any], key: str) -> list[bytes]:
    """Return what is under a label's key as the fields of other lists have it; of several classes, one field."""
    missing, kind = dialect.missing, dialect.label_kind
    try:
        value = json_value(found, key)
    except BadLine:
        if missing is None:
            raise
        value = None
    if kind == "classes" and value in (None, "", []):
        return [b""]
    if missing is not None and kind != "path":
        if value in (None, "") or (kind == "number" and isinstance(value, float) and math.isnan(value)):
            return [missing.encode("utf-8", "surrogateescape")]
    elif value == []:
        raise BadLine(f"the label under {key!r} is empty", "give label_columns=0 if there are no labels")
    elif value is None and kind != "path":
        raise BadLine(f"the label under {key!r} is null", FILL)
    if kind == "classes":
        return [_joined(dialect, key, value)]
    if kind == "number":
        return [_number_field(key, number) for number in (value if isinstance(value, list) else [value])]
    if not isinstance(value, str) or not value:
        wanted = "a name, as the others are" if kind == "class" else "the path of a mask"
        remedy = "give label_separator=',' for a 0/1 vector over the classes" if _is_names(value) else MEND
        raise BadLine(f"the label under {key!r} is {json_kind(value)}, and not {wanted}", remedy)
    if kind == "path" and not is_image(value.encode()):
        raise BadLine(f"there is no mask: {show(value.encode(), 60)} is not named as an image")
    return [value.encode()]


def _number_field(key: str, number: Any) -> bytes:
    if isinstance(number, int | float):
        return repr(number).encode() if isinstance(number, float) else b"%d" % number
    remedy = "give label_separator=',' for a 0/1 vector over the classes" if isinstance(number, str) else MEND
    raise BadLine(f"the label under {key!r} is {json_kind(number)}, and not a number, as the others are", remedy)


def _joined(dialect: Dialect, key: str, value: Any) -> bytes:
    """Return several classes, in one string or a list of names or integers, as one field."""
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, str | int) for part in parts):
        raise BadLine(f"the label under {key!r} is {json_kind(value)}, and not names of classes")
    return dialect.label_separator.join(str(part) for part in parts).encode()


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def is_json_object(line: bytes) -> bool:
    """Return whether `line` is a JSON object, which no path and label is."""
    try:
        return line.strip().startswith(b"{") and bool(json_object(line.strip()))
    except BadLine:
        return False


def sniff_json(config: Config, name: str, lines: list[Line]) -> Dialect:
    """Return the dialect of the list whose first samples are `lines` (at least one).

    Raises:
        ManifestError: if no line is an object, no key has the path, or few lines have what may be a label.
    """
    objects = []
    for line in lines:
        try:
            objects.append(json_object(line.raw.strip()))
        except BadLine as bad:
            if len(objects) == 0 and line is lines[-1]:
                raise ManifestError(
                    f"cannot use {name}: none of its first lines is a JSON object (the last: {bad.what}: "
                    f"{show(line.raw.strip())}); write an object with path and label on each line"
                ) from None
    path_key = _path_key(config, name, objects)
    label_keys = _label_keys(config, name, objects, path_key)
    if config.target == "mask":
        if len(label_keys) != 1:
            raise ManifestError(
                f"cannot tell which key of {name} has the mask: its objects have {_listing(_common(objects))}; "
                "give y_column"
            )
        return Dialect("json", "path", 1, keys=(path_key, *label_keys))
    is_guessed = config.label_columns is None and config.y_column is None
    if is_guessed and not label_keys:
        _refuse_rare_label(name, lines, path_key)
    kind, count = _labels(objects, label_keys)
    if config.label_separator and label_keys:
        kind, count = "classes", 1
    if kind in ("class", "classes") and len(label_keys) > 1:
        raise ManifestError(
            f"cannot take the labels {', '.join(label_keys)} from {name}: they are not all numbers; "
            "give one key with text, or several with numbers, as y_column"
        )
    return Dialect("json", kind, count, exact=is_guessed and not label_keys, keys=(path_key, *label_keys))


def _refuse_rare_label(name: str, lines: list[Line], path_key: str) -> None:
    """Raise `ManifestError` if one of the lines, most of which have the path alone, has what may be a label.

    Bad lines may be left out, but then the others' labels would be numbers of samples.
    """
    for line in lines:
        try:
            found = json_object(line.raw.strip())
            json_value(found, path_key)
            key = _possible_label(found, path_key)
        except BadLine:
            continue
        if key is not None:
            raise ManifestError(
                f"cannot use line {line.number} of {name}: it has the key {key!r} where most lines have no label; "
                f"{_settle(key)}"
            )


def _path_key(config: Config, name: str, objects: list[dict[str, Any]]) -> str:
    if config.x_column is not None:
        return config.x_column
    common = _common(objects)
    for key in PATH_NAMES:
        if isinstance(common.get(key), str):
            return key
    for key, value in common.items():
        if isinstance(value, str) and is_image(value.encode("utf-8", "replace")):
            return key
    raise ManifestError(
        f"cannot tell which key of {name} has the path: its objects have {_listing(common)}; give x_column"
    )


def _label_keys(config: Config, name: str, objects: list[dict[str, Any]], path_key: str) -> tuple[str, ...]:
    if config.label_columns not in (None, 0) and config.target != "mask":
        raise ManifestError(
            f"cannot take label_columns={config.label_columns} from {name}: keys have no order; "
            "name the labels' keys with y_column, or give 0 for none"
        )
    if config.label_columns == 0:
        return ()
    if config.y_column is not None:
        return tuple(part.strip() for part in config.y_column.split(",") if part.strip())
    common = _common(objects)
    if path_key.partition(".")[0] not in common and path_key not in common:
        return ()  # every line is refused for it
    names = [key for key in common if key not in (path_key, path_key.partition(".")[0])]
    found = known_label(names, MASK_NAMES) if config.target == "mask" else find_label(names, name, "keys")
    return () if found is None else (found,)


def _common(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the keys that at least half of the objects have, each with the first value that is not null."""
    counts = Counter(key for found in objects for key in found)
    values: dict[str, Any] = {}
    for found in objects:
        for key, value in found.items():
            if 2 * counts[key] >= len(objects) and values.get(key) is None:
                values[key] = value
    return values


def _labels(objects: list[dict[str, Any]], keys: tuple[str, ...]) -> tuple[LabelKind, int]:
    """Return the kind of labels that most objects have, the earlier in a tie, and how many numbers."""
    if not keys:
        return "none", 0
    found: Counter[tuple[LabelKind, int]] = Counter()
    for each in objects:
        try:
            values = [json_value(each, key) for key in keys]
        except BadLine:
            continue
        if [] in values:
            continue  # an empty label, whose line is refused
        if any(value is None for value in values):
            continue
        if any(isinstance(value, str) for value in values):
            found["class", 1] += 1
        else:
            found["number", sum(len(value) if isinstance(value, list) else 1 for value in values)] += 1
    return found.most_common(1)[0][0] if found else ("number", len(keys))


def _listing(common: dict[str, Any]) -> str:
    keys = [repr(key) for key in common]
    return "no keys" if not keys else ", ".join(keys[:20]) + (f" and {len(keys) - 20} more" if len(keys) > 20 else "")
