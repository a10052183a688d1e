"""Buckets: batches of several shapes, by the aspect of images or the length of sequences. Pure.

`image_size` with several sizes becomes the largest of them, and all are `bucket_sizes`, in the order given; bucket
numbers count them from 0. `length_buckets` are kept in rising order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prefetchd.config import convert
from prefetchd.config.fields import parse_fields
from prefetchd.config.options import OPTIONS
from prefetchd.errors import ConfigError

if TYPE_CHECKING:
    from prefetchd.config.options import Config

MAX_BUCKETS = 64
_MOST_TOKENS = 1 << 40
Size = tuple[int, int]


def bucket_sizes(value: object) -> tuple[Size, ...]:
    """Return sizes (height, width) for `"224x224,192x256"`, or a list of sizes as `image_size` takes them; none for ().

    Raises:
        ConfigError: for a size that is none, too many, or two of the same aspect, which no image could choose between.
    """
    value = convert.plain(value)
    if value is None or value == "":
        return ()
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(parts, Sequence) or isinstance(parts, bytes):
        raise convert.wrong("bucket_sizes", value, "a list of sizes, such as 224x224,192x256")
    sizes = tuple(map(convert.image_size, parts))
    if len(sizes) == 1 or len(sizes) > MAX_BUCKETS:
        raise convert.wrong("bucket_sizes", value, f"2 to {MAX_BUCKETS} sizes, one for each aspect")
    for number, (height, width) in enumerate(sizes):
        for other_h, other_w in sizes[:number]:
            if height * other_w == other_h * width:
                raise ConfigError(
                    f"cannot put images into buckets of {other_h}x{other_w} and {height}x{width}: they have the same "
                    "aspect, which decides; give each aspect once"
                )
    return sizes


def length_buckets(value: object) -> tuple[int, ...]:
    """Return lengths in tokens for `"128,256,512"` or a list of them, in rising order; none for ().

    Raises:
        ConfigError: for what is no length, too many of them, or one given twice.
    """
    value = convert.plain(value)
    if value is None or value == "":
        return ()
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, Sequence) else [value]
    try:
        lengths = tuple(sorted(map(convert.whole_number, parts)))
    except (TypeError, ValueError, OverflowError):
        lengths = (0,)
    is_good = len(lengths) <= MAX_BUCKETS and len(set(lengths)) == len(lengths)
    if lengths and not (is_good and lengths[0] >= 1 and lengths[-1] <= _MOST_TOKENS):
        raise convert.wrong("length_buckets", value, f"up to {MAX_BUCKETS} different lengths, such as 128,256,512")
    return lengths


def largest(sizes: Sequence[Size]) -> Size:
    """Return the size of the largest area, the first of several."""
    return max(sizes, key=lambda size: size[0] * size[1])


def with_buckets(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return `options` where `image_size` is one size, the largest of several, which are `bucket_sizes`."""
    given = dict(options)
    size = convert.plain(given.get("image_size"))
    if _is_several(size):
        if given.get("bucket_sizes"):
            raise ConfigError(
                "cannot use bucket_sizes together with several sizes as image_size, which say the same; give one"
            )
        given["bucket_sizes"] = bucket_sizes(size)
        given["image_size"] = largest(given["bucket_sizes"])
    elif size is not None:
        given.setdefault("bucket_sizes", ())  # or a file's list would hold beside a size that replaces it
    elif given.get("bucket_sizes"):
        given["bucket_sizes"] = bucket_sizes(given["bucket_sizes"])
        given["image_size"] = largest(given["bucket_sizes"])
    return given


def _is_several(size: Any) -> bool:
    """Return whether these are several sizes: not 224, "224x256", or the two numbers of one."""
    if isinstance(size, str):
        return "," in size
    if not isinstance(size, Sequence) or isinstance(size, bytes) or not size:
        return False
    return any(_is_size(convert.plain(part)) for part in size)


def _is_size(part: object) -> bool:
    return "x" in part.lower() if isinstance(part, str) else isinstance(part, Sequence)


_DRAWS = "a batch holds samples of one bucket, and they draw each row from all; leave one of them out"
_NOT_WITH_BUCKETS = {
    "weights": _DRAWS,
    "mix": _DRAWS,
    "shuffle_block": "samples of a bucket lie anywhere; use the full shuffle (shuffle=True), or leave the buckets out",
    "views": "views have sizes of their own; leave one of them out",
    "pack": "packed rows have one length; leave one of them out",
}


def check_buckets(config: Config) -> None:
    """Raise `ConfigError` unless the options go together with buckets, of which one kind is given."""
    name = "bucket_sizes" if config.bucket_sizes else "length_buckets"
    given = "several sizes (image_size)" if config.bucket_sizes else name
    for other, why in _NOT_WITH_BUCKETS.items():
        if getattr(config, other) != OPTIONS[other].default:
            raise ConfigError(f"cannot use {other} together with {given}: {why}")
    if config.bucket_sizes and config.length_buckets:
        raise ConfigError("cannot use length_buckets together with several sizes of images; leave one of them out")
    if config.bucket_sizes and config.image_size != largest(config.bucket_sizes):
        height, width = largest(config.bucket_sizes)
        raise ConfigError(
            f"cannot use image_size={config.image_size} with bucket_sizes whose largest is {height}x{width}; "
            "leave image_size out"
        )
    if config.bucket_sizes and config.target == "mask" and config.target_transform is not None:
        raise ConfigError(
            "cannot use target_transform with masks and several sizes: y would have the shape that it returns for one "
            "of them; leave it out, or give transform, which gets image and mask"
        )
    if config.bucket_sizes and config.fields:
        first = next((field for field in parse_fields(config.fields).values() if field.kind == "image"), None)
        if first is None or first.size:
            raise ConfigError(
                "cannot use several sizes (image_size) with these fields: the first image decides the bucket, and it "
                "has a size of its own; leave its size out"
            )
    if config.length_buckets and config.offsets is None:
        raise ConfigError(
            "cannot use length_buckets without offsets, which say where each sequence begins; give "
            "offsets='offsets.npy'"
        )
    if config.length_buckets and config.max_length not in (None, config.length_buckets[-1]):
        raise ConfigError(
            f"cannot use max_length={config.max_length} with length_buckets up to {config.length_buckets[-1]}, which "
            "longer sequences are cut to; leave max_length out"
        )
