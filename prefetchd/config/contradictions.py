"""Which options contradict each other, and which are allowed together and most likely a mistake. Pure."""

from __future__ import annotations

import math

from prefetchd.config import augment, fields, views
from prefetchd.config.augment_values import RANDOM
from prefetchd.config.convert import wrong
from prefetchd.config.options import OPTIONS, Config
from prefetchd.config.remote_options import check_remote
from prefetchd.errors import ConfigError


def check_together(config: Config) -> None:
    """Raise `ConfigError` for options that contradict each other."""
    for name in ("mean", "std"):
        numbers = getattr(config, name)
        if numbers is not None and len(numbers) not in (1, config.n_channels):
            raise wrong(name, numbers, f"one number or {config.n_channels}, one a channel of color={config.color!r}")
        if numbers is not None and not all(map(math.isfinite, numbers)):
            raise wrong(name, numbers, "finite; give numbers as in 0.485,0.456,0.406")
    if config.scale is not None and not math.isfinite(config.scale):
        raise wrong("scale", config.scale, "finite; give a number as in 1/255")
    if config.std is not None and 0 in config.std:
        raise wrong("std", config.std, "other than 0; give the deviation of the pixels, or leave it out")
    if config.dtype in ("uint8", "uint16") and any(x is not None for x in (config.scale, config.mean, config.std)):
        raise ConfigError(
            f"cannot scale {config.dtype} pixels: scale, mean and std give fractions; use dtype='float32' with them "
            "(or float16)"
        )
    if config.subset is not None and config.order is not None:
        raise ConfigError(
            "cannot use subset together with order, which names its samples itself; leave one of them out"
        )
    if config.shuffle_block is not None and (config.weights is not None or not config.shuffle):
        why = "an order that is not shuffled" if not config.shuffle else "weights, which draw each sample anew"
        raise ConfigError(f"cannot use shuffle_block with {why}; leave one of them out")
    if not config.replace and config.weights is None:
        raise ConfigError(
            "cannot use replace=False without weights: an epoch has each sample once; give weights, or leave it out"
        )
    if config.epoch_samples is not None and config.weights is None and not config.mix:
        raise ConfigError(
            "cannot use epoch_samples without weights or mix: an epoch has each sample once; give limit for fewer of "
            "them"
        )
    if config.mix or config.mix_temperature is not None or config.stop != "first":
        from prefetchd.config.mix import check_mix

        check_mix(config)
    if config.pack is not None:
        from prefetchd.config.packing import check_pack

        check_pack(config)
    check_remote(config)
    if config.bucket_file is not None and not config.bucket_sizes:
        raise ConfigError("cannot use bucket_file without several sizes (image_size); give them, or leave it out")
    if config.bucket_sizes or config.length_buckets:
        from prefetchd.config.buckets import check_buckets

        check_buckets(config)
    if config.encoded_bytes is not None:
        from prefetchd.config.encoded import refuse_beside_encoded

        refuse_beside_encoded({name: getattr(config, name) for name in OPTIONS})
    if config.fields:
        _check_fields(config)
    _check_objects(config)
    _check_channels(config)
    for group in views.groups(config):
        _check_augment(config, group.augment)
        _check_erased(config, group.augment)
    if config.views and config.target in ("boxes", "keypoints"):
        raise ConfigError(
            f"cannot use views with target={config.target!r}, which is placed as one image is; leave one of them out"
        )
    if config.views and config.target == "mask" and not config.views[0].isdigit():
        raise ConfigError(
            "cannot use a list of views with target='mask': y holds the masks of views of one size; give the number of "
            "views, such as views=2"
        )
    if config.target == "mask" and config.label_columns not in (None, 1):
        raise wrong("label_columns", config.label_columns, "1, or not given, with target='mask': one path a line")


# Options of a sample that is an image and a label, and what says the same of fields.
_OTHERWISE_WITH_FIELDS = {
    "target": "a field of another kind",
    "views": "two loaders, each with a seed of its own",
    "target_transform": "transform, which has the whole sample",
    "x_column": "the column of each field",
    "y_column": "the column of each field",
    "labels": "the column of each field",
    "label_columns": "the column of each field",
    "label_separator": "the column of each field",
    "missing_label": "a complete column",
    "offsets": "a field of kind array",
}


# Options that say something of fields of these kinds alone.
_OF_OBJECTS = frozenset(("boxes", "keypoints"))
_OF_IMAGES = (
    "image_size", "channels", "color", "dtype", "scale", "mean", "std", "layout", "resize", "interpolation",
    "shrink_on_load", "max_image_pixels", "augment", "bucket_sizes", "bucket_file",
)  # fmt: skip
_ONLY_WITH_KINDS = {
    **dict.fromkeys(("box_format", "source_box_format", "min_visible"), frozenset(("boxes",))),
    **dict.fromkeys(("max_boxes", "crowds"), _OF_OBJECTS),
    "mask_border": frozenset(("mask",)),
    **dict.fromkeys(_OF_IMAGES, frozenset(("image",))),
}


def _check_fields(config: Config) -> None:
    """Raise `ConfigError` for options that concern samples without fields."""
    for name, instead in _OTHERWISE_WITH_FIELDS.items():
        if getattr(config, name) != OPTIONS[name].default:
            raise ConfigError(f"cannot use {name} together with fields; give {instead}, or leave fields out")
    kinds = {field.kind for field in fields.parse_fields(config.fields).values()}
    for name, wanted in _ONLY_WITH_KINDS.items():
        if getattr(config, name) != OPTIONS[name].default and not kinds & wanted:
            raise ConfigError(
                f"cannot use {name} with these fields: none is of kind {' or '.join(sorted(wanted))}; leave it out"
            )
    if "mask" in kinds and "image" not in kinds:
        raise ConfigError(
            "cannot place a field of kind mask: masks are placed as the first image, and no field is of kind image; "
            "add one, or give the masks as a field of kind image with channels=1 and interpolation='nearest'"
        )
    for name, field in fields.parse_fields(config.fields).items():
        if field.kind == "image":
            try:
                check_together(fields.image_config(config, field))
            except ConfigError as error:
                raise ConfigError(f"cannot use the field {name}: {error}") from None


def _check_objects(config: Config) -> None:
    """Raise `ConfigError` for functions that would see an image without its boxes or keypoints, or these without it."""
    if config.target in ("boxes", "keypoints"):
        for name in ("transform", "target_transform"):
            if getattr(config, name) is not None:
                raise ConfigError(
                    f"cannot use {name} with target={config.target!r}: it does not see the image and its "
                    f"{config.target} together; use augment, or give fields, whose transform has the whole sample"
                )


def _check_channels(config: Config) -> None:
    """Raise `ConfigError` where `color` and `channels` contradict each other."""
    if config.color == "unchanged" and config.channels is None:
        raise ConfigError(
            "cannot use color='unchanged' without channels: all images of a batch have the same number of them; give "
            "channels=1, or as many as the files have"
        )
    possible = {"gray": (1,), "rgb": (3, 4), "bgr": (3, 4)}.get(config.color, (config.n_channels,))
    if config.n_channels not in possible:
        raise ConfigError(
            f"cannot use channels={config.channels} with color={config.color!r}, which has "
            f"{' or '.join(map(str, possible))}; leave color out to keep the channels that the files have"
        )


def _check_augment(config: Config, texts: tuple[str, ...]) -> None:
    """Raise `ConfigError` where an augmentation means nothing for the channels or the dtype of the images."""
    given = augment.parameters(texts)
    of_bytes = [name for name in given if name in augment.OF_BYTES]
    if of_bytes and (config.pixel_dtype != "uint8" or config.n_channels not in (1, 3)):
        raise ConfigError(
            f"cannot use the augmentation {of_bytes[0]} with {config.n_channels} channels of {config.pixel_dtype}: "
            "it is for grey and colours of 8 bits; leave it out, or do it in a transform"
        )
    jitter = given.get("color_jitter")
    if jitter and config.color == "unchanged" and config.n_channels not in (1, 3):
        named = [name for name, still in (("saturation", (1, 1)), ("hue", (0, 0))) if jitter[name] != still]
        if named:
            raise ConfigError(
                f"cannot use the {named[0]} of color_jitter with channels={config.channels}, which are no colours; "
                "give color_jitter(saturation=0, hue=0), or color='rgb' if they are red, green, blue and alpha"
            )


def _check_erased(config: Config, texts: tuple[str, ...]) -> None:
    """Raise `ConfigError` where what random_erasing writes is not for the channels or the dtype of the images."""
    value = augment.parameters(texts).get("random_erasing", {}).get("value", RANDOM)
    if value == RANDOM:
        return
    shown = f"random_erasing(value={value[0] if len(value) == 1 else value})"
    if len(value) not in (1, config.n_channels):
        raise wrong(
            "augment", shown, f"given one number or {config.n_channels}, one a channel of color={config.color!r}"
        )
    most = {"uint8": 255, "uint16": 65535}.get(config.dtype)
    if most is not None and not all(number in range(most + 1) for number in value):
        wanted = f"given whole numbers from 0 to {most} where dtype={config.dtype!r}: they are written as they are"
        raise wrong("augment", shown, wanted)


_ABOUT_1 = 1.01  # scale=1/255 and 1/256 alike, and what is rounded


def doubts(config: Config) -> str:
    """Return a warning about options that are allowed and most likely a mistake; empty if there are none."""
    mean, std = config.mean or (), config.std or ()
    if config.pixel_dtype == "float32":
        return ""  # what the numbers of files mean is not known
    given = " and ".join(f"{name}={numbers}" for name, numbers in (("mean", mean), ("std", std)) if numbers)
    is_large = any(abs(number) > 1 for number in (*mean, *std))
    if config.scale is not None:
        if not is_large or not 0 < 255 * config.scale <= _ABOUT_1:
            return ""
        return (
            f"{given}: these are for pixels from 0 to 255, and scale={config.scale:.4g} makes pixels 0 to "
            f"{255 * config.scale:.3g}; leave scale out, or divide them by 255"
        )
    changes = any(mean) or any(number != 1 for number in std)
    if not changes or is_large:
        return ""
    return f"{given}: these are for pixels from 0 to 1, and without scale pixels are 0 to 255; pass scale=1/255"
