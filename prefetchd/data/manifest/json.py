"""Finding out under which keys a JSONL manifest has its paths and labels, from its first lines and the options.

Called once at open, by `manifest_sniff`. Every line is held against what is found out here in the full pass.

A JSON line of a manifest: the object that it is, and the path and the labels under its keys. Pure.

Used by `manifest_format` for lines, and wherever else an object has labels (`sources/tar_index`).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from prefetchd.config.options import Config
from prefetchd.data.manifest.dialect import BadLine, Dialect, LabelKind, is_image, show
from prefetchd.errors import ManifestError


class NoObject(BadLine):
    """It is JSON, and no object."""


def json_object(line: bytes) -> dict[str, Any]:
    """Return the JSON object that `line` is; of a key that is there twice, the last.

    Raises:
        BadLine: if it is none.
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
    """Return what is under `key`, whole or as a way by dots through nested objects.

    Raises:
        BadLine: if nothing is.
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


def json_kind(value: Any) -> str:
    """Say what a JSON value is, for errors."""
    if value is None or value in ("", [], {}):
        return "null" if value is None else "empty"
    kinds = {bool: "a truth value", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    kind, text = kinds.get(type(value), f"of the type {type(value).__name__}"), repr(value)
    return f"{kind} ({text if len(text) <= 60 else text[:57] + '...'})"


JSON_SUFFIXES = (".jsonl", ".ndjson")
PATH_KEYS = (
    "path", "image", "file", "filename", "file_name", "filepath", "file_path", "image_path", "image_file", "img",
    "img_path", "image_name",
)  # fmt: skip
LABEL_KEYS = (
    "label", "labels", "class", "target", "targets", "category", "class_id", "class_name", "label_id", "label_name",
    "category_id",
)  # fmt: skip

MASK_KEYS = ("mask", "mask_path", "segmentation", "annotation", "label", "target")


def is_json_object(line: bytes) -> bool:
    """Whether `line` is a JSON object, which no path and label is."""
    try:
        return line.strip().startswith(b"{") and bool(json_object(line.strip()))
    except BadLine:
        return False


def sniff_json(config: Config, name: str, lines: list[bytes]) -> Dialect:
    """Return the dialect of the manifest whose first samples are `lines` (at least one).

    Raises:
        ManifestError: if no line is an object, or no key of theirs is the path's.
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
    for key in PATH_KEYS:
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
    known = MASK_KEYS if config.target == "mask" else LABEL_KEYS
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
    """Return what labels the majority of the objects have, the earlier in a tie, and how many numbers."""
    if not keys:
        return "none", 0
    found: Counter[tuple[LabelKind, int]] = Counter()
    for each in objects:
        try:
            values = [json_value(each, key) for key in keys]
        except BadLine:
            continue
        if [] in values:
            continue  # it says no label, and its line is refused
        if any(isinstance(value, str) for value in values):
            found["class", 1] += 1
        else:
            found["number", sum(len(value) if isinstance(value, list) else 1 for value in values)] += 1
    return found.most_common(1)[0][0] if found else ("number", len(keys))


def _listing(common: dict[str, Any]) -> str:
    keys = [repr(key) for key in common]
    return "no keys" if not keys else ", ".join(keys[:20]) + (f" and {len(keys) - 20} more" if len(keys) > 20 else "")
