"""The option `fields`: what a sample consists of, from `Field` objects or text to one canonical form. Pure.

    fields={"image": Field("image", "path"), "depth": Field("image", channels=1, dtype="uint16")}
    --field 'image=image(column=path)' --field 'depth=image(channels=1, dtype=uint16)'

`validate` calls `canonical`: equal fields have equal texts, and so equal digests. A text has the parameters that were
given and no others, so that a parameter which comes later changes no digest. Text is parsed with `ast`, literals and
bare words only: no code of it ever runs. A new kind is an entry of `field_parameters.PARAMETERS`.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import keyword
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from prefetchd.config import convert
from prefetchd.config.field_parameters import PARAMETERS, Wrong
from prefetchd.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from prefetchd.config.options import BoxFormat, Color, Config, Interpolation

MAX_FIELDS = 32
# A batch's own names, and those that it may get.
_RESERVED = (
    "copy", "epoch", "get", "index", "items", "keys", "place", "repeated", "root", "sample_ids", "source", "strings",
    "values",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a sample, for the option `fields`.

    Args:
        kind: `image` (placed and normalised as the options say), `mask` (placed as the images, never interpolated),
            `label` (a number or a class, or a vector of numbers), `array` (numbers of one shape), `boxes` and
            `keypoints` (any number a sample, moved as the first image), `text` (UTF-8), or `bytes` (an encoded file as
            it is).
        column: where its values come from: a column of CSV or Parquet, a key of JSONL, a member's extension in tar
            shards, a sub-folder. A name that begins with a dot, `.txt`, is the file beside the first image that has
            this suffix. The field's own name if not given.
        size: image, mask: (height, width) in pixels; the option `image_size` if not given.
        color, scale, mean, std, interpolation: image: as the options of these names; they hold where these are not
            given. A field with a `dtype` of its own has its own `scale`, `mean` and `std` too.
        channels: image: how many its files have, kept as they are unless `color` says otherwise.
        dtype: of the delivered values. Labels and arrays have that of the data if it is not given.
        jitter: image: whether what changes colours in `augment` changes this image: True, unless it has `channels` or
            a `dtype` of its own, as a depth map has.
        border: mask: what it holds where pad, rotate or affine leave it empty; the option `mask_border`.
        shape: array: of one sample; that of the data if not given.
        labels: boxes: the column of their class numbers; without it there is one class.
        box_format, source_box_format, max_boxes, min_visible: boxes, keypoints: as the options of these names.
        max_bytes: text, bytes: the most bytes of a value; the data's longest where that is known.
        truncate: text: whether a longer one is cut, at a character's end, in place of being a bad sample (False).

    Raises:
        ConfigError: for an unknown kind, a parameter that the kind does not have, or a wrong value.
    """

    kind: str
    column: str | None = None
    _: KW_ONLY
    size: tuple[int, int] | None = None
    color: str | None = None
    channels: int | None = None
    dtype: str | None = None
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    jitter: bool | None = None
    border: int | None = None
    shape: tuple[int, ...] | None = None
    labels: str | None = None
    box_format: BoxFormat | None = None
    source_box_format: BoxFormat | None = None
    max_boxes: int | None = None
    min_visible: float | None = None
    max_bytes: int | None = None
    truncate: bool | None = None

    if TYPE_CHECKING:  # what may be given; the attributes have what is made of it

        def __init__(
            self,
            kind: str,
            column: str | Sequence[str] | None = None,
            *,
            size: int | str | Sequence[int] | None = None,
            color: Color | None = None,
            channels: int | None = None,
            dtype: str | type[Any] | np.dtype[Any] | None = None,
            scale: float | str | None = None,
            mean: float | Sequence[float] | None = None,
            std: float | Sequence[float] | None = None,
            interpolation: Interpolation | None = None,
            jitter: bool | None = None,
            border: int | None = None,
            shape: int | Sequence[int] | None = None,
            labels: str | None = None,
            box_format: BoxFormat | None = None,
            source_box_format: BoxFormat | None = None,
            max_boxes: int | None = None,
            min_visible: float | None = None,
            max_bytes: int | None = None,
            truncate: bool | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        known = PARAMETERS.get(self.kind) if isinstance(self.kind, str) else None
        if known is None:
            near = difflib.get_close_matches(str(self.kind), PARAMETERS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"give one of {', '.join(PARAMETERS)}, then the column"
            raise ConfigError(f"cannot use the kind {self.kind!r} of a field: there is none of that name; {hint}")
        if self.column is not None:
            object.__setattr__(self, "column", convert.columns(self.column))
        for name, value in self.given.items():
            if name not in known:
                raise ConfigError(f"cannot use {name} for a field of kind {self.kind}: it has {', '.join(known)}")
            try:
                object.__setattr__(self, name, known[name](value))
            except Wrong as wrong:
                raise ConfigError(
                    f"cannot use {name}={value!r} for a field of kind {self.kind}: it must be {wrong}"
                ) from None

    @property
    def given(self) -> dict[str, Any]:
        """The parameters that were given, without the column."""
        values = {name: getattr(self, name) for name in _PARAMETER_NAMES}
        return {name: value for name, value in values.items() if value is not None}

    def write(self, name: str) -> str:
        """Return the canonical text of a field of this `name`."""
        column = {} if self.column is None or self.column == name else {"column": self.column}
        given = ", ".join(f"{parameter}={value!r}" for parameter, value in {**column, **self.given}.items())
        return f"{name}={self.kind}({given})"


# Augmentations that move pixels and change none; masks and all images of a sample get the same.
_GEOMETRIC = ("random_resized_crop", "hflip", "vflip", "rotate", "affine")
_VALUES = ("dtype", "scale", "mean", "std")
_PARAMETER_NAMES = tuple(each.name for each in dataclasses.fields(Field) if each.name not in ("kind", "column"))


def canonical(value: object) -> tuple[str, ...]:
    """Return the fields that `value` names, each as `name=kind(parameter=value, ...)`, in the order given.

    Args:
        value: a mapping from names to fields, to mappings of a field's parameters, or to text; or texts
            `name=kind(parameter=value)`, one or several; empty or `None` for none.

    Raises:
        ConfigError: for what is no field, a name that cannot be one, or two fields of one name.
    """
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        value = [value]
    if isinstance(value, Mapping):
        pairs = [(name, _field(name, given)) for name, given in value.items()]
    elif isinstance(value, Sequence) and all(isinstance(part, str) for part in value):
        pairs = [_parse(part) for part in value]
    else:
        raise ConfigError(
            f"cannot use {type(value).__name__} as fields: give a dictionary, such as "
            '{"image": prefetchd.Field("image", "path")}, or texts such as "image=image(column=path)"'
        )
    if len(pairs) > MAX_FIELDS:
        raise ConfigError(f"cannot use {len(pairs)} fields: {MAX_FIELDS} at most; leave some out")
    texts: dict[str, str] = {}
    for name, field in pairs:
        _check_name(name)
        if name in texts:
            raise ConfigError(f"cannot use the field {name} twice; give each a name of its own")
        texts[name] = field.write(name)
    return tuple(texts.values())


@lru_cache(maxsize=64)
def parse_fields(texts: tuple[str, ...]) -> Mapping[str, Field]:
    """Return the fields of canonical texts by name, each with its column."""
    parsed = dict(map(_parse, texts))
    return {name: dataclasses.replace(each, column=each.column or name) for name, each in parsed.items()}


def image_config(config: Config, field: Field) -> Config:
    """Return the options of one image or mask: those of the data set, but for what the field gives itself."""
    changes: dict[str, Any] = {"fields": (), "transform": None}
    given = field.given
    if field.kind == "image":
        if "dtype" in given:
            changes.update(dict.fromkeys(_VALUES))  # numbers for other pixels
        if "channels" in given or "color" in given:
            changes.update(channels=None, color=given.get("color", "unchanged"))
        names = ("color", "channels", "interpolation", *_VALUES)
        changes.update({name: given[name] for name in names if name in given})
        is_changed = not given.keys() & {"channels", "dtype"} if field.jitter is None else field.jitter
        if not is_changed:
            changes["augment"] = tuple(text for text in config.augment if text.partition("(")[0] in _GEOMETRIC)
    changes["image_size"] = field.size or config.image_size
    if field.size:
        changes["bucket_sizes"] = ()  # its own size is that of all batches
    changes["mask_border"] = config.mask_border if field.border is None else field.border
    return dataclasses.replace(config, **changes)


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or len(name) > 64:
        why = "it must be a name as in Python, of letters, digits and _, up to 64"
    elif name.startswith("_"):
        why = "it begins with _"
    elif name in _RESERVED:
        why = f"a batch has {', '.join(_RESERVED)} of its own"
    else:
        return
    raise ConfigError(f"cannot call a field {name!r}: {why}; give it another name")


def _field(name: str, given: object) -> Field:
    """Return the field that a user gave for `name`."""
    if isinstance(given, Field):
        return given
    if isinstance(given, str):
        return _parse(f"{name}={given}")[1]
    if not isinstance(given, Mapping):
        raise _refuse(name, f"it is a {type(given).__name__}; give prefetchd.Field(kind, column)")
    parameters = {str(key).replace("-", "_"): value for key, value in given.items()}
    return _make(name, parameters)


def _make(name: str, parameters: dict[str, Any]) -> Field:
    for parameter in parameters:
        if parameter not in ("kind", "column", *_PARAMETER_NAMES):
            near = difflib.get_close_matches(parameter, _PARAMETER_NAMES, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise _refuse(name, f"there is no parameter {parameter!r}{hint}")
    if "kind" not in parameters:
        raise _refuse(name, f"it has no kind; there are {', '.join(PARAMETERS)}")
    try:
        return Field(**parameters)
    except ConfigError as error:
        raise _refuse(name, str(error).removeprefix("cannot use ")) from None


def _parse(text: str) -> tuple[str, Field]:
    """Return the name and the field of a text `name=kind(parameter=value, ...)`."""
    name, _, described = text.partition("=")
    name = name.strip()
    try:
        node: ast.expr = ast.parse(" ".join(described.split()), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _refuse(name, _unreadable(text)) from None
    keywords: list[ast.keyword] = []
    given: dict[str, Any] = {}
    if isinstance(node, ast.Call):
        if len(node.args) > 1:
            raise _refuse(name, "parameters are given by name, such as image(column=path, size=64)")
        if node.args:
            given["column"] = _literal(name, node.args[0])
        keywords, node = node.keywords, node.func
    if not isinstance(node, ast.Name):
        raise _refuse(name, _unreadable(text))
    for each in keywords:
        if each.arg is None or each.arg in given:
            raise _refuse(name, f"{each.arg or '**'} is given twice, or without a value")
        given[each.arg] = _literal(name, each.value)
    return name, _make(name, {"kind": node.id, **given})


def _literal(name: str, node: ast.expr) -> Any:
    """Return a literal; a bare word, with or without dots, is text."""
    if isinstance(node, ast.Name):
        return {"true": True, "false": False, "yes": True, "no": False}.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_literal(name, node.value)}.{node.attr}"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):  # 1/255
        return ast.unparse(node).replace(" ", "")
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, MemoryError, RecursionError):
        raise _refuse(
            name, f"{ast.unparse(node)} is no plain value; write a word, a number or text in quotes"
        ) from None


def _unreadable(text: str) -> str:
    return f"{text!r} cannot be read; write NAME=KIND(column=COLUMN), such as depth=image(column=depth, size=64)"


def _refuse(name: str, why: str) -> ConfigError:
    return ConfigError(f"cannot use the field {name}: {why}")
