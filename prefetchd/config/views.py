"""The option `views`: how often, in which sizes and with which augmentation each image is delivered. Pure.

`validate` calls `canonical`, which makes one form of a number, a list of dictionaries (Python, TOML) and text such as
`view(size=224, count=2, scale=(0.4, 1)), view(size=96, count=6, scale=(0.05, 0.4))`. `groups` says what a
configuration delivers. Text is parsed with `ast`, literals only: no code of it ever runs.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefetchd.config import augment, convert
from prefetchd.errors import ConfigError

if TYPE_CHECKING:
    from prefetchd.config.options import Config

MAX_VIEWS = 64  # of one image, all together
_CROP = "random_resized_crop"
_EXAMPLE = "views=2, or views=[{'size': 224, 'count': 2, 'scale': (0.4, 1)}, {'size': 96, 'count': 6}]"


@dataclass(frozen=True, slots=True)
class View:
    """One entry of the list: `count` views of one kind.

    Attributes:
        count: how many.
        size: (height, width) of each; `None` for `image_size`.
        scale, ratio: of the `random_resized_crop` of these views; `None` for those of `augment`.
        augment: in place of the option `augment`; `None` for that.
    """

    count: int = 1
    size: tuple[int, int] | None = None
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] | None = None
    augment: tuple[str, ...] | None = None

    def text(self) -> str:
        """Return the view as it is written, with what was given."""
        given = [(each.name, getattr(self, each.name)) for each in dataclasses.fields(self)]
        return f"view({', '.join(f'{name}={value!r}' for name, value in given if value is not None)})"


@dataclass(frozen=True, slots=True)
class Group:
    """What is delivered of each image in one array: the views of one kind.

    Attributes:
        name: of the array.
        count: how many views; `None` without the option: then the array has no dimension for them.
        size: (height, width) of each.
        augment: the canonical augmentations.
        first: the number of the first one among all views of the image.
    """

    name: str
    count: int | None
    size: tuple[int, int]
    augment: tuple[str, ...]
    first: int = 0

    def shape(self, config: Config) -> tuple[int, ...]:
        """Return the shape of one row of the array, (count, H, W, C) or (count, C, H, W) as `layout` says."""
        image = (*self.size, config.n_channels)
        return (self.count or 1, *(image if config.layout == "nhwc" else (image[2], *image[:2])))


def canonical(value: object) -> tuple[str, ...]:
    """Return the views as texts: none, a number such as `2` alone, or `view(...)` for each kind.

    Args:
        value: a number; text; or a list of texts and dictionaries. `None`, 0 and empty ones stand for no views.

    Raises:
        ConfigError: for an unknown parameter, a value out of range, or too many views.
    """
    value = convert.plain(value)
    if value is None or value in ("", 0, "0", (), []):
        return ()
    if isinstance(value, list | tuple) and len(value) == 1 and str(value[0]).isdigit():
        value = value[0]
    if isinstance(value, int | float) or (isinstance(value, str) and value.strip().isdigit()):
        return (str(_count(value, value)),)
    parts = [value] if isinstance(value, str | Mapping) else value
    if not isinstance(parts, Sequence):
        raise _refuse(value, f"it must be a number or a list, such as {_EXAMPLE}")
    views: list[View] = []
    for part in parts:
        if isinstance(part, Mapping):
            views.append(_checked(part))
        elif isinstance(part, str):
            views += map(_checked, _parse(part))
        else:
            raise _refuse(value, f"it must be a number or a list, such as {_EXAMPLE}")
    if sum(view.count for view in views) > MAX_VIEWS:
        raise _refuse(value, f"they are {sum(view.count for view in views)} views, and {MAX_VIEWS} is the most")
    return tuple(view.text() for view in views)


def groups(config: Config) -> tuple[Group, ...]:
    """Return what a configuration delivers of each image: an array `x`; or `view0`, `view1`, ... for a list."""
    if not config.views:
        return (Group("x", None, config.image_size, config.augment),)
    if config.views[0].isdigit():
        return (Group("x", int(config.views[0]), config.image_size, config.augment),)
    made: list[Group] = []
    first = 0
    for number, view in enumerate(_checked(given) for text in config.views for given in _parse(text)):
        texts = config.augment if view.augment is None else view.augment
        made.append(Group(f"view{number}", view.count, view.size or config.image_size, _cropped(texts, view), first))
        first += view.count
    return tuple(made)


def all_augmentations(config: Config) -> set[str]:
    """Return the names of the augmentations of all views."""
    return {name for group in groups(config) for name in augment.parameters(group.augment)}


def _cropped(texts: tuple[str, ...], view: View) -> tuple[str, ...]:
    """Return the augmentations with the view's own `random_resized_crop`."""
    if view.scale is None and view.ratio is None:
        return texts
    crop = dict(augment.parameters(texts).get(_CROP, {}))
    crop |= {name: value for name, value in (("scale", view.scale), ("ratio", view.ratio)) if value is not None}
    written = f"{_CROP}({', '.join(f'{name}={value!r}' for name, value in crop.items())})"
    return augment.canonical([written, *(text for text in texts if not text.startswith(_CROP))])


def _refuse(value: object, why: str) -> ConfigError:
    return ConfigError(f"cannot use views={value!r}: {why}")


def _count(value: Any, whole: object) -> int:
    try:
        count = convert.whole_number(value)
    except (TypeError, ValueError, OverflowError):
        count = 0
    if not 1 <= count <= MAX_VIEWS:
        raise _refuse(whole, f"the count must be a whole number from 1 to {MAX_VIEWS}")
    return count


def _checked(given: Mapping[Any, Any]) -> View:
    """Return the view that `given` describes."""
    known = [each.name for each in dataclasses.fields(View)]
    shown = dict(given)
    for name in given:
        if name not in known:
            raise _refuse(shown, f"a view has no {name!r}; it has {', '.join(known)}")
    crop = {name: given[name] for name in ("scale", "ratio") if given.get(name) is not None}
    if crop:  # checked as those of an augmentation are
        written = f"{_CROP}({', '.join(f'{name}={_pair(value)!r}' for name, value in crop.items())})"
        crop = {name: augment.parameters(augment.canonical(written))[_CROP][name] for name in crop}
    size, texts = given.get("size"), given.get("augment")
    return View(
        _count(given.get("count", 1), shown),
        None if size is None else convert.image_size(size),
        augment=None if texts is None else augment.canonical(texts),
        **crop,
    )


def _pair(value: Any) -> Any:
    value = convert.plain(value)
    return tuple(value) if isinstance(value, list) else value


def _parse(text: str) -> list[dict[str, Any]]:
    """Return the parameters of each `view(...)` in `text`."""
    try:
        tree = ast.parse(f"[{' '.join(text.split())}]", mode="eval").body
        calls = tree.elts if isinstance(tree, ast.List) else [tree]
        found = []
        for node in calls:
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id != "view":
                raise ValueError
            if node.args or any(keyword.arg is None for keyword in node.keywords):
                raise ValueError
            found.append({str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords})
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        example = "view(size=224, count=2, scale=(0.4, 1)), view(size=96, count=6)"
        raise _refuse(text, f"it cannot be read; write a number, or such as {example!r}") from None
    return found
