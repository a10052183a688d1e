"""The kind of a source by its name, the files that a pattern stands for, and the options that concern each kind.

The daemon calls it at open. Patterns are expanded here and not by a shell, so that they work the same from Python, TOML
and the command line (where they have to be quoted). An option that means nothing for a source is refused, never
ignored; one that has its default value counts as not given. Image suffixes stand here alone. Pure but for looks into
folders.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from typing import Literal

from prefetchd.config.options import OPTIONS, Config
from prefetchd.data.stores.urls import file_name, has_wildcard, is_url
from prefetchd.errors import ConfigError, ManifestError, one_line

# What `cv2.imread` reads, the most usual first. A file with another suffix is no image in a directory or a shard.
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp", ".avif", ".tif", ".tiff",
    ".pbm", ".pgm", ".ppm", ".pnm", ".pxm", ".pam", ".pfm", ".jp2", ".j2k", ".j2c", ".hdr", ".pic", ".sr", ".ras",
    ".apng", ".mpo",
)  # fmt: skip
# Images that OpenCV does not read. A directory's listing leaves them out, and warns.
UNREAD_SUFFIXES = (
    ".heic", ".heif", ".jxl", ".svg", ".psd", ".tga", ".ico", ".exr", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw",
    ".dcm", ".eps", ".xcf", ".pcx", ".jxr",
)  # fmt: skip
IMAGE_OPTIONS = (
    "image_size", "color", "dtype", "scale", "mean", "std", "layout", "resize", "interpolation", "shrink_on_load",
    "max_image_pixels", "channels", "augment", "views", "transform", "target_transform", "target", "mask_border",
    "cache", "cache_size", "cache_image_size", "cache_format", "cache_quality", "box_format", "source_box_format",
    "max_boxes", "min_visible", "crowds", "bucket_sizes", "bucket_file",
    "encoded_bytes",
)  # fmt: skip
BOX_OPTIONS = ("box_format", "source_box_format", "min_visible", "crowds")
OBJECT_OPTIONS = (*BOX_OPTIONS, "max_boxes")
OBJECT_TARGETS = ("boxes", "keypoints")
MASK_OPTIONS = ("target", "mask_border")
LIST_OPTIONS = ("root", "label_columns", "label_separator", "missing_label")
COLUMN_OPTIONS = ("x_column", "y_column")
ARRAY_OPTIONS = ("labels",)
TAR_OPTIONS = ("index",)
SEQUENCE_OPTIONS = ("offsets", "max_length", "padding", "truncating", "pad_value", "lengths", "pack", "length_buckets")


class InapplicableOption(ConfigError):
    """An option that means nothing for a source; `schedule.datasets` makes a plain `ConfigError` of it.

    Attributes:
        option: its name.
        why: the message without its remedy.
    """

    def __init__(self, option: str, why: str) -> None:
        super().__init__(f"{why}; leave it out")
        self.option = option
        self.why = why


def refuse_given(config: Config, names: tuple[str, ...], concern: str) -> None:
    """Raise `InapplicableOption` if one of the options `names` was given; `concern` says what they are for."""
    for name in names:
        if getattr(config, name) != OPTIONS[name].default:
            raise InapplicableOption(
                name, f"cannot use {name} with {one_line(config.source)}: it concerns {concern} only"
            )


# What Hugging Face's `save_to_disk` writes beside the Arrow files of a data set, or the folders of several.
ARROW_FOLDERS = ("state.json", "dataset_dict.json")


def refuse_other_targets(config: Config) -> None:
    """Raise `InapplicableOption` for an option of another target than the one that is served."""
    if config.target not in OBJECT_TARGETS:
        refuse_given(config, OBJECT_OPTIONS, 'target="boxes"')
        return
    refuse_given(config, ("mask_border",), 'target="mask"')
    refuse_given(config, ("label_columns", "label_separator", "missing_label"), 'target="label"')
    if config.target == "keypoints":
        refuse_given(config, BOX_OPTIONS, 'target="boxes"')


Kind = Literal["manifest", "tar", "parquet", "packed", "arrow", "arrays"]

_SUFFIXES: dict[str, Kind] = {
    ".tar": "tar", ".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".npy": "arrays", ".npz": "arrays",
}  # fmt: skip
_COMPRESSED_TAR = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4|z)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAX_FILES = 1 << 20
PACKED_INDEX = "index.json"
_INDEX_START_BYTES = 1 << 16
_PACKED_INDEX = re.compile(
    rb'\s*\{\s*"(shards"\s*:\s*\[.*"column_encodings|chunks"\s*:\s*\[.*"chunk_bytes)"', re.DOTALL
)


def kind_of(source: str) -> Kind:
    """Return the kind of data set that `source` names; `manifest`, which gives the error, if it is no other."""
    if is_url(source):
        return _kind_of_url(source)
    path = os.path.expanduser(source)
    if os.path.isdir(path):
        return "packed" if _lists_packed(os.path.join(path, PACKED_INDEX)) else _kind_of_folder(path)
    if os.path.basename(path) == PACKED_INDEX and _lists_packed(path):
        return "packed"
    return _kind_of_name(path)


def _kind_of_url(url: str) -> Kind:
    """Return the kind by the name; of a prefix the store is asked whether it has the index of packed shards."""
    name = file_name(url.rstrip("/"))
    kind = _kind_of_name(name)
    if kind != "manifest" or ("." in name and name != PACKED_INDEX):
        return kind
    from prefetchd.data.stores.client import read_start

    start = read_start(url if name == PACKED_INDEX else f"{url.rstrip('/')}/{PACKED_INDEX}", _INDEX_START_BYTES)
    return "packed" if _PACKED_INDEX.search(start) else kind


def _lists_packed(path: str) -> bool:
    """Return whether a file is the index of shards of MDS or LitData."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        start = os.read(fd, _INDEX_START_BYTES)
    except OSError:
        return False
    finally:
        os.close(fd)
    return _PACKED_INDEX.search(start) is not None


def _kind_of_name(path: str) -> Kind:
    if _COMPRESSED_TAR.search(path):
        return "tar"
    # A brace that holds the suffix (`a.{tar,tar}`) is not supported: the end of the name decides.
    return _SUFFIXES.get(os.path.splitext(path)[1].lower(), "manifest")


def _kind_of_folder(path: str) -> Kind:
    """A folder of shards holds tars, Parquet files or arrays, and neither folders nor images of its own."""
    if any(os.path.isfile(os.path.join(path, name)) for name in ARROW_FOLDERS):
        return "arrow"
    kind: Kind = "manifest"
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir() or entry.name.lower().endswith(IMAGE_SUFFIXES):
                    return "manifest"
                if kind == "manifest":
                    kind = _kind_of_name(entry.name)
    except OSError:
        return "manifest"
    return kind


def expand(source: str, kind: Kind, name: str) -> list[str]:
    """Return the absolute paths of the files that `source` stands for: a file, a directory or a pattern.

    Files of a directory and of a glob come in sorted order, those of braces in the order they are written in.

    Raises:
        ManifestError: if there are none.
    """
    path = os.path.expanduser(source)
    if os.path.isdir(path):
        # Compressed shards too, so that one among the others is refused and not left out.
        found = [os.path.join(path, entry) for entry in sorted(os.listdir(path)) if _kind_of_name(entry) == kind]
        found = [each for each in found if not os.path.basename(each).startswith(".")]
        is_far = False
    elif os.path.exists(path):
        found, is_far = [path], False
    else:
        found = []
        is_far = "://" in path
        for each in _braces(path, name):
            found += sorted(_matching(each, is_far)) if has_wildcard(each) else [each]
    if not found:
        raise ManifestError(f"cannot open {name}: no file has such a name; check the pattern")
    return found if is_far else [os.path.abspath(each) for each in found]


def _matching(pattern: str, is_far: bool) -> list[str]:
    if not is_far:
        return glob.glob(pattern)
    from prefetchd.data.stores.names import listing

    fixed = pattern[: re.search(r"[*?[]", pattern).start()].rpartition("/")[0] + "/"  # type: ignore[union-attr]
    parts = pattern.count("/")
    return [url for url, _ in listing(fixed) if url.count("/") == parts and fnmatch.fnmatchcase(url, pattern)]


def _braces(pattern: str, name: str) -> list[str]:
    """Expand `{000..099}` and `{a,b}` in `pattern` as a shell does."""
    done: list[str] = []
    todo = [pattern]
    while todo:
        text = todo.pop()
        match = next((m for m in _BRACES.finditer(text) if "," in m[1] or _RANGE.fullmatch(m[1])), None)
        if match is None:
            done.append(text)
            continue
        limits = _RANGE.fullmatch(match[1])
        parts = match[1].split(",")
        if limits is not None:
            first, last = int(limits[1]), int(limits[2])
            if abs(last - first) >= _MAX_FILES:
                raise ManifestError(
                    f"cannot open {name}: {match[0]} is more than {_MAX_FILES} files; check the pattern"
                )
            width = max(len(limits[1]), len(limits[2])) if limits[1].startswith("0") or limits[2].startswith("0") else 0
            step = 1 if last >= first else -1
            parts = [f"{number:0{width}d}" for number in range(first, last + step, step)]
        if len(parts) * (len(todo) + len(done) + 1) > _MAX_FILES:
            raise ManifestError(f"cannot open {name}: it is more than {_MAX_FILES} files; check the pattern")
        todo += [text[: match.start()] + part + text[match.end() :] for part in reversed(parts)]
    return done
