"""Writers of MosaicML's MDS and LitData's chunks for tests.

Their bytes were compared with those of mosaicml-streaming 0.13.0 (`MDSWriter`) and litdata 0.2.76 (`BinaryWriter`), for
the columns bytes, int and str (and float): shards are the same in each byte, and so is the index of MDS. So are chunks
with an Arrow file, where its batches have as many rows.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_MDS_SIZES = {"int": 8, "float32": 4, "float64": 8, "ndarray:float32:3": 12}


def encode(encoding: str, value: Any) -> bytes:
    """Return a value as both libraries encode it."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if encoding == "json":
        return json.dumps(value).encode()
    dtype = {"int": "<i8", "float": "<f8"}.get(encoding, encoding.split(":")[1] if ":" in encoding else encoding)
    return np.asarray(value, dtype).tobytes()


def packed_sample(encodings: Sequence[str], sizes: Sequence[int | None], values: Sequence[Any]) -> bytes:
    """Return the bytes of one sample."""
    parts = [encode(encoding, value) for encoding, value in zip(encodings, values, strict=True)]
    head = [len(part) for part, size in zip(parts, sizes, strict=True) if not size]
    return struct.pack(f"<{len(head)}I", *head) + b"".join(parts)


def packed_shard(samples: Sequence[bytes], description: bytes = b"") -> bytes:
    """Return the bytes of a shard."""
    start = 4 * (len(samples) + 2) + len(description)
    offsets = np.cumsum([start, *map(len, samples)]).astype("<u4").tobytes()
    return struct.pack("<I", len(samples)) + offsets + description + b"".join(samples)


def write_mds(
    folder: Path,
    columns: Mapping[str, str],
    rows: Sequence[Sequence[Any]],
    *,
    per_shard: int = 4,
    compression: str | None = None,
) -> Path:
    """Write rows of values as MDS; the columns are in sorted order, as MosaicML's writer has them."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(columns)
    order = [list(columns).index(name) for name in names]
    encodings = [columns[name] for name in names]
    sizes = [_MDS_SIZES.get(encoding) for encoding in encodings]
    described = {
        "column_encodings": encodings, "column_names": names, "column_sizes": sizes, "compression": compression,
        "format": "mds", "hashes": [], "size_limit": 4000, "version": 2,
    }  # fmt: skip
    shards = []
    for number, first in enumerate(range(0, len(rows), per_shard)):
        part = rows[first : first + per_shard]
        samples = [packed_sample(encodings, sizes, [row[at] for at in order]) for row in part]
        raw = packed_shard(samples, json.dumps(described, sort_keys=True).encode())
        name = f"shard.{number:05}.mds"
        packed = None
        if compression is None:
            (folder / name).write_bytes(raw)
        else:
            import zstandard

            content = zstandard.ZstdCompressor().compress(raw)
            packed = {"basename": f"{name}.zstd", "bytes": len(content), "hashes": {}}
            (folder / f"{name}.zstd").write_bytes(content)
        shards.append(
            {
                **described,
                "raw_data": {"basename": name, "bytes": len(raw), "hashes": {}},
                "samples": len(part),
                "zip_data": packed,
            }
        )
    (folder / "index.json").write_text(json.dumps({"shards": shards, "version": 2}, sort_keys=True))
    return folder


def arrow_chunk(
    names: Sequence[str], rows: Sequence[Sequence[Any]], compression: str | None = None, *, per_batch: int = 3
) -> bytes:
    """Return the bytes of a chunk whose rows LitData wrote as an Arrow file, in batches of 256 rows."""
    import pyarrow

    table = pyarrow.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows])
    sink = pyarrow.BufferOutputStream()
    options = pyarrow.ipc.IpcWriteOptions(compression=compression)
    with pyarrow.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=per_batch)
    arrow = sink.getvalue().to_pybytes()
    return packed_shard([b""] * len(rows)) + arrow + struct.pack("<I", len(arrow)) + b"LDARW01\0"


def write_litdata(
    folder: Path,
    columns: Mapping[str, str],
    rows: Sequence[Sequence[Any]],
    *,
    per_chunk: int = 4,
    in_arrow: bool = False,
    **config: Any,
) -> Path:
    """Write rows of values as LitData's chunks; `config` replaces parts of what its index says."""
    folder.mkdir(parents=True, exist_ok=True)
    leaf = {"type": None, "context": None, "children_spec": []}
    spec = [1, {"type": "builtins.dict", "context": json.dumps(list(columns)), "children_spec": [leaf] * len(columns)}]
    encodings = list(columns.values())
    chunks = []
    for number, first in enumerate(range(0, len(rows), per_chunk)):
        part = rows[first : first + per_chunk]
        if in_arrow:
            raw = arrow_chunk(list(columns), part, config.get("ipc_compression"))
        else:
            raw = packed_shard([packed_sample(encodings, [None] * len(columns), row) for row in part])
        name = f"chunk-0-{number}.bin"
        (folder / name).write_bytes(raw)
        chunks.append({"chunk_bytes": len(raw), "chunk_size": len(part), "dim": None, "filename": name})
    described = {
        "chunk_bytes": None, "chunk_size": per_chunk, "compression": None, "data_format": encodings,
        "data_spec": json.dumps(spec), "encryption": None, "item_loader": "PyTreeLoader", **config,
    }  # fmt: skip
    (folder / "index.json").write_text(json.dumps({"chunks": chunks, "config": described}))
    return folder
