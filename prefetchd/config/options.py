"""`Config`: every option of a data set and its daemon, with its type, default, range and help text. Pure.

The command line, its help and the TOML file's keys are made from these fields. Options that change the bytes of a batch
are *content* options: `Config.content()` returns them, and the configuration's digest is made from them. The others
(`num_workers`, `memory_budget`, ...) change how fast and in what memory the same bytes are served.

`prefetchd.config.validate.make_config` makes a `Config` of what a user gave.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from prefetchd.config.augment import AUGMENTATIONS
from prefetchd.config.convert import wire_path
from prefetchd.config.option import option
from prefetchd.config.order_options import OrderOptions
from prefetchd.config.remote_options import RemoteOptions
from prefetchd.config.store_options import StoreOptions

Color = Literal["rgb", "bgr", "gray", "unchanged"]
Dtype = Literal["uint8", "uint16", "float32", "float16"]
Layout = Literal["nhwc", "nchw"]
Resize = Literal["stretch", "crop", "pad"]
Interpolation = Literal["nearest", "linear", "cubic", "area", "lanczos"]
OnError = Literal["raise", "skip", "substitute"]
End = Literal["pre", "post"]
Lengths = Literal["none", "x", "y"]
Pack = Literal["concat", "first_fit"]
Target = Literal["label", "mask", "boxes", "keypoints"]
BoxFormat = Literal["xyxy", "xywh", "cxcywh", "xyxy_normalized", "xywh_normalized", "cxcywh_normalized"]


MAX_BATCH_SIZE = 1 << 18
MAX_OBJECTS = 1 << 16  # of a sample that are delivered
MAX_CHANNELS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(RemoteOptions):
    """The options of one data set and its daemon. Every field is an option of the same name in Python and TOML.

    On the command line `batch_size` is `--batch-size`. `image_size` is (height, width) in pixels, also
    where one number was given.
    """

    source: str = dataclasses.field(metadata={"content": False, "later": False, "limits": None})

    batch_size: int = option(32, "samples in a batch (32)", metavar="N", limits=(1, MAX_BATCH_SIZE))
    image_size: tuple[int, int] = option((224, 224), "size of the delivered images, or several (224)", metavar="PX|HxW")
    color: Color = option(
        "rgb", "channel order; gray has one channel; unchanged has the file's, given by channels (rgb)"
    )
    channels: int | None = option(
        None,
        "channels that each file has, kept as they are: 1 to 4, for TIFF more; without color, color is unchanged",
        metavar="N",
        later=True,
        limits=(1, MAX_CHANNELS),
    )
    dtype: Dtype = option("uint8", "type of the delivered pixels; uint16 keeps 16 bits (uint8)")
    scale: float | None = option(
        None, "what multiplies a pixel, which is 0 to 255: (pixel * scale - mean) / std; such as 1/255", metavar="X"
    )
    mean: tuple[float, ...] | None = option(
        None,
        "what is subtracted after scale: one number, or one a channel (negative: --mean=-1,0,1)",
        metavar="X[,X,X]",
    )
    std: tuple[float, ...] | None = option(
        None, "what divides after that: one number, or one a channel in the order of color", metavar="X[,X,X]"
    )
    layout: Layout = option("nhwc", "order of the dimensions (nhwc)")
    resize: Resize = option("stretch", "stretch (default), crop the centre at the aspect, or pad with black")
    interpolation: Interpolation = option("linear", "how pixels are interpolated (linear)")
    shrink_on_load: bool = option(True, "decode large JPEGs at 1/2, 1/4 or 1/8 (yes); pixels are exact without it")
    augment: tuple[str, ...] = option(
        (),
        f"{', '.join(AUGMENTATIONS)}, with parameters as in "
        "'rotate(degrees=10), hflip'; other pixels each epoch (none)",
        metavar="NAMES",
    )
    views: tuple[str, ...] = option(
        (),
        "deliver each image several times, decoded once, each augmented anew: a number, or for views of several sizes "
        "'view(size=224, count=2, scale=(0.4, 1)), view(size=96, count=6)' (none)",
        metavar="N|VIEWS",
        later=True,
    )
    fields: tuple[str, ...] = option(
        (),
        "what a sample consists of, where it is more than an image and a label: depth=image(column=depth, channels=1); "
        "batches are mappings then. Kinds: image, mask, label, array, boxes, keypoints, text, bytes",
        metavar="NAME=KIND(...)",
        later=True,
        flag="field",
    )
    encoded_bytes: int | None = option(
        None, "deliver images as their files are, undecoded, of at most N bytes: x has bytes and length (decoded)",
        metavar="N", limits=(1, 1 << 30), later=True,
    )  # fmt: skip
    transform: str | None = option(
        None,
        "function (image, rng) -> image of a module, or Albumentations pipeline; readers run it after augment. With "
        "fields it is (sample, rng) -> sample, dictionaries",
        metavar="MODULE:NAME",
    )
    target_transform: str | None = option(
        None,
        "function (label, rng) -> label of a module; what it returns decides the shape and dtype of y",
        metavar="MODULE:NAME",
    )
    target: Target = option(
        "label", "what labels are: numbers and classes, paths of mask images, boxes of objects, or keypoints (label)"
    )
    box_format: BoxFormat = option(
        "xyxy", "boxes: how they are delivered; in pixels, or as fractions of the delivered image (xyxy)", later=True
    )
    source_box_format: BoxFormat | None = option(
        None,
        "boxes: how JSON lines and Parquet files write them, in one of the formats of box_format (COCO, YOLO: known)",
        metavar="FORMAT",
        later=True,
    )
    max_boxes: int | None = option(
        None,
        "boxes, keypoints: objects of a sample that are delivered, the first ones (as many as any sample has)",
        metavar="N",
        limits=(1, MAX_OBJECTS),
        later=True,
    )
    min_visible: float = option(
        0.1, "boxes: a box is left out if less of its area can be seen (0.1)", metavar="X", limits=(0, 1), later=True
    )
    crowds: bool = option(False, "boxes: take COCO's boxes around crowds (iscrowd) too (no)", later=True)
    mask_border: int = option(
        0, "what a mask holds where pad or the augmentation leave it empty (0)", metavar="N", limits=(0, 65535)
    )
    shuffle: bool = option(False, "a new order each epoch (no)")
    seed: int = option(0, "decides the shuffled orders and the augmentation (0)", metavar="N", limits=(0, 2**63 - 1))
    drop_last: bool = option(False, "leave out a shorter last batch (no)")
    on_error: OnError = option(
        "raise", "bad samples: raise (default), skip (shorter batch) or substitute (the next good one)"
    )
    max_image_pixels: int = option(
        250_000_000, "larger images are bad samples (250 million)", metavar="N", limits=(1, 1 << 34)
    )
    root: str | None = option(
        None, "folder that relative paths start from (the manifest's)", metavar="DIR", content=False
    )
    label_columns: int | None = option(
        None,
        "how many trailing fields of a text line are labels (found out); 0 for no labels",
        metavar="N",
        limits=(0, math.inf),
    )
    label_separator: str | None = option(
        None, "what separates several labels in one field: y is a 0/1 vector; '' takes fields whole", metavar="TEXT"
    )
    missing_label: str | None = option(
        None, "label of samples whose label is empty or not a number (refused)", metavar="LABEL"
    )
    index: str | None = option(
        None,
        "tar shards: file that `prefetchd index` wrote, so that they are not gone through again (none)",
        metavar="FILE",
        content=False,
        later=True,
    )
    x_column: str | None = option(
        None,
        "the path's column (name, or number from 0), key (JSONL), the image's extension (tar), or x's name (.npz)",
        metavar="COLUMN",
    )
    y_column: str | None = option(
        None,
        "the labels' columns or keys; in tar shards cls, txt or json:KEY; y's name in an .npz",
        metavar="COLUMN[,...]",
    )
    labels: str | None = option(
        None, "arrays: .npy file of y, a row for each of x, or a directory of such shards",
        metavar="Y.npy", content=False,
    )  # fmt: skip
    offsets: str | None = option(
        None, "ragged sequences: .npy file of n + 1 positions; sequence i is MANIFEST[offsets[i]:offsets[i + 1]]",
        metavar="OFFSETS.npy", content=False,
    )  # fmt: skip
    max_length: int | None = option(
        None, "sequences: length that they are padded or truncated to (the longest one's)",
        metavar="N", limits=(1, 1 << 40),
    )  # fmt: skip
    padding: End = option("pre", "sequences: the end at which a shorter one is padded (pre)")
    truncating: End = option("pre", "sequences: the end at which a longer one is cut (pre)")
    pad_value: float = option(0.0, "sequences: what is padded with (0)", metavar="X")
    lengths: Lengths = option(
        "none", "sequences: put each one's length in x as its first column, or in y as its last (none)"
    )
    pack: Pack | None = option(
        None,
        "sequences: put several in a row of max_length, as tokens, document_ids and positions: end to end and cut "
        "(concat), or whole ones where they fit (first_fit)",
        metavar="concat|first_fit",
        later=True,
    )

    python_path: tuple[str, ...] = option(
        (),
        "folders to find the modules of the functions in (the working directory; in Python sys.path)",
        metavar=f"DIR[{os.pathsep}DIR]",
        content=False,
    )
    num_workers: int = option(
        0,
        "reader processes; auto, or 0, begins with the usable cores (half of them for arrays) and follows the loops",
        metavar="N",
        content=False,
        limits=(0, 1024),
    )
    memory_budget: str = option(
        "auto", "most memory for daemon, readers and ring together (auto)", metavar="SIZE", content=False
    )
    reader_timeout: float = option(
        60.0, "seconds without progress after which a reader is replaced (60)",
        metavar="S", content=False, limits=(0.5, 86400),
    )  # fmt: skip
    patience: float = option(
        10.0,
        "seconds in all that loops wait for a slower one in an epoch, so that it finds their batches (10); 0 or inf",
        metavar="S",
        content=False,
        limits=(0, math.inf),
    )
    consumers: int = option(
        1,
        "loops at different batches, such as ranks, that an automatic budget has slots for (1)",
        metavar="N",
        content=False,
        limits=(1, 1024),
    )
    cache: str | None = option(
        None, "folder that decoded images are kept in, for later epochs and runs (none)", metavar="DIR", content=False
    )
    cache_size: str = option(
        "auto", "most bytes of the whole cache, such as 50GiB (all but 5% of its disk)", metavar="SIZE", content=False
    )
    cache_image_size: tuple[int, int] | None = option(
        None, "fit images into this size first, cached or not; what a cache keeps under random crops and turns (none)",
        metavar="PX|HxW",
    )  # fmt: skip
    cache_format: Literal["raw", "jpeg"] = option(
        "raw", "how kept images are stored: raw, or jpeg in an eighth of the space, cached or not (raw)", later=True
    )
    cache_quality: int = option(90, "quality of cache_format jpeg (90)", metavar="N", limits=(1, 100), later=True)
    keep: str | None = option(
        None, "folder that downloaded bytes are kept in, for later epochs and runs (none)", metavar="DIR", content=False
    )
    keep_size: str = option(
        "auto", "most bytes kept there, such as 200GiB (all but 5% of its disk)", metavar="SIZE", content=False
    )
    store_options: StoreOptions = option(
        StoreOptions(), "what stores are told besides the usual variables: endpoint, region, profile, anonymous ...",
        metavar="KEY=VALUE", content=False, later=True, flag="store-option",
    )  # fmt: skip
    name: str = option("default", "name that consumers attach to (default, or PREFETCHD_NAME)", content=False)

    @property
    def n_channels(self) -> int:
        """Channels of a delivered image: `channels`, or else 3, or 1 for `gray`."""
        return self.channels or (1 if self.color == "gray" else 3)

    @property
    def is_exact(self) -> bool:
        """Whether images keep the channels and numbers of their files: with `unchanged`, or with alpha."""
        return self.color == "unchanged" or self.n_channels == 4

    @property
    def pixel_dtype(self) -> Literal["uint8", "uint16", "float32"]:
        """The type of decoded and placed pixels, before they become values of `dtype`."""
        if self.dtype == "uint16":
            return "uint16"
        return "float32" if self.is_exact and self.dtype == "float32" else "uint8"

    def content(self) -> dict[str, Any]:
        """The options that decide the bytes of a batch, by name, as plain JSON values."""
        return {field.name: getattr(self, field.name) for field in OPTIONS.values() if field.metadata["content"]}

    def digest(self, **also: str) -> str:
        """A short hexadecimal digest of the content options and of `also` (decoder versions and the like)."""
        content = {
            name: value
            for name, value in self.content().items()
            if not (OPTIONS[name].metadata["later"] and value == OPTIONS[name].default)
        }
        text = json.dumps({**content, **also}, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def to_wire(self) -> dict[str, Any]:
        """Every option as plain JSON values; `validate.make_config(**wire)` is the inverse."""
        return wire_options(dataclasses.asdict(self))


_ORDER = {field.name: field for field in dataclasses.fields(OrderOptions)}
_REMOTE = {field.name: field for field in dataclasses.fields(RemoteOptions) if field.name not in _ORDER}
_OWN = {field.name: field for field in dataclasses.fields(Config) if field.name not in {**_ORDER, **_REMOTE}}
# Those of the order stand behind `drop_last`, where people look for them.
_BEFORE = tuple(_OWN)[: tuple(_OWN).index("drop_last") + 1]
OPTIONS = {**{name: _OWN[name] for name in _BEFORE}, **_ORDER, **_OWN, **_REMOTE}
OPTION_TYPES: dict[str, Any] = typing.get_type_hints(Config)
PATH_OPTIONS = (
    "source", "root", "labels", "offsets", "index", "cache", "keep", "subset", "order", "bucket_file",
    "token_file", "tls_ca", "tls_cert", "tls_key",
)  # fmt: skip
NUMBER_OPTIONS = ("subset", "order", "weights")  # in Python they may also be arrays
LIVE_OPTIONS = ("memory_budget", "num_workers")  # what `prefetchd set` changes
# Where one daemon serves several data sets, these are the daemon's own, and the same for all of them.
DAEMON_OPTIONS = (
    "num_workers", "memory_budget", "reader_timeout", "patience", "consumers", "keep", "keep_size", "name",
    "store_options", *_REMOTE,
)  # fmt: skip


def flag_of(name: str) -> str:
    """Return an option's name on the command line, without its dashes."""
    return OPTIONS[name].metadata.get("flag") or name.replace("_", "-")


def wire_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return checked options as plain JSON values; `validate.check_options` is the inverse.

    A path that is not UTF-8 goes as NUL and hexadecimal digits: no path has a NUL of its own.
    """
    wire = dict(options)
    for name in PATH_OPTIONS:
        if wire.get(name) is not None:
            wire[name] = wire_path(wire[name])
    if wire.get("weights") is not None:  # a column, or a path
        wire["weights"] = wire_path(wire["weights"])
    if "mix" in wire:
        wire["mix"] = [wire_path(text) for text in wire["mix"]]
    if "python_path" in wire:
        wire["python_path"] = [wire_path(folder) for folder in wire["python_path"]]
    return wire
