"""One validated, frozen configuration, whatever it came from (command line, TOML file, Python keywords).

`Config` holds the options that decide what is served and how; each field carries its own help text, from which the
command line is made. Options that change the bytes of a batch are *content* options and enter `Config.content()`, from
which the configuration's digest is made; the others (`num_workers`, `memory_budget`, ...) never change what a consumer
sees. Pure, but for `read_config_file`.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import os
import tomllib
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prefetchd import augment_spec
from prefetchd import option_values as values
from prefetchd.errors import ConfigError

Color = Literal["rgb", "bgr", "gray"]
Dtype = Literal["uint8", "float32", "float16"]
Layout = Literal["nhwc", "nchw"]
Resize = Literal["stretch", "crop", "pad"]
Interpolation = Literal["nearest", "linear", "cubic", "area", "lanczos"]
OnError = Literal["raise", "skip", "substitute"]
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
        None, "how many trailing fields of a text line are labels (found out)", metavar="N"
    )
    x_column: str | None = _option(
        None, "name or number (from 0) of the path's column, for CSV and TSV", metavar="COLUMN"
    )
    y_column: str | None = _option(
        None, "names or numbers of the label columns, for CSV and TSV", metavar="COLUMN[,...]"
    )

    python_path: tuple[str, ...] = _option(
        (),
        "folders to find the modules of transforms in (the working directory)",
        metavar=f"DIR[{os.pathsep}DIR]",
        content=False,
    )
    num_workers: int = _option(0, "reader processes; 0 takes the usable cores (0)", metavar="N", content=False)
    memory_budget: str = _option(
        "auto", "most memory for daemon, readers and ring together (auto)", metavar="SIZE", content=False
    )
    reader_timeout: float = _option(
        60.0, "seconds without progress after which a reader is replaced (60)", metavar="S", content=False
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

    def to_wire(self) -> dict[str, Any]:
        """Every option as plain JSON values; `make_config(**wire)` is the inverse.

        A path that is not UTF-8 goes as NUL and hexadecimal digits: no path has a NUL of its own.
        """
        wire = dataclasses.asdict(self)
        for name in PATH_OPTIONS:
            if wire[name] is not None and not values.is_unicode(wire[name]):
                wire[name] = "\0" + os.fsencode(wire[name]).hex()
        wire["python_path"] = [
            folder if values.is_unicode(folder) else "\0" + os.fsencode(folder).hex() for folder in self.python_path
        ]
        return wire


OPTIONS = {field.name: field for field in dataclasses.fields(Config)}
OPTION_TYPES: dict[str, Any] = typing.get_type_hints(Config)
PATH_OPTIONS = ("source", "root")


def make_config(**options: Any) -> Config:
    """Return the validated configuration that `options` name; values may be strings as from a command line.

    Raises:
        ConfigError: for an unknown name, a value of the wrong kind or out of range, or a contradiction.
    """
    checked: dict[str, Any] = {}
    for name, value in options.items():
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, OPTIONS, 1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"cannot use the option {name!r}: there is no such option{meant}")
        convert = _CONVERTERS.get(name)
        checked[name] = convert(value) if convert else values.coerce(name, value, OPTION_TYPES[name])
    if "source" not in checked:
        raise ConfigError("cannot serve: no manifest was given; name a list file or a directory of class folders")
    config = Config(**checked)
    _check(config)
    return config


def read_config_file(path: str) -> dict[str, Any]:
    """Return the options in the TOML file at `path`, keys written `batch-size` or `batch_size`.

    A relative path (`source`, `root`) starts from the file's own folder.

    Raises:
        ConfigError: if the file cannot be read or is not TOML.
    """
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}; check --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}; mend the TOML") from None
    options = {key.replace("-", "_"): value for key, value in table.items()}
    for key in PATH_OPTIONS:
        if isinstance(options.get(key), str):
            options[key] = str(Path(path).parent / Path(options[key]).expanduser())
    return options


_CONVERTERS = {
    "source": values.path,
    "root": values.path,
    "image_size": values.image_size,
    "scale": values.scale,
    "mean": values.channel_numbers("mean"),
    "std": values.channel_numbers("std"),
    "augment": augment_spec.canonical,
    "transform": values.function("transform"),
    "target_transform": values.function("target_transform"),
    "python_path": values.folders,
    "x_column": values.columns,
    "y_column": values.columns,
}


def _check(config: Config) -> None:
    """Raise `ConfigError` for values out of range and for options that contradict each other."""
    ranges: list[tuple[str, float, float]] = [
        ("batch_size", 1, 1 << 18),
        ("num_workers", 0, 1024),
        ("max_image_pixels", 1, 1 << 34),
        ("reader_timeout", 0.5, 86400),
        ("seed", 0, 2**63 - 1),
        ("mask_border", 0, 65535),
    ]
    for name, low, high in ranges:
        value = getattr(config, name)
        if not low <= value <= high:
            raise values.wrong(name, value, f"from {low:g} to {high:g}")
    if config.label_columns is not None and config.label_columns < 0:
        raise values.wrong("label_columns", config.label_columns, "0 or more")
    for name in ("mean", "std"):
        numbers = getattr(config, name)
        if numbers is not None and len(numbers) not in (1, config.channels):
            raise values.wrong(name, numbers, f"one number or {config.channels}, one a channel of color={config.color}")
        if numbers is not None and not all(map(math.isfinite, numbers)):
            raise values.wrong(name, numbers, "finite")
    if config.scale is not None and not math.isfinite(config.scale):
        raise values.wrong("scale", config.scale, "finite")
    if config.std is not None and 0 in config.std:
        raise values.wrong("std", config.std, "other than 0")
    if config.dtype == "uint8" and any(x is not None for x in (config.scale, config.mean, config.std)):
        raise ConfigError(
            "cannot scale uint8 pixels: scale, mean and std give fractions; use dtype=float32 or float16 with them"
        )
    if config.target == "mask" and config.label_columns not in (None, 1):
        raise values.wrong("label_columns", config.label_columns, "1, or not given, with target=mask: one path a line")
    check_name(config.name)


def check_name(name: str) -> None:
    """Raise `ConfigError` unless `name` can be a daemon's: a file name of harmless characters."""
    if not 1 <= len(name) <= 64 or name.startswith(".") or not all(c.isalnum() or c in "-_." for c in name):
        raise ConfigError(
            f"cannot use name={name!r}: it must be 1 to 64 letters, digits, '-', '_' or '.', and not start with '.'"
        )
