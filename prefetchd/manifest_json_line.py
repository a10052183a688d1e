"""A JSON line of a manifest: the object that it is, and the path and the labels under its keys. Pure.

Used by `manifest_format` for lines, and wherever else an object has labels (`sources/tar_index`).
"""

from __future__ import annotations

from typing import Any

import msgspec

from prefetchd.manifest_dialect import BadLine, Dialect, is_image, show


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
