"""Fields of samples in tar shards and Parquet files."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prefetchd
from prefetchd import Field
from tests.field_data import N_SAMPLES, QUICK, SIZE, caption, field_data  # noqa: F401
from tests.images import photograph

SHARDED: dict[str, Any] = {
    "image": Field("image", "jpg;png"),
    "depth": Field("image", "depth.png", color="gray"),
    "label": Field("label", "cls"),
    "caption": Field("text", "txt"),
    "vector": Field("array", "json:numbers.vector"),
    "embedding": Field("array", "npy", shape=4, dtype="float32"),
    "raw": Field("bytes", "depth.png"),
}


def write_shard(data: Path, path: Path, numbers: range) -> None:
    with tarfile.open(path, "w") as shard:
        for number in numbers:
            pairs = data / "pairs"
            parts = {
                "png": (pairs / f"images/{number:03d}.png").read_bytes(),
                "depth.png": (pairs / f"depth/{number:03d}.png").read_bytes(),
                "cls": str(number % 3).encode(),
                "txt": caption(number).encode(),
                "json": json.dumps({"numbers": {"vector": [number, 1, 2]}}).encode(),
                "npy": (pairs / f"embeddings/{number:03d}.npy").read_bytes(),
            }
            for extension, content in parts.items():
                member = tarfile.TarInfo(f"{number:03d}.{extension}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))


def test_members_of_tar_shards_are_fields(data: Path, tmp_path: Path) -> None:
    write_shard(data, tmp_path / "s-0.tar", range(12))
    write_shard(data, tmp_path / "s-1.tar", range(12, N_SAMPLES))
    options: dict[str, Any] = {"fields": SHARDED, "image_size": SIZE, "shuffle": True, **QUICK}
    with prefetchd.batches(tmp_path / "s-{0..1}.tar", **options) as loader:
        seen = []
        for batch in loader:
            for row, number in enumerate(batch.sample_ids.tolist()):
                np.testing.assert_array_equal(batch.image[row], photograph(*SIZE, number)[..., ::-1])
                np.testing.assert_array_equal(batch.depth[row, ..., 0], photograph(*SIZE, 100 + number)[..., 0])
                encoded = (data / f"pairs/depth/{number:03d}.png").read_bytes()
                assert batch.raw.bytes[row][: batch.raw.length[row]].tobytes() == encoded
                assert batch.vector[row].tolist() == [number, 1, 2]
                assert batch.embedding[row].tolist() == [number] * 4
            assert batch.label.tolist() == [number % 3 for number in batch.sample_ids]
            assert batch.strings("caption") == [caption(number) for number in batch.sample_ids]
            seen += batch.sample_ids.tolist()
        assert sorted(seen) == list(range(N_SAMPLES))
    with pytest.raises(prefetchd.ManifestError, match=r"s-0.tar sample 000: it has no member .mask \(there are .png"):
        prefetchd.batches(tmp_path / "s-0.tar", fields={"image": Field("image", "png"), "mask": Field("mask")}, **QUICK)


def test_columns_of_parquet_files_are_fields(data: Path, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pairs = data / "pairs"
    for part in range(2):
        numbers = range(part * 10, part * 10 + 10)
        table = pa.table(
            {
                "jpg": [(pairs / f"images/{number:03d}.png").read_bytes() for number in numbers],
                "depth": [(pairs / f"depth/{number:03d}.png").read_bytes() for number in numbers],
                "label": [("dog", "cat")[number % 2] for number in numbers],
                "caption": [caption(number) for number in numbers],
                "vector": [[number, number + 0.5] for number in numbers],
            }
        )
        pyarrow.parquet.write_table(table, tmp_path / f"part-{part}.parquet", row_group_size=4)
    fields = {
        "image": Field("image", "jpg"),
        "depth": Field("image", color="gray"),
        "label": Field("label"),
        "caption": Field("text"),
        "vector": Field("array"),
    }
    with prefetchd.batches(tmp_path / "part-*.parquet", fields=fields, image_size=SIZE, **QUICK) as loader:
        assert loader.classes == ("cat", "dog")
        for batch in loader:
            for row, number in enumerate(batch.sample_ids.tolist()):
                np.testing.assert_array_equal(batch.image[row], photograph(*SIZE, number)[..., ::-1])
                np.testing.assert_array_equal(batch.depth[row, ..., 0], photograph(*SIZE, 100 + number)[..., 0])
                assert batch.vector[row].tolist() == [number, number + 0.5]
            assert batch.label.tolist() == [1 - number % 2 for number in batch.sample_ids]
            assert batch.strings("caption") == [caption(number) for number in batch.sample_ids]
            assert batch.vector.dtype == np.float32
