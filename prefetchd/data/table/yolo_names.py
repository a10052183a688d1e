"""The classes of a YOLO folder: `classes.txt`, `obj.names`, or the `names` of a `data.yaml`. Called in the daemon.

Of YAML only simple lists and mappings are read, since the standard library knows no YAML; anything else is refused.
"""

from __future__ import annotations

import ast
import os
import re
from typing import TYPE_CHECKING

from prefetchd.errors import ManifestError, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_NAME_FILES = ("classes.txt", "obj.names", "data.yaml", "dataset.yaml", "data.yml", "dataset.yml")


def read_names(
    folders: Sequence[str], read: Callable[[str], bytes | None], name: str
) -> tuple[tuple[str, ...] | None, tuple[int, int] | None]:
    """Return the names of the classes and the shape of keypoints, each from the first file in `folders` that has them.

    Args:
        folders: where they may be.
        read: returns the content of a file, or `None` if it is not there.
        name: how errors name the data set.

    Raises:
        ManifestError: if that file cannot be read, or holds more than the simple forms.
    """
    classes: tuple[str, ...] | None = None
    for folder in folders:
        for file_name in _NAME_FILES:
            path = os.path.join(folder, file_name)
            content = read(path)
            if content is None:
                continue
            is_yaml = file_name.endswith((".yaml", ".yml"))
            if classes is not None and not is_yaml:
                continue
            try:
                text = content.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise ManifestError(
                    f"cannot read the classes of {name} from {one_line(path)}: {error}; mend it"
                ) from None
            if is_yaml:
                values = _of_yaml(text)
                shape = _shape(values.get("kpt_shape"), one_line(path))
                return _yaml_names(values, one_line(path)) if classes is None else classes, shape
            lines = [line.strip() for line in text.splitlines()]
            while lines and not lines[-1]:
                lines.pop()
            if "" in lines:
                raise ManifestError(
                    f"cannot use {one_line(path)}: line {lines.index('') + 1} is empty, and each names a class; "
                    "take it out"
                )
            classes = tuple(lines)
    return classes, None


def _of_yaml(text: str) -> dict[str, str]:
    """Return the values of a data.yaml by their keys, without comments; those over several lines joined."""
    lines = [_without_comment(line).rstrip() for line in text.splitlines()]
    values: dict[str, str] = {}
    key = ""
    for line in filter(None, lines):
        top = re.match(r"([A-Za-z_]\w*)\s*:(?:\s+(.*))?$", line)
        if top:
            key = top[1]
            values[key] = top[2] or ""
        elif key:
            values[key] += f"\n{line.strip()}"
    return values


def _without_comment(line: str) -> str:
    """Return the line up to a `#` that follows white space or the line's begin, outside of quotes."""
    quote, before = "", " "
    for at, character in enumerate(line):
        if quote:
            if character == quote and not (quote == '"' and before == "\\"):
                quote = ""
        elif character in "'\"" and before in " \t,:[{'":
            quote = character
        elif character == "#" and before in " \t":
            return line[:at]
        before = character
    return line


def _yaml_names(values: dict[str, str], name: str) -> tuple[str, ...] | None:
    """Return `names`: a list or mapping of plain or quoted text, nothing more."""
    if "names" not in values:
        return None
    try:
        return _names(values["names"].strip())
    except (ValueError, SyntaxError):
        raise ManifestError(
            f"cannot read the names in {name}: they are not a plain list or mapping; write classes.txt, a name a line"
        ) from None


def _names(text: str) -> tuple[str, ...]:
    """Return the names in a flow list, a block list, or a mapping from 0 on."""
    if text.startswith("["):
        end = text.rindex("]")
        return tuple(_scalar(part) for part in _parts(text[1:end]))
    if text.startswith("{"):
        items = list(_parts(text[1 : text.rindex("}")]))
    else:
        items = text.split("\n")
        if all(item.startswith("- ") for item in items):
            return tuple(_scalar(item[2:]) for item in items)
    pairs = [re.fullmatch(r"\s*(\d+)\s*:\s*(.+)", item) for item in items]
    named = {int(pair[1]): _scalar(pair[2]) for pair in pairs if pair is not None}
    if len(named) != len(items) or sorted(named) != list(range(len(items))):
        raise ValueError(text)
    return tuple(named[number] for number in range(len(items)))


def _parts(text: str) -> Iterator[str]:
    """Yield what commas outside of quotes separate."""
    for found in re.finditer(r"""((?:"(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^,"'])+)(?:,|$)""", " ".join(text.split())):
        if found[1].strip():
            yield found[1]


def _scalar(text: str) -> str:
    """Return a plain or quoted text."""
    text = text.strip()
    if text.startswith('"'):
        end = re.match(r'"(?:[^"\\]|\\.)*"', text)
        return str(ast.literal_eval(end[0])) if end else _fail(text)
    if text.startswith("'"):
        end = re.match(r"'(?:[^']|'')*'", text)
        return end[0][1:-1].replace("''", "'") if end else _fail(text)
    text = re.split(r"\s+#", text)[0].strip()
    return text if text and text[0] not in "&*!|>{[%@`" else _fail(text)


def _fail(text: str) -> str:
    raise ValueError(text)


def _shape(text: str | None, name: str) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"\[\s*(\d+)\s*,\s*([23])\s*\]\s*(?:#.*)?", text.strip())
    if found is None or int(found[1]) < 1:
        raise ManifestError(f"cannot read kpt_shape in {name}: {one_line(text)!r}; write it as [17, 3] or [17, 2]")
    return int(found[1]), int(found[2])
