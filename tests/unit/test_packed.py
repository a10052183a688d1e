"""Packed shards: MDS and LitData's chunks, what they hold, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefetchd.config.validate import make_config
from prefetchd.data.faults import SampleFault
from prefetchd.data.files import FileBuffer
from prefetchd.data.kinds import kind_of
from prefetchd.data.packed.records import PackedRecords
from prefetchd.data.table.opener import open_table
from prefetchd.errors import ConfigError, ManifestError
from tests.packed import arrow_chunk, write_litdata, write_mds
from tests.records import jpeg

COLUMNS = {"image": "bytes", "label": "int", "name": "str"}
ROWS = [(jpeg(n), n % 3, f"n{n}") for n in range(10)]


def opened(folder: Path, **options: Any) -> PackedRecords:
    return PackedRecords.open(make_config(source=str(folder), **options))


def contents(records: PackedRecords) -> list[tuple[bytes, Any]]:
    """The bytes and labels of all samples, backwards, as a reader that attached reads them."""
    facts, _ = records.handle()
    buffer = FileBuffer()
    found = []
    for sample in reversed(records.samples(range(len(records)))):
        found.append((bytes(records.read(sample, buffer, lambda _: None)), sample.label))
    assert facts["samples"] == len(found)
    return found[::-1]


@pytest.fixture(params=["mds", "zstd", "litdata", "arrow"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "arrow":
        pytest.importorskip("pyarrow")
        return write_litdata(tmp_path / "data", COLUMNS, ROWS, in_arrow=True)
    if request.param == "litdata":
        return write_litdata(tmp_path / "data", COLUMNS, ROWS)
    if request.param == "zstd":
        pytest.importorskip("zstandard")
        return write_mds(tmp_path / "data", COLUMNS, ROWS, compression="zstd")
    return write_mds(tmp_path / "data", COLUMNS, ROWS)


def test_samples_are_those_that_were_written(folder: Path) -> None:
    assert kind_of(str(folder)) == kind_of(str(folder / "index.json")) == "packed"
    with opened(folder) as records:
        assert contents(records) == [(image, label) for image, label, _ in ROWS]
        assert (records.label_dtype, records.label_shape, records.classes) == ("int64", (), None)
        digest = records.digest
        shards, places = records.places()
        assert shards.tolist() == [0] * 4 + [1] * 4 + [2] * 2
        assert all(np.diff(places[:4]) > 0)
    with opened(folder / "index.json", y_column="name") as records:
        assert records.classes == tuple(sorted(name for *_, name in ROWS))
        assert records.digest != digest
    with opened(folder, label_columns=0) as records:
        assert [sample.label for sample in records.samples([0, 9])] == [None, None]


def test_labels_of_several_columns_and_of_arrays(tmp_path: Path) -> None:
    columns = {"x": "jpeg", "f": "float32", "v": "ndarray:float32:3"}
    rows = [(jpeg(n), n / 2, [n, 1, 2.5]) for n in range(3)]
    with opened(write_mds(tmp_path, columns, rows), y_column="f,v") as records:
        assert records.samples([1])[0].label == (0.5, 1, 1, 2.5)
        assert (records.label_shape, records.label_dtype) == ((4,), "float32")


def test_decompressed_shards_beside_the_others_are_taken(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    folder = write_mds(tmp_path / "zstd", COLUMNS, ROWS, compression="zstd")
    write_mds(tmp_path / "plain", COLUMNS, ROWS, compression="zstd")
    with opened(folder) as records:
        compressed_digest = records.digest
        assert records.reader_bytes > 0
    for path in sorted(folder.glob("*.zstd")):
        import zstandard

        path.with_suffix("").write_bytes(zstandard.ZstdDecompressor().decompress(path.read_bytes()))
        path.unlink()
    with opened(folder) as records:
        assert records.reader_bytes == 0
        assert records.digest == compressed_digest
        assert contents(records) == [(image, label) for image, label, _ in ROWS]


@pytest.mark.parametrize(
    ("columns", "options", "says"),
    [
        ({"image": "bytes", "label": "pkl"}, {}, "it has pkl"),
        ({"image": "pil", "label": "int"}, {}, "no column of encoded images"),
        ({"image": "pil", "label": "int"}, {"x_column": "image"}, "write them encoded"),
        ({"a": "bytes", "b": "bytes"}, {}, "give x_column='a' or another"),
        ({"image": "bytes", "foo": "int"}, {}, "give y_column='foo'"),
        (COLUMNS, {"x_column": "imag"}, "there are 'image', 'label', 'name'"),
        (COLUMNS, {"y_column": "nam"}, "see y_column"),
        (COLUMNS, {"label_columns": 1}, "name the columns with y_column"),
    ],
)
def test_columns_that_do_not_fit_are_refused_with_what_to_give(
    tmp_path: Path, columns: dict, options: dict, says: str
) -> None:
    values = {"bytes": b"x", "int": 1, "str": "n", "pkl": b"pickled", "pil": b"pixels"}
    write_mds(tmp_path, columns, [[values[encoding] for encoding in columns.values()]])
    with pytest.raises(ManifestError) as caught:
        opened(tmp_path, **options)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"compression": "zstd"}, "write them again without compression"),
        ({"encryption": {"algorithm": "fernet"}}, "encrypted chunks"),
        ({"item_loader": "TokensLoader"}, "convert tokens to .npy"),
        ({"data_spec": json.dumps([1, {"type": "builtins.list", "context": None, "children_spec": []}])}, "plain dict"),
        ({"data_format": ["bytes"]}, "describes no shards"),
    ],
)
def test_chunks_of_litdata_without_random_access_are_refused(tmp_path: Path, config: dict, says: str) -> None:
    write_litdata(tmp_path, COLUMNS, ROWS, **config)
    with pytest.raises(ManifestError) as caught:
        opened(tmp_path)
    assert says in str(caught.value)


def test_rows_of_litdata_in_arrow_files_have_places(tmp_path: Path) -> None:
    """Columns that nobody asks for may hold anything; samples and an Arrow file in one chunk are read as samples."""
    pytest.importorskip("pyarrow")
    columns = {**COLUMNS, "score": "float", "tags": "json"}
    rows = [(*row, n / 2, [["a", "b"][: n % 3]]) for n, row in enumerate(ROWS)]
    folder = write_litdata(tmp_path / "nested", columns, rows, in_arrow=True)
    with opened(folder, y_column="label,score") as records:
        assert contents(records) == [(image, (label, n / 2)) for n, (image, label, _) in enumerate(ROWS)]
    with pytest.raises(ManifestError, match=r"its column 'tags' holds list<.*, in an Arrow file; write it as a number"):
        opened(folder, y_column="tags")
    both = write_litdata(tmp_path / "both", COLUMNS, ROWS, per_chunk=len(ROWS))
    chunk = both / "chunk-0-0.bin"
    footer = arrow_chunk(list(COLUMNS), ROWS)[4 * (len(ROWS) + 2) :]
    chunk.write_bytes(chunk.read_bytes() + footer)
    index = json.loads((both / "index.json").read_text())
    index["chunks"][0]["chunk_bytes"] = chunk.stat().st_size
    (both / "index.json").write_text(json.dumps(index))
    with opened(both) as records:
        assert contents(records) == [(image, label) for image, label, _ in ROWS]


def test_arrow_files_without_places_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rows = [(bytes(1000) + image, label, name) for image, label, name in ROWS]
    packed = write_litdata(tmp_path / "zstd", COLUMNS, rows, in_arrow=True, ipc_compression="zstd")
    with pytest.raises(ManifestError, match="its Arrow file is compressed; write it again without compression"):
        opened(packed)
    rows[3] = (ROWS[3][0], None, "n")
    with pytest.raises(ManifestError, match="1 rows have nothing in the column 'label'"):
        opened(write_litdata(tmp_path / "none", COLUMNS, rows, in_arrow=True))
    other = write_litdata(tmp_path / "other", COLUMNS, ROWS, in_arrow=True)
    index = json.loads((other / "index.json").read_text())
    index["config"]["data_spec"] = index["config"]["data_spec"].replace("label", "class")
    (other / "index.json").write_text(json.dumps(index))
    with pytest.raises(ManifestError, match="its Arrow file has 0 columns 'class'; download or write it again"):
        opened(other, y_column="class")
    damaged = write_litdata(tmp_path / "damaged", COLUMNS, ROWS, in_arrow=True)
    change(damaged / "chunk-0-0.bin", -60, bytes(30))
    with pytest.raises(ManifestError, match="download or write it again"):
        opened(damaged)


def change(path: Path, at: int, new: bytes) -> None:
    raw = bytearray(path.read_bytes())
    raw[at : at + len(new)] = new
    path.write_bytes(raw)


def edited_index(folder: Path, **changes: Any) -> None:
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0].update(changes)
    (folder / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: change(folder / "shard.00000.mds", 0, b"\5"), "it says 5 samples, and 4 are listed"),
        (lambda folder: change(folder / "shard.00000.mds", 8, b"\xff\xff\xff\xff"), "table of offsets is wrong"),
        (lambda folder: change(folder / "shard.00000.mds", 4, b"\0\0\0\0"), "table of offsets is wrong"),
        (lambda folder: (folder / "shard.00001.mds").write_bytes(b""), "it has 0 bytes"),
        (lambda folder: (folder / "shard.00001.mds").unlink(), "No such file"),
        (lambda folder: edited_index(folder, column_encodings=["int", "int", "int"]), "other columns than the first"),
        (lambda folder: edited_index(folder, version=1), "write them as MDS 2"),
        (lambda folder: edited_index(folder, raw_data={"basename": "../x", "bytes": 9}), "outside the folder"),
        (lambda folder: edited_index(folder, samples=1 << 40), "describes no shards"),
        (lambda folder: edited_index(folder, samples=float("inf")), "describes no shards"),
        (lambda folder: (folder / "index.json").write_text("[" * 100_000), "describes no shards"),
    ],
)
def test_damaged_shards_are_refused(tmp_path: Path, damage: Any, says: str) -> None:
    folder = write_mds(tmp_path, COLUMNS, ROWS)
    damage(folder)
    with pytest.raises(ManifestError) as caught:
        opened(folder)
    assert says in str(caught.value)


def test_a_size_within_a_sample_that_is_wrong_is_refused(tmp_path: Path) -> None:
    folder = write_litdata(tmp_path, COLUMNS, ROWS)
    change(folder / "chunk-0-0.bin", 4 * 6, b"\1\0\0\0")
    with pytest.raises(ManifestError, match="the columns of sample 0 take"):
        opened(folder)


@pytest.mark.parametrize("content", [b"nothing", b"\x28\xb5\x2f\xfd" + bytes(40)])
def test_damaged_compression_is_refused(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("zstandard")
    folder = write_mds(tmp_path, COLUMNS, ROWS, compression="zstd")
    path = folder / "shard.00001.mds.zstd"
    path.write_bytes(content.ljust(path.stat().st_size, b"x"))
    with pytest.raises(ManifestError, match="cannot decompress"):
        opened(folder)


def test_other_compression_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    folder = write_mds(tmp_path, COLUMNS, ROWS, compression="zstd")
    edited_index(folder, compression="br:11")
    with pytest.raises(ManifestError, match="only zstd is read"):
        opened(folder)


def test_a_shard_that_changes_while_in_use_stops_the_loop_and_an_empty_image_is_one_bad_sample(tmp_path: Path) -> None:
    rows = [(b"" if n == 2 else image, label, name) for n, (image, label, name) in enumerate(ROWS)]
    folder = write_mds(tmp_path, COLUMNS, rows)
    with opened(folder) as records:
        with pytest.raises(SampleFault, match="empty"):
            records.read(records.samples([2])[0], FileBuffer(), lambda _: None)
        sample = records.samples([1])[0]
        assert records.where(sample).endswith(f"shard.00000.mds at byte {sample.place[1]}")
        change(folder / "shard.00000.mds", 300, b"zz")
        with pytest.raises(ManifestError, match="written to"):
            records.read(sample, FileBuffer(), lambda _: None)


def test_fields_are_columns(tmp_path: Path) -> None:
    folder = write_mds(
        tmp_path, {**COLUMNS, "v": "ndarray:float32:3"}, [(*row, [1, 2, n]) for n, row in enumerate(ROWS)]
    )
    fields = {"image": "image", "label": "label", "name": "text", "v": "array"}
    config = make_config(source=str(folder), fields=fields)
    records = open_table(config, "packed")
    try:
        sample = records.samples([5])[0]
        assert bytes(records.fetch(sample, 0, FileBuffer(), lambda _: None)) == ROWS[5][0]
        assert sample.values[1] == 2
    finally:
        records.close()


def test_fields_of_compressed_shards_and_of_missing_columns_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    plain = write_litdata(tmp_path / "plain", COLUMNS, ROWS)
    with pytest.raises(ConfigError, match="there are 'image', 'label', 'name'"):
        open_table(make_config(source=str(plain), fields={"image": "image", "caption": "text"}), "packed")
    folder = write_mds(tmp_path / "zstd", COLUMNS, ROWS, compression="zstd")
    with pytest.raises(ManifestError, match="zstd -d"):
        open_table(make_config(source=str(folder), fields={"image": "image", "label": "label"}), "packed")
