"""Which options concern which kind of source: one that means nothing for a source is refused, never ignored.

Called when a source is opened. Whether an option was given is told by its value: one that is the default changes
nothing.
"""

from __future__ import annotations

from prefetchd.config.options import OPTIONS, Config
from prefetchd.errors import ConfigError, one_line

IMAGE_OPTIONS = (
    "image_size", "color", "dtype", "scale", "mean", "std", "layout", "resize", "interpolation", "shrink_on_load",
    "max_image_pixels", "augment", "transform", "target_transform", "target", "mask_border",
    "cache", "cache_size", "cache_image_size",
)  # fmt: skip
MASK_OPTIONS = ("target", "mask_border")
LIST_OPTIONS = ("root", "label_columns")
COLUMN_OPTIONS = ("x_column", "y_column")
ARRAY_OPTIONS = ("labels",)
SEQUENCE_OPTIONS = ("offsets", "max_length", "padding", "truncating", "pad_value", "lengths")


class InapplicableOption(ConfigError):
    """An option that means nothing for a source; `datasets` makes a plain `ConfigError` of it.

    Attributes:
        option: its name.
        why: the message, but for what to do about it.
    """

    def __init__(self, option: str, why: str) -> None:
        super().__init__(f"{why}; leave it out")
        self.option = option
        self.why = why


def refuse_given(config: Config, names: tuple[str, ...], concern: str) -> None:
    """Raise `InapplicableOption` if one of the options `names` was given; `concern` says what they are for."""
    for name in names:
        if getattr(config, name) != OPTIONS[name].default:
            flag = name.replace("_", "-")
            raise InapplicableOption(
                name, f"cannot use {flag} with {one_line(config.source)}: it concerns {concern} only"
            )
