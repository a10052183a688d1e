"""What each field delivers: the names, shapes and dtypes of its arrays. Pure; the daemon calls it once a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prefetchd.config.fields import image_config, parse_fields
from prefetchd.data.images.objects import object_fields
from prefetchd.data.table.delivered import delivered_dtype
from prefetchd.data.table.object_records import ObjectFacts
from prefetchd.errors import ConfigError
from prefetchd.ring.layout import FieldLayout

if TYPE_CHECKING:
    from prefetchd.config.fields import Field
    from prefetchd.config.options import Config
    from prefetchd.data.records import FieldFacts


def leaves_of(name: str, field: Field, facts: FieldFacts, config: Config) -> tuple[FieldLayout, ...]:
    """Return the arrays of one field.

    Raises:
        ConfigError: if the field must say more, such as `max_bytes`, or its parameters contradict each other.
    """
    return LEAVES[field.kind](name, field, facts, config)


def _image(name: str, field: Field, facts: FieldFacts, config: Config) -> tuple[FieldLayout, ...]:
    own = image_config(config, field)
    shape = (*own.image_size, own.n_channels)
    return (FieldLayout(name, shape if own.layout == "nhwc" else (shape[2], *shape[:2]), own.dtype),)


def _mask(name: str, field: Field, facts: FieldFacts, config: Config) -> tuple[FieldLayout, ...]:
    return (FieldLayout(name, image_config(config, field).image_size, field.dtype or "uint8"),)


def _label(name: str, field: Field, facts: FieldFacts, config: Config) -> tuple[FieldLayout, ...]:
    return (FieldLayout(name, facts.shape, delivered_dtype(field, facts.dtype)),)


def _array(name: str, field: Field, facts: FieldFacts, config: Config) -> tuple[FieldLayout, ...]:
    if facts.is_encoded:
        for parameter in ("shape", "dtype"):
            if getattr(field, parameter) is None:
                raise ConfigError(
                    f"cannot serve the field {name}: its arrays are .npy files, which are not read at the start; "
                    f"give {parameter} of one"
                )
        assert field.shape is not None
        return (FieldLayout(name, field.shape, str(field.dtype)),)
    dtype = delivered_dtype(field, facts.dtype)
    shape = facts.shape if field.shape is None else field.shape
    if _count(shape) != _count(facts.shape):
        raise ConfigError(
            f"cannot serve the field {name} as shape={shape}: its column has {_count(facts.shape)} numbers a sample; "
            "give a shape of as many"
        )
    return (FieldLayout(name, shape, dtype),)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def _bytes(name: str, field: Field, facts: FieldFacts, config: Config) -> tuple[FieldLayout, ...]:
    most = field.max_bytes
    if most is None and facts.is_fetched and not facts.longest:
        raise ConfigError(
            f"cannot serve the field {name}: its values are files, whose sizes are not known at the start; give "
            "max_bytes, the most bytes of one"
        )
    most = most or max(1, facts.longest)
    return FieldLayout(f"{name}.bytes", (most,), "uint8"), FieldLayout(f"{name}.length", (), "int64")


def objects_of(field: Field, facts: FieldFacts, config: Config) -> tuple[Config, ObjectFacts]:
    """Return the options of a field of boxes or keypoints, and what is the same for all of them."""
    names = ("box_format", "source_box_format", "max_boxes", "min_visible")
    given = {each: value for each in names if (value := getattr(field, each)) is not None}
    target: Any = field.kind
    own = replace(config, target=target, **given)
    points = 0 if field.kind == "boxes" else 1 if len(facts.shape) == 1 else facts.shape[0]
    written: Any = facts.written or own.source_box_format or "xyxy"
    id_name = "annotation" if any(each == "ids" for each, _ in facts.beside) else "object"
    return own, ObjectFacts(facts.longest, points, written, id_name)


def _objects(name: str, field: Field, facts: FieldFacts, config: Config) -> tuple[FieldLayout, ...]:
    if not any(each.kind == "image" for each in parse_fields(config.fields).values()):
        raise ConfigError(f"cannot serve the field {name}: {field.kind} move with an image; add a field of kind image")
    own, found = objects_of(field, facts, config)
    if field.kind == "boxes" and not facts.written and own.source_box_format is None:
        raise ConfigError(
            f"cannot tell how the field {name} writes boxes: four numbers are two corners (xyxy), a corner and a size "
            "(xywh) or a centre and a size (cxcywh); give source_box_format='xyxy' or another"
        )
    return object_fields(own, found, name)


Leaves = Callable[[str, "Field", "FieldFacts", "Config"], tuple[FieldLayout, ...]]
LEAVES: Mapping[str, Leaves] = {
    "image": _image, "mask": _mask, "label": _label, "array": _array, "boxes": _objects, "keypoints": _objects,
    "text": _bytes, "bytes": _bytes,
}  # fmt: skip
