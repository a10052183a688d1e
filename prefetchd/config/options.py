"""One validated, frozen configuration, whatever it came from (command line, TOML file, Python keywords).

`Config` holds the options that decide what is served and how; each field carries its own help text, from which the
command line is made. Options that change the bytes of a batch are *content* options and enter `Config.content()`, from
which the configuration's digest is made; the others (`num_workers`, `memory_budget`, ...) never change what a consumer
sees. Pure.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from prefetchd.config import augment as augment_spec
from prefetchd.config import convert as values
from prefetchd.config.validate import check_config
from prefetchd.errors import ConfigError

Color = Literal["rgb", "bgr", "gray"]
Dtype = Literal["uint8", "float32", "float16"]
Layout = Literal["nhwc", "nchw"]
Resize = Literal["stretch", "crop", "pad"]
Interpolation = Literal["nearest", "linear", "cubic", "area", "lanczos"]
OnError = Literal["raise", "skip", "substitute"]
End = Literal["pre", "post"]
Lengths = Literal["none", "x", "y"]
Target = Literal["label", "mask"]


def _option(default: Any, help: str, *, metavar: str | None = None, content: bool = True) -> Any:
    """A field that is an option.

    Args:
        default: its value where it is not given.
        help: what it does, in a line or two, for `--help` and for readers of this file.
        metavar: the placeholder of its value in `--help`; choices and switches have none.
        content: whether it decides the bytes of a batch; the others decide how fast, in what memory or under what
            name the same bytes are served.
    """
    return dataclasses.field(default=default, metadata={"help": help, "metavar": metavar, "content": content})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The options of one data set and its daemon. Every field is an option of the same name in Python and TOML.

    On the command line `batch_size` is `--batch-size`. `image_size` is (height, width) in pixels, whatever it was
    given as.
    """

    source: str = dataclasses.field(metadata={"content": False})

    batch_size: int = _option(32, "samples in a batch (32)", metavar="N")
    image_size: tuple[int, int] = _option((224, 224), "size of the delivered images (224)", metavar="PX|HxW")
    color: Color = _option("rgb", "channel order; gray has one channel (rgb)")
    dtype: Dtype = _option("uint8", "type of the delivered pixels (uint8)")
    scale: float | None = _option(
        None, "(pixel * scale - mean) / std, pixels being 0 to 255; such as 1/255", metavar="X"
    )
    mean: tuple[float, ...] | None = _option(
        None, "see --scale; one number, or one a channel; --mean=-1,0,1 if negative", metavar="X[,X,X]"
    )
    std: tuple[float, ...] | None = _option(
        None, "see --scale; one number, or one a channel, in the order of --color", metavar="X[,X,X]"
    )
    layout: Layout = _option("nhwc", "order of the dimensions (nhwc)")
    resize: Resize = _option("stretch", "stretch (default), crop the centre at the aspect, or pad with black")
    interpolation: Interpolation = _option("linear", "how pixels are interpolated (linear)")
    shrink_on_load: bool = _option(
        True, "decode large JPEGs at 1/2, 1/4 or 1/8 (yes); --no-shrink-on-load is pixel-exact"
    )
    augment: tuple[str, ...] = _option(
        (),
        "random_resized_crop, hflip, vflip, rotate, affine, color_jitter; parameters as in 'rotate(degrees=10), hflip'",
        metavar="NAMES",
    )
    transform: str | None = _option(
        None, "function (image, rng) -> image, or Albumentations pipeline, run in the readers", metavar="MODULE:NAME"
    )
    target_transform: str | None = _option(
        None, "function (label, rng) -> label, run in the readers", metavar="MODULE:NAME"
    )
    target: Target = _option("label", "what labels are: numbers and classes, or paths of mask images (label)")
    mask_border: int = _option(0, "what a mask holds where pad, rotate or affine leave it empty (0)", metavar="N")
    shuffle: bool = _option(False, "a new order each epoch (no)")
    seed: int = _option(0, "decides the shuffled orders and the augmentation (0)", metavar="N")
    drop_last: bool = _option(False, "leave out a shorter last batch (no)")
    on_error: OnError = _option(
        "raise", "bad samples: raise (default), skip (shorter batch) or substitute (the next good one)"
    )
    max_image_pixels: int = _option(250_000_000, "larger images are bad samples (250 million)", metavar="N")
    root: str | None = _option(
        None, "folder that relative paths start from (the manifest's)", metavar="DIR", content=False
    )
    label_columns: int | None = _option(
        None, "how many trailing fields of a text line are labels (found out); 0 for no labels", metavar="N"
    )
    label_separator: str | None = _option(
        None, "what separates several labels in one field: y is a 0/1 vector; '' takes fields whole", metavar="TEXT"
    )
    missing_label: str | None = _option(
        None, "label of samples whose label is empty or not a number (refused)", metavar="LABEL"
    )
    x_column: str | None = _option(
        None,
        "the path's column (name, or number from 0), key (JSONL), the image's extension (tar), or x's name (.npz)",
        metavar="COLUMN",
    )
    y_column: str | None = _option(
        None,
        "the labels' columns or keys; in tar shards cls, txt or json:KEY; y's name in an .npz",
        metavar="COLUMN[,...]",
    )
    labels: str | None = _option(
        None,
        "arrays: .npy file of y, a row for each of x, or a directory of such shards",
        metavar="Y.npy",
        content=False,
    )
    offsets: str | None = _option(
        None,
        "ragged sequences: .npy file of n + 1 positions; sequence i is MANIFEST[offsets[i]:offsets[i + 1]]",
        metavar="OFFSETS.npy",
        content=False,
    )
    max_length: int | None = _option(
        None, "sequences: length that they are padded or truncated to (the longest one's)", metavar="N"
    )
    padding: End = _option("pre", "sequences: the end at which a shorter one is padded (pre)")
    truncating: End = _option("pre", "sequences: the end at which a longer one is cut (pre)")
    pad_value: float = _option(0.0, "sequences: what is padded with (0)", metavar="X")
    lengths: Lengths = _option(
        "none", "sequences: put each one's length in x as its first column, or in y as its last (none)"
    )

    python_path: tuple[str, ...] = _option(
        (),
        "folders to find the modules of transforms in (the working directory)",
        metavar=f"DIR[{os.pathsep}DIR]",
        content=False,
    )
    num_workers: int = _option(
        0,
        "reader processes; auto, or 0, begins with the usable cores (half of them for arrays) and follows the loops",
        metavar="N",
        content=False,
    )
    memory_budget: str = _option(
        "auto", "most memory for daemon, readers and ring together (auto)", metavar="SIZE", content=False
    )
    reader_timeout: float = _option(
        60.0, "seconds without progress after which a reader is replaced (60)", metavar="S", content=False
    )
    patience: float = _option(
        10.0,
        "seconds in all that loops wait for a slower one in an epoch, so that it finds their batches (10); 0 or inf",
        metavar="S",
        content=False,
    )
    consumers: int = _option(
        1,
        "loops at different batches, such as ranks, that an automatic budget has slots for (1)",
        metavar="N",
        content=False,
    )
    cache: str | None = _option(
        None,
        "folder that decoded images are kept in, for later epochs, runs and trainers (none)",
        metavar="DIR",
        content=False,
    )
    cache_size: str = _option(
        "auto",
        "most bytes of the whole cache, such as 50GiB (all but 5% of its disk)",
        metavar="SIZE",
        content=False,
    )
    cache_image_size: tuple[int, int] | None = _option(
        None,
        "fit images into this size first, cached or not; what a cache keeps under random crops and turns (none)",
        metavar="PX|HxW",
    )
    name: str = _option("default", "name that consumers attach to (default, or PREFETCHD_NAME)", content=False)

    @property
    def channels(self) -> int:
        """Channels of a delivered image: 3, or 1 for `gray`."""
        return 1 if self.color == "gray" else 3

    def content(self) -> dict[str, Any]:
        """The options that decide the bytes of a batch, by name, as plain JSON values."""
        return {field.name: getattr(self, field.name) for field in OPTIONS.values() if field.metadata["content"]}

    def digest(self, **also: str) -> str:
        """A short hexadecimal digest of the content options and of `also` (decoder versions and the like)."""
        text = json.dumps({**self.content(), **also}, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def check_agrees(self, options: Mapping[str, Any]) -> None:
        """Raise `ConfigError` where one of `options`, as a consumer sent them, contradicts this configuration."""
        for name, wanted in check_options(options).items():
            mine = getattr(self, name)
            if values.comparable(name, mine) != values.comparable(name, wanted):
                raise ConfigError(
                    f"cannot attach with {name}={wanted!r}: the daemon {self.name!r} serves {name}={mine!r}, "
                    "and its configuration decides; leave the option out, or start a daemon with it"
                )

    def to_wire(self) -> dict[str, Any]:
        """Every option as plain JSON values; `make_config(**wire)` is the inverse."""
        return wire_options(dataclasses.asdict(self))


OPTIONS = {field.name: field for field in dataclasses.fields(Config)}
OPTION_TYPES: dict[str, Any] = typing.get_type_hints(Config)
PATH_OPTIONS = ("source", "root", "labels", "offsets", "cache")
LIVE_OPTIONS = ("memory_budget", "num_workers")  # what `prefetchd set` changes
# Where one daemon serves several data sets, these are the daemon's own, and the same for all of them.
DAEMON_OPTIONS = ("num_workers", "memory_budget", "reader_timeout", "patience", "consumers", "name")


def make_config(**options: Any) -> Config:
    """Return the validated configuration that `options` name; values may be strings as from a command line.

    Raises:
        ConfigError: for an unknown name, a value of the wrong kind or out of range, or a contradiction.
    """
    checked = check_options(options)
    if "source" not in checked:
        raise ConfigError("cannot serve: no manifest was given; name a list file or a directory of class folders")
    config = Config(**checked)
    check_config(config)
    return config


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return `options`, each as its one checked value, without looking at how they go together.

    Raises:
        ConfigError: for an unknown name or a value of the wrong kind.
    """
    checked: dict[str, Any] = {}
    for name, value in options.items():
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, OPTIONS, 1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"cannot use the option {name!r}: there is no such option{meant}")
        convert = _CONVERTERS.get(name)
        checked[name] = convert(value) if convert else values.coerce(name, value, OPTION_TYPES[name])
    return checked


def wire_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return checked options as plain JSON values; `check_options` is the inverse.

    A path that is not UTF-8 goes as NUL and hexadecimal digits: no path has a NUL of its own.
    """
    wire = dict(options)
    for name in PATH_OPTIONS:
        if wire.get(name) is not None:
            wire[name] = values.wire_path(wire[name])
    if "python_path" in wire:
        wire["python_path"] = [values.wire_path(folder) for folder in wire["python_path"]]
    return wire


_CONVERTERS = {
    "num_workers": values.num_workers,
    "source": values.path,
    "root": values.path,
    "labels": values.path,
    "offsets": values.path,
    "image_size": values.image_size,
    "cache": values.path,
    "cache_size": values.size,
    "cache_image_size": values.optional_image_size,
    "scale": values.scale,
    "mean": values.channel_numbers("mean"),
    "std": values.channel_numbers("std"),
    "augment": augment_spec.canonical,
    "transform": values.function("transform"),
    "target_transform": values.function("target_transform"),
    "python_path": values.folders,
    "missing_label": values.columns,
    "x_column": values.columns,
    "y_column": values.columns,
}
