"""The `index.json` of a folder of packed shards: which shards there are, and what columns their samples have.

Called in the daemon, once a data set. Two libraries write such folders: MosaicML's (MDS, version 2) and LitData. Both
lay a shard out alike, so only their descriptions differ:

    uint32 samples | uint32 x (samples + 1), where each sample starts | (MDS: its description) | samples
    a sample: uint32 size of each column without a fixed one | values of all columns
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from prefetchd.data.files import open_regular
from prefetchd.data.stores.urls import is_url, shown
from prefetchd.errors import ManifestError, one_line

INDEX_NAME = "index.json"
_MAX_INDEX_BYTES = 1 << 30
_MAX_SHARD_BYTES = 1 << 32  # offsets have 32 bits


@dataclass(frozen=True, slots=True)
class PackedColumns:
    """The columns of samples, in the order of their values.

    Attributes:
        names: of the columns.
        encodings: how each is encoded, in the library's words.
        sizes: bytes of each value; 0 where the sample says it.
    """

    names: tuple[str, ...]
    encodings: tuple[str, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PackedShard:
    """One shard.

    Attributes:
        path: or URL, of the file that is read.
        n_samples: in it.
        n_bytes: of the shard, decompressed.
        stored_bytes: of the file.
        is_zstd: whether the file is compressed.
    """

    path: str
    n_samples: int
    n_bytes: int
    stored_bytes: int
    is_zstd: bool


def folder_of(source: str) -> str:
    """Return the absolute path or URL of the folder that `source`, it or its index, names."""
    if is_url(source):
        url = source.rstrip("/")
        return url.removesuffix(f"/{INDEX_NAME}")
    path = os.path.abspath(os.path.expanduser(source))
    return os.path.dirname(path) if os.path.basename(path) == INDEX_NAME else path


def read_index(folder: str, name: str) -> tuple[PackedColumns, list[PackedShard]]:
    """Return the columns and the shards of a folder; errors call it `name`.

    Raises:
        ManifestError: if the index cannot be read, or describes what cannot be served, with what to do.
    """
    path = os.path.join(folder, INDEX_NAME)
    raw = _content(path)
    try:
        described = json.loads(raw)
        if "shards" in described:
            columns, shards = _mds(described, folder, name)
        else:
            columns, shards = _litdata(described, folder, name)
    except (
        ValueError, KeyError, TypeError, IndexError, AttributeError,
        OverflowError, RecursionError,  # of Infinity, and of lists many levels deep
    ) as error:  # fmt: skip
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ManifestError(
            f"cannot read {one_line(shown(path))}: it describes no shards of MDS or LitData ({what}); write it again"
        ) from None
    if not columns.names or not sum(shard.n_samples for shard in shards):
        raise ManifestError(f"cannot serve {name}: its {INDEX_NAME} lists no samples; check the folder")
    return columns, shards


def _content(path: str) -> bytes:
    if is_url(path):
        from prefetchd.data.stores.client import read_whole

        found = read_whole(path)
        if found is None:
            raise ManifestError(f"cannot open {shown(path)}: there is no such object; check the URL")
        return found
    fd = open_regular(path, one_line(path))
    with open(fd, "rb") as file:
        return file.read(_MAX_INDEX_BYTES)


def _mds(described: dict[str, Any], folder: str, name: str) -> tuple[PackedColumns, list[PackedShard]]:
    columns: PackedColumns | None = None
    shards = []
    for shard in described["shards"]:
        if (shard["format"], shard["version"]) != ("mds", 2):
            raise _refusal(
                name, f"shards of the format {shard['format']!r}, version {shard['version']}", "write them as MDS 2"
            )
        own = PackedColumns(
            tuple(map(str, shard["column_names"])),
            tuple(map(str, shard["column_encodings"])),
            tuple(int(size or 0) for size in shard["column_sizes"]),
        )
        if columns is None:
            columns = own
        if own != columns or not len(own.names) == len(own.encodings) == len(own.sizes):
            raise _refusal(name, "shards with other columns than the first", "serve them apart")
        raw, packed = shard["raw_data"], shard["zip_data"]
        path, n_bytes = _path(folder, raw["basename"]), int(raw["bytes"])
        stored_bytes, is_zstd = n_bytes, False
        # MosaicML's library leaves decompressed shards beside the others, on disks.
        if packed is not None and not os.path.exists(path):
            method = str(shard["compression"]).partition(":")[0]
            if method != "zstd":
                raise _refusal(
                    name,
                    f"shards compressed with {method}, and only zstd is read",
                    "write them with zstd, or decompress",
                )
            path, stored_bytes, is_zstd = _path(folder, packed["basename"]), int(packed["bytes"]), True
        shards.append(_checked(PackedShard(path, int(shard["samples"]), n_bytes, stored_bytes, is_zstd)))
    return columns or PackedColumns((), (), ()), shards


def _litdata(described: dict[str, Any], folder: str, name: str) -> tuple[PackedColumns, list[PackedShard]]:
    config = described["config"]
    for key, what in (("compression", "compressed chunks"), ("encryption", "encrypted chunks")):
        if config.get(key):
            raise _refusal(
                name,
                f"{what} ({config[key]}), which LitData reads whole",
                f"write them again without {key} for random access",
            )
    if config.get("item_loader", "PyTreeLoader") != "PyTreeLoader":
        raise _refusal(
            name,
            f"chunks for {config['item_loader']}, which hold no samples of their own",
            "convert tokens to .npy and give offsets",
        )
    _, tree = json.loads(config["data_spec"])
    leaves = tree["children_spec"]
    if tree["type"] != "builtins.dict" or any(leaf["type"] is not None for leaf in leaves):
        raise _refusal(name, "samples that are no plain dict of columns", "write each sample as {'image': ..., ...}")
    names = tuple(map(str, json.loads(tree["context"])))
    encodings = tuple(map(str, config["data_format"]))
    if not len(names) == len(encodings) == len(leaves):
        raise ValueError(f"{len(names)} names and {len(encodings)} columns")
    shards = []
    for chunk in described["chunks"]:
        path, n_bytes = _path(folder, chunk["filename"]), int(chunk["chunk_bytes"])
        shards.append(_checked(PackedShard(path, int(chunk["chunk_size"]), n_bytes, n_bytes, False)))
    return PackedColumns(names, encodings, (0,) * len(names)), shards


def _path(folder: str, written: str) -> str:
    """Return the path of a shard, which must lie in the folder."""
    if os.path.isabs(written) or ".." in written.split("/"):
        raise ValueError(f"the shard {written!r} lies outside the folder")
    return os.path.join(folder, written)


def _checked(shard: PackedShard) -> PackedShard:
    if not (0 <= shard.n_samples < 1 << 30 and 0 <= shard.n_bytes < _MAX_SHARD_BYTES):
        raise ValueError(f"{shard.n_samples} samples in {shard.n_bytes} bytes")
    return shard


def _refusal(name: str, what: str, remedy: str) -> ManifestError:
    return ManifestError(f"cannot serve {name}: it has {what}; {remedy}")
