"""JSONL lists: the object of a line, the path and the labels under its keys, and which keys those are. Pure.

`manifest.line` parses lines with it, `manifest.sniff` finds the keys out with it once, at open. Tar shards take labels
from JSON members with `json_object` and `json_value`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from prefetchd.config.options import Config
from prefetchd.data.labels import LABEL_NAMES, MASK_NAMES, PATH_NAMES, LabelKind, json_kind
from prefetchd.data.manifest.dialect import BadLine, Dialect, is_image, show
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
        raise BadLine(f"it is not JSON ({error})") from None
    except RecursionError:
        raise BadLine("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise NoObject("it is JSON but no object")
    return found


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
    labels: list[bytes] = []
    for key in dialect.keys[1:]:
        value = json_value(found, key)
        if value == []:
            raise BadLine(f"the label under {key!r} is empty", "give label_columns=0 if there are no labels")
        if dialect.label_kind in ("class", "path"):
            if not isinstance(value, str) or not value:
                wanted = "a name, as the others are" if dialect.label_kind == "class" else "the path of a mask"
                raise BadLine(f"the label under {key!r} is {json_kind(value)}, and not {wanted}")
            if dialect.label_kind == "path" and not is_image(value.encode()):
                raise BadLine(f"there is no mask: {show(value.encode(), 60)} is not named as an image")
            return path.encode(), [value.encode()]
        for number in value if isinstance(value, list) else [value]:
            if not isinstance(number, int | float):
                raise BadLine(f"the label under {key!r} is {json_kind(number)}, and not a number, as the others are")
            labels.append(repr(number).encode() if isinstance(number, float) else b"%d" % number)
    if len(labels) != dialect.label_count:
        raise BadLine(f"it has {len(labels)} label numbers where the others have {dialect.label_count}")
    return path.encode(), labels


def is_json_object(line: bytes) -> bool:
    """Return whether `line` is a JSON object, which no path and label is."""
    try:
        return line.strip().startswith(b"{") and bool(json_object(line.strip()))
    except BadLine:
        return False


def sniff_json(config: Config, name: str, lines: list[bytes]) -> Dialect:
    """Return the dialect of the list whose first samples are `lines` (at least one).

    Raises:
        ManifestError: if no line is an object, or no key has the path.
    """
    objects = []
    for line in lines:
        try:
            objects.append(json_object(line.strip()))
        except BadLine as bad:
            if len(objects) == 0 and line is lines[-1]:
                raise ManifestError(
                    f"cannot use {name}: none of its first lines is a JSON object (the last: {bad.what}: "
                    f"{show(line.strip())}); write an object with path and label on each line"
                ) from None
    path_key = _path_key(config, name, objects)
    label_keys = _label_keys(config, name, objects)
    if config.target == "mask":
        if len(label_keys) != 1:
            raise ManifestError(
                f"cannot tell which key of {name} has the mask: its objects have {_listing(_common(objects))}; "
                "give y_column"
            )
        return Dialect("json", "path", 1, keys=(path_key, *label_keys))
    kind, count = _labels(objects, label_keys)
    if kind == "class" and len(label_keys) > 1:
        raise ManifestError(
            f"cannot take the labels {', '.join(label_keys)} from {name}: they are not all numbers; "
            "give one key with text, or several with numbers, as y_column"
        )
    return Dialect("json", kind, count, keys=(path_key, *label_keys))


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


def _label_keys(config: Config, name: str, objects: list[dict[str, Any]]) -> tuple[str, ...]:
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
    known = MASK_NAMES if config.target == "mask" else LABEL_NAMES
    return tuple([key for key in known if key in common][:1])


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
        if any(isinstance(value, str) for value in values):
            found["class", 1] += 1
        else:
            found["number", sum(len(value) if isinstance(value, list) else 1 for value in values)] += 1
    return found.most_common(1)[0][0] if found else ("number", len(keys))


def _listing(common: dict[str, Any]) -> str:
    keys = [repr(key) for key in common]
    return "no keys" if not keys else ", ".join(keys[:20]) + (f" and {len(keys) - 20} more" if len(keys) > 20 else "")
