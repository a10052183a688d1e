"""Which pipelines can be cached, what a kept image is, and its key. Pure; called as a data set is opened.

The kept image is the sample after all steps that are the same in every epoch: decoded, upright, in the order of
`color`, in the type of placed pixels (uint8, or what 16 bits and float32 are kept in), and

- resized to `image_size` as `resize` says; or, with `cache_image_size`,
- fitted into that size at its own aspect, never enlarged. All later steps go on from it as if it were the file.

So `cache_image_size` decides pixels, with a cache or without; a cache alone changes none. So does
`cache_format="jpeg"`, with its quality: the fitted image is encoded and decoded before all later steps.

A row is the kept image of one state of one file, or of one record in it. The pipeline, with the decoder's version,
names a folder. Within it the key is a digest of path, inode, size and both times of change. Programs cannot set the
change time, so a file that was replaced with its modification time preserved has another key. The device's number is
left out: it changes when the machine restarts, and all would be decoded again. Of an object it is a digest of its URL,
store (`disk_name`), ETag and size.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from typing import Any, cast

from prefetchd.config.options import OPTIONS, Config
from prefetchd.config.units import parse_bytes
from prefetchd.config.views import all_augmentations, groups
from prefetchd.data.files import CLOCK_STEP_NS
from prefetchd.errors import ConfigError

FORMAT = 2  # of the files, and of what a kept image is
KEY_BYTES = 16
DEFAULT_QUALITY = cast(int, OPTIONS["cache_quality"].default)

_IDENTITY = struct.Struct("=Q3q")


def pipeline_of(config: Config, decoder: str) -> dict[str, Any]:
    """Return all that decides a kept image besides the file, as plain JSON values."""
    names = ["color", "interpolation", "shrink_on_load", "max_image_pixels", "x_column"]
    names += ["image_size", "resize"] if config.cache_image_size is None else ["cache_image_size"]
    pipeline = {"format": FORMAT, "decoder": decoder, **{name: getattr(config, name) for name in names}}
    if config.is_exact or config.pixel_dtype != "uint8":  # without, the folders of earlier versions are found
        pipeline |= {"channels": config.n_channels, "pixel_dtype": config.pixel_dtype}
    if config.bucket_sizes and config.cache_image_size is None:
        pipeline |= {"bucket_sizes": [list(size) for size in config.bucket_sizes]}
    if config.cache_format != "raw":
        pipeline |= {"cache_format": config.cache_format, "cache_quality": config.cache_quality}
    return pipeline


def row_channels(config: Config) -> int:
    """Return what the channels of a row are to a reader of the cache: 0 where rows are encoded."""
    return config.n_channels if config.cache_format == "raw" else 0


def pipeline_digest(pipeline: dict[str, Any]) -> str:
    """Return 16 hexadecimal digits that follow `pipeline`."""
    return hashlib.blake2b(json.dumps(pipeline, sort_keys=True).encode(), digest_size=8).hexdigest()


def limit_of(config: Config) -> int | None:
    """Return the size limit of a cache in bytes; `None` for all but a twentieth of the disk."""
    return None if config.cache_size == "auto" else parse_bytes(config.cache_size)


def key_of(path: str, place: tuple[int, ...], found: os.stat_result) -> bytes:
    """Return the key of the record at `place` (empty for a whole file) in the file at `path`, as `stat` found it."""
    identity = _IDENTITY.pack(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    where = struct.pack(f"={len(place)}q", *place) if place else b""
    return hashlib.blake2b(identity + where + os.fsencode(path), digest_size=KEY_BYTES).digest()


def key_of_object(name: str, place: tuple[int, ...], state: bytes) -> bytes:
    """Return the key of the record at `place` (empty for a whole object) in an object by its `disk_name`, and state."""
    where = struct.pack(f"={len(place)}q", *place)
    what = b"object" + struct.pack("=q", len(state)) + state + where + name.encode("utf-8", "surrogateescape")
    return hashlib.blake2b(what, digest_size=KEY_BYTES).digest()


def is_settled(found: os.stat_result, now_ns: int) -> bool:
    """Return whether a write after `found` would certainly have changed its times.

    Only the change time decides, which every write sets: archives may have kept a modification time in the future.
    """
    return now_ns - found.st_ctime_ns > CLOCK_STEP_NS


# Augmentations that need another part of the file, at another scale, in each epoch.
_GEOMETRY = ("random_resized_crop", "rotate", "affine", "rand_augment", "trivial_augment_wide")


def check_cache(config: Config) -> None:
    """Raise `ConfigError` where the options of the cache contradict the others, naming what to set."""
    if config.cache is None and config.cache_size != "auto":
        raise ConfigError('cannot use cache_size without a cache; give cache="DIR", or leave it out')
    _check_format(config)
    if config.target != "label":
        what = "masks" if config.target == "mask" else config.target
        for name in ("cache", "cache_image_size"):
            if getattr(config, name) is not None:
                raise ConfigError(
                    f'cannot use {name} with target="{config.target}": {what} are placed anew with their images in '
                    "each epoch, and are not kept; leave it out"
                )
    drawn = [name for name in _GEOMETRY if name in all_augmentations(config)]
    if config.cache is not None and drawn and config.cache_image_size is None:
        larger = tuple(map(_larger, config.image_size))
        raise ConfigError(
            f"cannot cache with augment={drawn[0]!r}, which takes another part of the file in each epoch; give "
            f"the size at which images are kept, such as cache_image_size={larger}"
        )
    others = [group for group in groups(config) if group.size != config.image_size]
    if config.cache is not None and others and config.cache_image_size is None:
        raise ConfigError(
            f"cannot cache with views of other sizes than image_size={config.image_size}, such as {others[0].size}; "
            "give the size at which images are kept, as cache_image_size"
        )


def _check_format(config: Config) -> None:
    """Raise `ConfigError` where `cache_format` or `cache_quality` contradicts the other options."""
    if config.cache_format == "raw":
        if config.cache_quality != DEFAULT_QUALITY:
            raise ConfigError(
                'cannot use cache_quality with cache_format="raw"; give cache_format="jpeg", or leave it out'
            )
        return
    start = 'cannot use cache_format="jpeg"'
    if config.cache_image_size is None:
        larger = tuple(map(_larger, config.image_size))
        raise ConfigError(f"{start} without the size at which images are kept; give cache_image_size={larger}, say")
    if config.is_exact:
        raise ConfigError(f'{start} with the exact channels of files, which JPEG changes; give color="rgb", or raw')
    if config.pixel_dtype != "uint8":
        raise ConfigError(f'{start} with dtype="{config.dtype}": JPEG has 8 bits; give dtype="uint8" or "float32"')


def _larger(side: int) -> int:
    """Return a size that leaves crops some pixels: half as much again, in steps of 32."""
    return -(-side * 3 // 64) * 32
