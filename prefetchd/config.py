"""One validated, frozen configuration, whatever it came from (command line, TOML file, Python keywords).

`Config` holds the options that decide what a daemon serves and how. Options that change the bytes of a batch are
*content* options and enter `Config.content()`, from which the configuration's digest is made; the others
(`num_workers`, `memory_budget`, ...) never change what a consumer sees. Pure: nothing is opened here.
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

from prefetchd.errors import ConfigError

Color = Literal["rgb", "bgr", "gray"]
Dtype = Literal["uint8", "float32", "float16"]
Layout = Literal["nhwc", "nchw"]
Resize = Literal["stretch", "crop", "pad"]
Interpolation = Literal["nearest", "linear", "cubic", "area", "lanczos"]
OnError = Literal["raise", "skip", "substitute"]

# Options that decide only how fast, in what memory or under what name the same bytes are served.
_NOT_CONTENT = frozenset({"source", "root", "name", "num_workers", "memory_budget", "reader_timeout"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The options of one daemon. Every field is an option of the same name in Python, TOML and on the command line.

    Attributes:
        source: the manifest: a text, CSV or TSV file, or a directory with a folder per class.
        root: the folder that relative paths start from; the manifest's own folder by default.
        label_columns: how many trailing fields of a text line are labels; found out by default.
        x_column: name or number (from 0) of the column with the path, for CSV and TSV.
        y_column: names or numbers of the label columns, separated by commas, for CSV and TSV.
        batch_size: samples in a batch.
        image_size: (height, width) of the delivered images, in pixels.
        color: channel order; `gray` gives one channel.
        dtype: type of the delivered pixels.
        scale: what a pixel (0 to 255) is multiplied by, before `mean` and `std`.
        mean: what is subtracted from each channel after scaling, in the order of `color`.
        std: what each channel is divided by after that.
        layout: `nhwc` or `nchw`.
        resize: `stretch` to the size, `crop` the centre at the right aspect, or `pad` with black.
        interpolation: how pixels are interpolated when resizing.
        shrink_on_load: decode JPEG at 1/2, 1/4 or 1/8 when that is still at least the target; `False` is exact.
        shuffle: a new order each epoch; `False` keeps the manifest's order.
        seed: decides the shuffled orders.
        drop_last: leave out the last batch of an epoch if it is shorter than `batch_size`.
        on_error: what a bad sample does: `raise`, `skip` (a shorter batch) or `substitute` (the next good one).
        max_image_pixels: images with more pixels in their header are bad samples.
        num_workers: reader processes; 0 takes the number of usable cores.
        memory_budget: the most memory that the daemon, its readers and the ring may take; `auto`, `512MiB`, `25%`.
        reader_timeout: seconds without progress after which a reader is taken for hung and replaced.
        name: the daemon's name.
    """

    source: str
    root: str | None = None
    label_columns: int | None = None
    x_column: str | None = None
    y_column: str | None = None
    batch_size: int = 32
    image_size: tuple[int, int] = (224, 224)
    color: Color = "rgb"
    dtype: Dtype = "uint8"
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: Layout = "nhwc"
    resize: Resize = "stretch"
    interpolation: Interpolation = "linear"
    shrink_on_load: bool = True
    shuffle: bool = False
    seed: int = 0
    drop_last: bool = False
    on_error: OnError = "raise"
    max_image_pixels: int = 250_000_000
    num_workers: int = 0
    memory_budget: str = "auto"
    reader_timeout: float = 60.0
    name: str = "default"

    @property
    def channels(self) -> int:
        """Channels of a delivered image: 3, or 1 for `gray`."""
        return 1 if self.color == "gray" else 3

    def content(self) -> dict[str, Any]:
        """The options that decide the bytes of a batch, by name, as plain JSON values."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in _NOT_CONTENT
        }

    def digest(self, **also: str) -> str:
        """A short hexadecimal digest of the content options and of `also` (decoder versions and the like)."""
        text = json.dumps({**self.content(), **also}, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def to_wire(self) -> dict[str, Any]:
        """Every option as plain JSON values; `make_config(**wire)` is the inverse.

        A path that is not UTF-8 goes as NUL and hexadecimal digits: no path has a NUL of its own.
        """
        wire = dataclasses.asdict(self)
        for name in ("source", "root"):
            if wire[name] is not None and not _is_unicode(wire[name]):
                wire[name] = "\0" + os.fsencode(wire[name]).hex()
        return wire


OPTION_NAMES = tuple(field.name for field in dataclasses.fields(Config))


def make_config(**options: Any) -> Config:
    """Return the validated configuration that `options` name; values may be strings as from a command line.

    Raises:
        ConfigError: for an unknown name, a value of the wrong kind or out of range, or a contradiction.
    """
    hints = typing.get_type_hints(Config)
    values: dict[str, Any] = {}
    for name, value in options.items():
        if name not in hints:
            near = difflib.get_close_matches(name, OPTION_NAMES, 1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"cannot use the option {name!r}: there is no such option{meant}")
        values[name] = _SPECIAL[name](value) if name in _SPECIAL else _coerce(name, value, hints[name])
    if "source" not in values:
        raise ConfigError("cannot serve: no manifest was given; name a list file or a directory of class folders")
    config = Config(**values)
    _check(config)
    return config


def read_config_file(path: str) -> dict[str, Any]:
    """Return the options in the TOML file at `path`, keys written `batch-size` or `batch_size`.

    A relative `source` or `root` starts from the file's own folder.

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
    for key in ("source", "root"):
        if isinstance(options.get(key), str):
            options[key] = str(Path(path).parent / Path(options[key]).expanduser())
    return options


def _fail(name: str, value: object, wanted: str) -> ConfigError:
    return ConfigError(f"cannot use {name.replace('_', '-')}={value!r}: it must be {wanted}")


def _coerce(name: str, value: object, hint: Any) -> Any:
    """Return `value` as the field's type; numbers may come as text, and `None` only where the field allows it."""
    kinds = typing.get_args(hint) if type(None) in typing.get_args(hint) else (hint,)
    if value is None and type(None) in kinds:
        return None
    kind = kinds[0]
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise _fail(name, value, "one of " + ", ".join(choices))
        return value
    if kind is str:
        if not isinstance(value, str | Path | int):
            raise _fail(name, value, "text")
        return str(value)
    if kind is bool:
        words = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in words:
            return words[value.lower()]
        raise _fail(name, value, "true or false")
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)  # type: ignore[arg-type]
        if kind is int:
            whole = int(value)  # type: ignore[call-overload]
            if whole != number:
                raise ValueError
            return whole
    except (TypeError, ValueError, OverflowError):
        raise _fail(name, value, "a whole number" if kind is int else "a number") from None
    return number


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _path(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str | bytes | os.PathLike) or not value:
        raise ConfigError(f"cannot use the path {value!r}: it must be text")
    path = os.fsdecode(value)
    return os.fsdecode(bytes.fromhex(path[1:])) if path.startswith("\0") else path


def _fraction(value: object) -> float:
    """A number, or text such as `1/255`."""
    if isinstance(value, str) and value.count("/") == 1:
        above, below = value.split("/")
        return float(above) / float(below)
    if isinstance(value, bool):
        raise ValueError
    return float(value)  # type: ignore[arg-type]


def _scale(value: object) -> float | None:
    try:
        return None if value is None else _fraction(value)
    except (TypeError, ValueError, ZeroDivisionError):
        raise _fail("scale", value, "a number, such as 0.5 or 1/255") from None


def _image_size(value: object) -> tuple[int, int]:
    """`224`, `"224"`, `"256x320"` or `(256, 320)`, always height before width."""
    parts = value.lower().split("x") if isinstance(value, str) else value
    try:
        if hasattr(parts, "__index__") and not isinstance(parts, bool):
            parts = (parts,)
        sizes = [int(part) for part in parts]  # type: ignore[attr-defined]
        height, width = sizes if len(sizes) == 2 else (sizes[0], sizes[0])
        if len(sizes) > 2 or not (0 < height <= 32768 and 0 < width <= 32768):
            raise ValueError
    except (TypeError, ValueError, IndexError):
        raise _fail("image_size", value, "pixels from 1 to 32768, such as 224 or 256x320 (height x width)") from None
    return height, width


def _channel_numbers(name: str) -> Any:
    def convert(value: object) -> tuple[float, ...] | None:
        if value is None:
            return None
        try:
            if isinstance(value, str):
                return tuple(_fraction(part) for part in value.split(","))
            if isinstance(value, int | float):
                return (float(value),)
            return tuple(float(part) for part in value)  # type: ignore[attr-defined]
        except (TypeError, ValueError, ZeroDivisionError):
            raise _fail(name, value, "one number, or one a channel, such as 0.485,0.456,0.406") from None

    return convert


def _columns(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return ",".join(str(part) for part in value)
    return str(value)


_SPECIAL = {
    "source": _path,
    "root": _path,
    "image_size": _image_size,
    "scale": _scale,
    "mean": _channel_numbers("mean"),
    "std": _channel_numbers("std"),
    "x_column": _columns,
    "y_column": _columns,
}


def _check(config: Config) -> None:
    """Raise `ConfigError` for values out of range and for options that contradict each other."""
    ranges: list[tuple[str, float, float]] = [
        ("batch_size", 1, 1 << 18),
        ("num_workers", 0, 1024),
        ("max_image_pixels", 1, 1 << 34),
        ("reader_timeout", 0.5, 86400),
        ("seed", 0, 2**63 - 1),
    ]
    for name, low, high in ranges:
        value = getattr(config, name)
        if not low <= value <= high:
            raise _fail(name, value, f"from {low:g} to {high:g}")
    if config.label_columns is not None and config.label_columns < 0:
        raise _fail("label_columns", config.label_columns, "0 or more")
    for name in ("mean", "std"):
        numbers = getattr(config, name)
        if numbers is not None and len(numbers) not in (1, config.channels):
            raise _fail(name, numbers, f"one number or {config.channels}, one a channel of color={config.color}")
        if numbers is not None and not all(map(math.isfinite, numbers)):
            raise _fail(name, numbers, "finite")
    if config.scale is not None and not math.isfinite(config.scale):
        raise _fail("scale", config.scale, "finite")
    if config.std is not None and 0 in config.std:
        raise _fail("std", config.std, "other than 0")
    if config.dtype == "uint8" and any(x is not None for x in (config.scale, config.mean, config.std)):
        raise ConfigError(
            "cannot scale uint8 pixels: scale, mean and std give fractions; use dtype=float32 or float16 with them"
        )
    check_name(config.name)


def check_name(name: str) -> None:
    """Raise `ConfigError` unless `name` can be a daemon's: a file name of harmless characters."""
    if not 1 <= len(name) <= 64 or name.startswith(".") or not all(c.isalnum() or c in "-_." for c in name):
        raise ConfigError(
            f"cannot use name={name!r}: it must be 1 to 64 letters, digits, '-', '_' or '.', and not start with '.'"
        )
