"""Which column of a table each field takes its values from, and what those are. In the daemon, once a data set.

A label of text gets the numbers of its classes, in a second table beside the first: the first may be a user's, with
gigabytes of encoded images.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.columns.store import Columns
from prefetchd.columns.writer import ColumnsWriter
from prefetchd.data.kinds import OBJECT_TARGETS
from prefetchd.data.records import FieldFacts, Holds
from prefetchd.data.table.bound_objects import bind_objects
from prefetchd.data.table.delivered import check_delivered
from prefetchd.data.table.text import label_numbers
from prefetchd.errors import ConfigError, ManifestError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.columns.store import Column
    from prefetchd.config.fields import Field

# The kinds whose values are encoded. A column of text holds text or paths of files: the kind tells which.
_ENCODED = ("image", "mask", "bytes")


@dataclass(frozen=True, slots=True)
class Binding:
    """Where the values of one field are.

    Attributes:
        name: of the field.
        column: of the table; for a side file that of the path beside which it is.
        suffix: of a side file; empty for a value of its own.
        facts: what the values are.
    """

    name: str
    column: str
    suffix: str
    facts: FieldFacts

    def to_wire(self) -> list[Any]:
        """Return it as plain values; `binding_from_wire` is the inverse."""
        facts = self.facts
        return [
            self.name, self.column, self.suffix, facts.holds, list(facts.shape), facts.dtype, facts.longest,
            facts.written, [list(each) for each in facts.beside],
        ]  # fmt: skip

    def digest(self, columns: Columns, made: Columns | None) -> str:
        """Return what follows the values of the field, and neither other columns nor where files lie."""
        column = (made if made is not None and self.column in made else columns).get(self.column)
        content = "" if column is None else column.layout.digest  # those of other records have a digest of their own
        if column is not None and self.facts.holds == "members" and column.layout.shape == (3,):
            content = blake2b(column.values[:, 2].tobytes(), digest_size=16).hexdigest()  # the lengths of the pieces
        return repr((self.suffix, content, self.facts.classes))


def binding_from_wire(wire: Sequence[Any]) -> Binding:
    """Return what `Binding.to_wire` gave; class names stay with the daemon."""
    name, column, suffix, holds, shape, dtype, longest, written, beside = wire
    more = tuple((str(each), int(number)) for each, number in beside)
    facts = FieldFacts(holds, tuple(shape), dtype, longest, written=written, beside=more)
    return Binding(name, column, suffix, facts)


def bind(
    fields: Mapping[str, Field], columns: Columns, source: str, images: Collection[str] = ()
) -> tuple[list[Binding], Columns | None]:
    """Return where each field's values are, and the table of those that had to be made; the caller owns it.

    What boxes have beside themselves, such as labels, comes after all fields.

    Args:
        fields: the option, by name.
        columns: the table, as it was read or given. Of its attributes, `images` has for a column of encoded bytes the
            columns that hold them (`columns.arrow`), `paths` lists columns that are paths to every kind, `classes` has
            the names of the classes of columns of numbers, and `is_text` says that numbers, too, are text.
        source: the data set's name in errors.
        images: columns of encoded images that other records have.

    Raises:
        ConfigError: if there is no such column, or it does not suit the field.
        ManifestError: if a value is missing.
    """
    made: dict[str, Any] = {}
    taken = {*columns, *images}
    bindings = []
    primary = next((each.column or name for name, each in fields.items() if each.kind == "image"), None)
    for name, field in fields.items():
        column = field.column or name
        if column.startswith(".") and column not in columns:
            image = None if primary is None else columns.get(_encoded_in(primary, columns))
            if image is None or _holds("image", image, columns) != "files":
                raise ConfigError(
                    f"cannot take the field {name} of {source} from files {column!r} beside the image: the first image "
                    "is no file of its own; give it a column"
                )
            bindings.append(Binding(name, image.layout.name, column, FieldFacts("files")))
            continue
        if column in images and field.kind in _ENCODED:
            bindings.append(Binding(name, column, "", FieldFacts("members")))
            continue
        found = _column(_encoded_in(column, columns), columns, name, source)
        if found.missing is not None:
            row = int(found.missing.argmax())
            raise ManifestError(
                f"cannot serve the field {name} of {source}: row {row} (from 0) has no value in {column!r}; complete "
                "it, or remove the row"
            )
        bindings.append(_bind(name, field, found, columns, source, made, taken))
    for number, field in enumerate(fields.values()):
        if field.kind in OBJECT_TARGETS:
            bindings[number], more = bind_objects(field, bindings[number], columns, source, len(bindings))
            bindings += more
    if not made:
        return bindings, None
    with ColumnsWriter(columns.n_rows) as writer:
        for column, numbers in made.items():
            writer.add_numbers(column, numbers)
        table = Columns.attach(*writer.finish())
    try:
        for binding, (name, field) in zip(bindings, fields.items(), strict=False):
            if binding.column in table:
                check_delivered(name, field, table[binding.column], source)
    except BaseException:
        table.close()
        raise
    return bindings, table


def _bind(
    name: str,
    field: Field,
    column: Column,
    columns: Columns,
    source: str,
    made: dict[str, Any],
    taken: Collection[str],
) -> Binding:
    layout = column.layout
    holds = _holds(field.kind, column, columns)
    if holds is None:
        what = layout.kind if layout.kind != "numbers" else f"numbers of {layout.dtype} {list(layout.shape) or ''}"
        remedy = "give another column, or another kind"
        if field.kind in OBJECT_TARGETS and layout.kind == "strings":
            remedy = "write lists as JSON lines or Parquet, or give columns of numbers, such as 'x1,y1,x2,y2'"
        raise ConfigError(
            f"cannot take the field {name}, a field of kind {field.kind}, from {layout.name!r} of {source}: it holds "
            f"{what.strip()}; {remedy}"
        )
    if field.kind == "label" and holds == "text":
        where = f"{layout.name!r} of {source}"
        are_names = not columns.attributes.get("is_text")
        numbers, classes = label_numbers(column, columns.n_rows, where, are_names=are_names)
        key = f"{name}."  # a name of its own: another field may take its values from a column called `name`
        while key in taken:
            key += "."
        made[key] = numbers
        return Binding(name, key, "", FieldFacts("numbers", (), numbers.dtype.name, classes=classes))
    if field.kind in ("label", "array") and holds in ("numbers", "ragged"):
        check_delivered(name, field, column, source)
    if holds == "ragged" and field.kind in ("label", "array"):
        return Binding(name, layout.name, "", _regular(name, column, source))
    longest = 0 if holds in ("numbers", "files") else int(_lengths(column, holds).max(initial=0))
    names = columns.attributes.get("classes", {}).get(layout.name)
    facts = FieldFacts(holds, layout.shape, layout.dtype, longest, None if names is None else tuple(names))
    return Binding(name, layout.name, "", facts)


def _encoded_in(name: str, columns: Columns) -> str:
    """Return the column that has the encoded bytes of the column `name`, or their places, or that column itself."""
    parts = columns.attributes.get("images", {}).get(name, {})
    return str(next((parts[each] for each in ("place", "bytes", "path") if each in parts), name))


def _holds(kind: str, column: Column, columns: Columns) -> Holds | None:
    """Return what `column` holds to a field of `kind`; `None` if it cannot serve it."""
    if any(column.layout.name == each.get("place") for each in columns.attributes.get("images", {}).values()):
        return "members" if kind in (*_ENCODED, "array", "text") else None
    if column.layout.name in columns.attributes.get("paths", ()):
        return "files" if kind in (*_ENCODED, "array", "text") else None
    match column.layout.kind:
        case "strings":
            return {"label": "text", "text": "text", "boxes": None, "keypoints": None}.get(kind, "files")
        case "bytes":
            return "text" if kind == "text" else "bytes" if kind in (*_ENCODED, "array") else None
        case "ragged":
            return "ragged" if kind not in (*_ENCODED, "text") else None
        case _:
            return "numbers" if kind not in (*_ENCODED, "text") else None


def _lengths(column: Column, holds: Holds) -> NDArray[np.int64]:
    """Return the length of each value; a place in a larger file is (file, offset, bytes)."""
    return column.values[:, 2] if holds == "members" else column.lengths


def _regular(name: str, column: Column, source: str) -> FieldFacts:
    """Return the facts of lists that have one length, which are numbers of a shape."""
    lengths = column.lengths
    odd = np.flatnonzero(lengths != lengths[0])
    if len(odd):
        raise ManifestError(
            f"cannot serve the field {name} of {source}: row 0 has {lengths[0]} numbers in {column.layout.name!r}, and "
            f"row {odd[0]} has {lengths[odd[0]]}; a field of kind array has one shape"
        )
    return FieldFacts("ragged", (int(lengths[0]), *column.layout.shape), column.layout.dtype, int(lengths[0]))


def _column(name: str, columns: Columns, field: str, source: str) -> Column:
    if name in columns:
        return columns[name]
    left_out = columns.attributes.get("left_out", {})
    if name in left_out:
        raise ConfigError(f"cannot take the field {field} from {name!r} of {source}: {left_out[name]}; give another")
    near = difflib.get_close_matches(name, list(columns), 1)
    hint = f"did you mean {near[0]!r}" if near else f"there are {', '.join(map(repr, list(columns)[:20]))}"
    raise ConfigError(
        f"cannot take the field {field} from {name!r}: {source} has no such column; {hint}; give each field its column"
    )
