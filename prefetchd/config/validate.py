"""From the options that a user gave to one validated `Config`, and whether two sets of options agree. Pure.

`make_config` converts each option (`convert`), checks its range (`options`) and refuses options that contradict each
other. The command line, `prefetchd.batches`, the daemon and its readers all call it, so each checks what it was sent.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prefetchd.config import augment, convert, fields, selection, views
from prefetchd.config.augment_values import RANDOM
from prefetchd.config.convert import wrong
from prefetchd.config.options import OPTION_TYPES, OPTIONS, Config
from prefetchd.config.order_options import BLOCKS, USUAL_BLOCK
from prefetchd.errors import ConfigError


def _mix(value: object) -> tuple[str, ...]:
    from prefetchd.config.mix import canonical_mix  # few need it

    return canonical_mix(value)


# Options without a converter of their own are converted by their type.
_CONVERTERS: dict[str, Callable[[object], Any]] = {
    "num_workers": convert.num_workers,
    "source": convert.path,
    "root": convert.path,
    "labels": convert.path,
    "offsets": convert.path,
    "index": convert.path,
    "subset": convert.path,
    "order": convert.path,
    "weights": selection.canonical_weights,
    "where": selection.canonical_where,
    "split": selection.canonical_split,
    "mix": _mix,
    "image_size": convert.image_size,
    "dtype": lambda value: convert.coerce("dtype", convert.dtype_name(value), OPTION_TYPES["dtype"]),
    "cache": convert.path,
    "cache_size": convert.size_limit("cache_size"),
    "keep": convert.path,
    "keep_size": convert.size_limit("keep_size"),
    "cache_image_size": convert.cache_image_size,
    "scale": convert.scale,
    "mean": convert.channel_numbers("mean"),
    "std": convert.channel_numbers("std"),
    "augment": augment.canonical,
    "views": views.canonical,
    "fields": fields.canonical,
    "transform": convert.function("transform"),
    "target_transform": convert.function("target_transform"),
    "python_path": convert.folders,
    "missing_label": convert.columns,
    "x_column": convert.columns,
    "y_column": convert.columns,
    "name": convert.daemon_name,
}


def make_config(**options: Any) -> Config:
    """Return the validated configuration of `options`; values may be text as on a command line.

    Raises:
        ConfigError: for an unknown name, a value of the wrong kind or out of range, or a contradiction.
    """
    checked = check_options(options)
    if checked.get("mix"):
        from prefetchd.config.mix import name_source

        name_source(checked)
    if "source" not in checked:
        raise ConfigError("cannot serve: no manifest was given; name a list file or a directory of class folders")
    if checked.get("shuffle_block") is not None:
        checked.setdefault("shuffle", True)
    if checked.get("channels") is not None:
        checked.setdefault("color", "unchanged")
    config = Config(**checked)
    _check_together(config)
    return config


def check_options(options: Mapping[str, Any], *, others: Iterable[str] = ()) -> dict[str, Any]:
    """Return `options`, each as its one checked value. Contradictions between them are not looked for.

    Args:
        options: what a user gave, by name.
        others: more names that the user may have meant by an unknown one.

    Raises:
        ConfigError: for an unknown name, or a value of the wrong kind or out of range.
    """
    checked: dict[str, Any] = {}
    if isinstance(options.get("shuffle"), str) and options["shuffle"] == BLOCKS:
        options = {"shuffle_block": USUAL_BLOCK, **options, "shuffle": True}
    for name, value in options.items():
        if name not in OPTIONS:
            raise ConfigError(_explain_unknown(name, (*OPTIONS, *others)))
        converter = _CONVERTERS.get(name)
        checked[name] = converter(value) if converter else convert.coerce(name, value, OPTION_TYPES[name])
        _check_limits(name, checked[name])
    return checked


def check_agrees(config: Config, options: Mapping[str, Any]) -> None:
    """Raise `ConfigError` where one of `options`, as a consumer sent them, contradicts `config`."""
    for name, wanted in check_options(options).items():
        served = getattr(config, name)
        if _comparable(name, served) != _comparable(name, wanted):
            raise ConfigError(
                f"cannot attach with {name}={wanted!r}: the daemon {config.name!r} serves {name}={served!r}, "
                "and its configuration decides; leave the option out, or start a daemon with it"
            )


def _comparable(name: str, value: Any) -> Any:
    if name != "mix":
        return convert.comparable(name, value)
    from prefetchd.config.mix import absolute_mix

    return absolute_mix(value)


def _check_limits(name: str, value: Any) -> None:
    limits = OPTIONS[name].metadata["limits"]
    if limits is None or value is None or limits[0] <= value <= limits[1]:
        return
    low, high = limits
    wanted = f"from {low} to {high}" if high != math.inf else f"{low} or more"
    raise wrong(name, value, f"{wanted}; {'raise' if value < low else 'lower'} it")


def _check_together(config: Config) -> None:
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
            f"cannot scale {config.dtype} pixels: scale, mean and std give fractions; use dtype='float32' or 'float16' "
            "with them"
        )
    if config.subset is not None and config.order is not None:
        raise ConfigError(
            "cannot use subset together with order, which names its samples itself; leave one of them out"
        )
    if config.shuffle_block is not None and (config.weights is not None or not config.shuffle):
        why = "an order that is not shuffled" if not config.shuffle else "weights, which draw each sample anew"
        raise ConfigError(f"cannot use shuffle_block with {why}; leave one of them out")
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
    "shrink_on_load", "max_image_pixels", "augment",
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
                _check_together(fields.image_config(config, field))
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


def doubts(config: Config) -> str:
    """Return a warning about options that are allowed and most likely a mistake; empty if there are none."""
    mean, std = config.mean or (), config.std or ()
    if config.pixel_dtype == "float32":
        return ""  # what the numbers of files mean is not known
    changes = any(mean) or any(number != 1 for number in std)
    if config.scale is not None or not changes or any(abs(number) > 1 for number in (*mean, *std)):
        return ""
    given = " and ".join(f"{name}={numbers}" for name, numbers in (("mean", mean), ("std", std)) if numbers)
    return f"{given}: these are for pixels from 0 to 1, and without scale pixels are 0 to 255; pass scale=1/255"


# What to write in place of an option that does not exist.
_TORCH = "prefetchd.torch.batches(device='cuda'), whose slots are page-locked"
_SAMPLER = "subset=, order= or weights=, for which samples and in which order"
_SPLITS = "split=: '0-90%' for training and '90-100%' for validation"
_SIZES = "image_size="
_LABELS = "the labels of the manifest, or the class folders"

# Names of other loaders, and what does their job here. A test holds them to docs/coming-from.md.
ELSEWHERE = {
    # PyTorch's DataLoader
    "dataset": "a source: a list of (path, label) pairs, a table, a manifest, a directory, shards or arrays",
    "sampler": _SAMPLER,
    "batch_sampler": _SAMPLER,
    "collate_fn": "image_size= or max_length=, which give all samples one shape",
    "pin_memory": _TORCH,
    "worker_init_fn": "seed=: randomness depends on the seed, the epoch and the sample",
    "generator": "seed=: randomness depends on the seed, the epoch and the sample",
    "prefetch_factor": "memory_budget=, from which it follows how far ahead is decoded",
    "persistent_workers": "nothing: readers always persist",
    "multiprocessing_context": "nothing: your process is never forked",
    "num_replicas": "world_size=",
    # tf.data
    "num_parallel_calls": "num_workers=",
    "buffer_size": "shuffle=True, which shuffles the whole set without a buffer",
    "drop_remainder": "drop_last=",
    "repeat": "epochs=",
    "prefetch": "memory_budget=, from which it follows how far ahead is decoded",
    # Keras
    "workers": "num_workers=",
    "use_multiprocessing": "num_workers=",
    "max_queue_size": "memory_budget=, from which it follows how far ahead is decoded",
    "validation_split": _SPLITS,
    "target_size": _SIZES,
    "class_mode": _LABELS,
    "label_mode": _LABELS,
    "color_mode": "color=",
    "size": _SIZES,
    "height": _SIZES,
    "width": _SIZES,
    "rescale": "scale=1 / 255 and dtype='float32'",
    "horizontal_flip": "augment='hflip'",
    "rotation_range": "augment='rotate(degrees=10)'",
    "zoom_range": "augment='affine(scale=(0.9, 1.1))'",
    "preprocessing_function": "transform=",
    "maxlen": "max_length=",
    # FFCV, DALI, Grain
    "os_cache": "the page cache, and cache= for decoded pixels",
    "batches_ahead": "memory_budget=, from which it follows how far ahead is decoded",
    "file_root": "a source: a manifest, a directory, shards or arrays",
    "file_list": "a source: a manifest, a directory, shards or arrays",
    "shard_id": "rank=",
    "num_shards": "world_size=",
    "prefetch_queue_depth": "memory_budget=, from which it follows how far ahead is decoded",
    "num_records": "the whole source: every record of it is served",
    "worker_count": "num_workers=",
    "worker_buffer_size": "memory_budget=, from which it follows how far ahead is decoded",
}


def _explain_unknown(name: str, known: Iterable[str]) -> str:
    """Return the message for an option that does not exist, where the options are `known`."""
    if name in ELSEWHERE:
        return f"cannot use the option {name!r}: it is another loader's; here use {ELSEWHERE[name]}"
    near = difflib.get_close_matches(name.lower(), known, 1)
    hint = f"did you mean {near[0]!r}?" if near else "see help(prefetchd.batches)"
    return f"cannot use the option {name!r}: there is no such option; {hint}"
