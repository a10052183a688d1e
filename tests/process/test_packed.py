"""Packed shards with real processes: the same batches as from files."""

from __future__ import annotations

from pathlib import Path

import pytest

import prefetchd
from tests.packed import write_litdata, write_mds
from tests.records import jpeg

OPTIONS = {"batch_size": 4, "image_size": 32, "num_workers": 2, "memory_budget": "200MiB", "shuffle": True}
COLUMNS = {"image": "bytes", "label": "int", "name": "str"}
ROWS = [(jpeg(n), n % 3, f"n{n}") for n in range(22)]


def content(source: Path, **options: object) -> list[tuple]:
    with prefetchd.batches(source, epochs=2, **{**OPTIONS, **options}) as loader:
        return [(batch.x.tobytes(), batch.y.tolist(), batch.sample_ids.tolist()) for batch in loader]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for image, _, name in ROWS:
        (folder / f"{name}.jpg").write_bytes(image)
    (folder / "list.txt").write_text("".join(f"{name}.jpg {label}\n" for _, label, name in ROWS))
    return folder / "list.txt"


@pytest.mark.parametrize("cached", [False, True])
def test_batches_are_those_of_files(manifest: Path, tmp_path: Path, cached: bool) -> None:
    expected = content(manifest)
    options = {"cache": tmp_path / "cache"} if cached else {}
    assert content(write_mds(tmp_path / "mds", COLUMNS, ROWS), **options) == expected
    assert content(write_litdata(tmp_path / "lit", COLUMNS, ROWS), **options) == expected


def test_batches_of_compressed_shards_are_those_of_files(manifest: Path, tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    folder = write_mds(tmp_path, COLUMNS, ROWS, per_shard=8, compression="zstd")
    assert content(folder) == content(manifest)


def test_blocks_keep_the_shards_of_a_compressed_folder_together(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    folder = write_mds(tmp_path / "zstd", COLUMNS, ROWS, per_shard=8, compression="zstd")
    plain = write_mds(tmp_path / "plain", COLUMNS, ROWS, per_shard=8)
    assert content(folder, shuffle_block=8) == content(plain, shuffle_block=8)


def test_fields_are_delivered(tmp_path: Path) -> None:
    folder = write_mds(tmp_path, COLUMNS, ROWS)
    fields = {"image": "image", "label": "label"}
    with prefetchd.batches(folder, fields=fields, **{**OPTIONS, "shuffle": False}) as loader:
        batches = list(loader)
    assert [label for batch in batches for label in batch.label.tolist()] == [label for _, label, _ in ROWS]
    assert batches[0].image.shape == (4, 32, 32, 3)
