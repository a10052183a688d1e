"""Parquet files as records: tables in, samples or clear errors out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from prefetchd.data.faults import SampleFault, UnreadableFile
from prefetchd.data.files import FileBuffer
from prefetchd.data.parquet.library import PYARROW_BYTES
from prefetchd.data.parquet.records import ParquetRecords
from prefetchd.errors import ConfigError, ManifestError
from tests.parquet_files import (
    contents,
    no_descriptor_is_left,  # noqa: F401
    opened,
    pa,
    pq,
    read,
    refusal,
    repeated,
    table,
)


@pytest.mark.parametrize(
    ("columns", "options", "expected"),
    [
        ({"image": [b"A", b"B"], "label": [3, -1]}, {}, [(b"A", 3), (b"B", -1)]),
        ({"image": [{"bytes": b"A", "path": "a.jpg"}], "label": [3]}, {}, [(b"A", 3)]),
        ({"id": [7], "x": [b"A"], "y": [0.5]}, {"x_column": "x", "y_column": "y"}, [(b"A", 0.5)]),
        ({"image": [b"A", b"B"], "label": ["dog", "cat"]}, {}, [(b"A", 1), (b"B", 0)]),
        ({"image": [b"A"], "target": [[1, 2, 3]]}, {}, [(b"A", (1, 2, 3))]),
        ({"image": [b"A"], "label": [True]}, {}, [(b"A", 1)]),
        ({"image": [b"A"], "a": [1], "b": [2.5]}, {"y_column": "a,b"}, [(b"A", (1.0, 2.5))]),
        ({"image": [b"A"]}, {}, [(b"A", None)]),
        ({"image": [b"A"], "__index_level_0__": [7]}, {}, [(b"A", None)]),
        ({"image": [b"A"], "label": [1]}, {"label_columns": 0}, [(b"A", None)]),
        ({"a": [{"b": {"c": b"A"}}], "l": [{"m": 4}]}, {"x_column": "a.b.c", "y_column": "l.m"}, [(b"A", 4)]),
        ({"image": pa.array([b"A"] * 3, pa.large_binary())}, {}, [(b"A", None)] * 3),
        ({"image": [b"A"], "label": pa.array(["x"]).dictionary_encode()}, {}, [(b"A", 0)]),
        ({"image": [b"A"], "label": pa.array([7], pa.uint8())}, {}, [(b"A", 7)]),
    ],
)
def test_images_in_a_column_come_with_their_labels(tmp_path: Path, columns, options, expected) -> None:
    """Columns named or found out; Hugging Face's structs; numbers, vectors, names, truth values."""
    assert read(table(tmp_path, columns), **options) == expected


@pytest.mark.parametrize(
    ("columns", "options", "likely"),
    [
        ({"img": [b"A"], "fine_label": [3], "coarse_label": [1]}, {}, "fine_label"),
        ({"image": [{"bytes": b"A"}], "id": [3], "breed": ["pug"]}, {}, "breed"),
        ({"image": [b"A"], "id": [3]}, {}, "id"),
        ({"path": ["a.jpg"], "kind": ["pug"]}, {}, "kind"),
        ({"a": [{"b": b"A"}], "kind": ["pug"]}, {"x_column": "a.b"}, "kind"),
    ],
)
def test_a_label_under_an_unknown_name_is_refused(tmp_path: Path, columns, options, likely) -> None:
    """It would be left out in silence, and y be the row's number."""
    source = table(tmp_path, columns)
    message = refusal(source, **options)
    assert message.startswith("cannot tell which of the columns of"), message
    assert f"give y_column='{likely}', label_columns=0 for no labels" in message, message
    with opened(source, label_columns=0, **options) as records:
        assert records.samples([0])[0].label is None
    with opened(source, y_column=likely, **options) as records:
        assert records.samples([0])[0].label is not None


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("dictionary", [False, True])
def test_any_row_is_found_in_any_order(tmp_path: Path, compression: str, dictionary: bool) -> None:
    """Row groups of uneven length, several files, images given more than once."""
    images = [b"%d" % (number % 40) * (1 + number % 40) for number in range(205)]
    for file in range(2):
        table(
            tmp_path, {"image": images, "label": [file * 205 + number for number in range(205)]}, f"{file}.parquet",
            row_group_size=50, compression=compression, use_dictionary=dictionary,
        )  # fmt: skip
    with opened(tmp_path) as records:
        facts, fds = records.handle()
        attached = ParquetRecords.attach(
            msgspec.msgpack.decode(msgspec.msgpack.encode(facts)), [os.dup(fd) for fd in fds]
        )
    buffer = FileBuffer()
    for number in (409, 0, 204, 205, 17, 333, 18):
        (sample,) = attached.samples([number])
        assert sample.label == number
        assert bytes(attached.read(sample, buffer, lambda _: None)) == images[number % 205]
    assert attached.where(attached.samples([256])[0]) == "1.parquet row group 1 row 1"
    attached.close()


@pytest.mark.parametrize("as_absolute", [True, False])
def test_structs_whose_bytes_are_all_null_are_read_by_their_paths(tmp_path: Path, as_absolute: bool) -> None:
    """As Hugging Face writes images that it was told not to embed."""
    for name in "ABC":
        (tmp_path / name).write_bytes(name.encode())
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = [{"bytes": None, "path": str(tmp_path / name) if as_absolute else name} for name in "ABC"]
    source = table(tmp_path, {"image": pa.array(rows, kind), "label": [1, 2, 3]}, row_group_size=2)
    assert read(source) == [(b"A", 1), (b"B", 2), (b"C", 3)]
    rows[1] = {"bytes": b"B", "path": None}
    source = table(tmp_path, {"image": pa.array(rows, kind), "label": [1, 2, 3]}, row_group_size=2)
    with opened(source) as records, pytest.raises(UnreadableFile, match="the image is null"):
        records.read(records.samples([0])[0], FileBuffer(), lambda _: None)


def test_paths_are_files_relative_to_the_files_folder_or_the_root(tmp_path: Path) -> None:
    """As in a manifest; nothing of pyarrow is needed in readers."""
    (tmp_path / "data").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"A")
    (tmp_path / "data" / "b \u732b.jpg").write_bytes(b"B")
    source = table(tmp_path / "data", {"path": ["../a.jpg", "b \u732b.jpg"], "label": ["x", "y"]})
    assert read(source) == [(b"A", 0), (b"B", 1)]
    with opened(source) as records:
        assert records.reader_bytes == 0
        assert records.where(records.samples([1])[0]) == f"a.parquet row 1: {tmp_path}/data/b \u732b.jpg"
    with opened(source, root=str(tmp_path)) as records:
        assert records.samples([0])[0].path == f"{tmp_path}/../a.jpg"


def test_class_names_of_hugging_face_are_taken_over(tmp_path: Path) -> None:
    """Their numbers stay as they are."""
    described = '{"info": {"features": {"label": {"names": ["zoo", "ant"], "_type": "ClassLabel"}}}}'
    columns = pa.table({"image": [b"A"], "label": [1]}).replace_schema_metadata({"huggingface": described})
    pq.write_table(columns, tmp_path / "a.parquet")
    with opened(tmp_path / "a.parquet") as records:
        assert records.classes == ("zoo", "ant")
        assert records.samples([0])[0].label == 1


@pytest.mark.parametrize(
    ("columns", "options", "what"),
    [
        ({"image": [b"A", b"B"], "label": [1, None]}, {}, "row 1: its label is null"),
        ({"image": [b"A", b"B"], "label": [[1], [1, 2]]}, {}, "row 1: its label has 2 numbers, and the first has 1"),
        ({"image": [b"A"], "label": [float("nan")]}, {}, "row 0: its label nan"),
        (
            {"image": [b"A"], "label": pa.array([2**63], pa.uint64())},
            {},
            "row 0: its label 9223372036854775808 does not fit",
        ),
        ({"image": [b"A"], "label": [{"a": 1}]}, {}, "row 0: its label is an object"),
        ({"image": [b"A"], "label": [b"x"]}, {}, "row 0: its label is of the type bytes"),
        ({"image": [b"A"], "label": [1]}, {"y_column": "z"}, "y_column='z'.*image .binary., label .int64."),
        ({"a": [b"A"]}, {}, "none of its columns .a. has a name that images have.*give x_column"),
        ({"image": [1.5]}, {"x_column": "image"}, "'image' holds double"),
        ({"image": [b"A"]}, {"label_columns": 2}, "label_columns=2"),
        ({"path": ["a", None]}, {}, "row 1 has no path"),
        ({"image": pa.array([], pa.binary())}, {}, "no rows"),
    ],
)
def test_a_row_or_a_column_that_does_not_fit_is_refused(tmp_path: Path, columns, options, what) -> None:
    """With its number, or what there is."""
    import re

    message = refusal(table(tmp_path, columns), **options)
    assert re.search(what, message), message


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    """And a column that only a further file lacks is named without an option that nobody gave."""
    columns = pa.table([[b"A"], [1], [2]], names=["image", "label", "label"])
    pq.write_table(columns, tmp_path / "a.parquet")
    assert "it has two columns called 'label'; rename one" in refusal(tmp_path / "a.parquet")
    table(tmp_path, {"image": [b"A"]})
    table(tmp_path, {"img": [b"B"]}, "b.parquet")
    assert f"cannot find the column 'image' in {tmp_path}/b.parquet: it has img" in refusal(tmp_path)


def test_files_must_be_parquet_and_of_one_kind(tmp_path: Path) -> None:
    """Whole, not empty, and with the same columns."""
    path = tmp_path / "b.parquet"
    for content in (b"", b"hello" * 100, Path(table(tmp_path, {"image": [b"A"]})).read_bytes()[:-50]):
        path.write_bytes(content)
        assert "b.parquet" in refusal(path)
    table(tmp_path, {"other": [b"A"]}, "b.parquet")
    assert "b.parquet" in refusal(tmp_path)
    table(tmp_path, {"image": ["a.jpg"]}, "b.parquet")
    assert "b.parquet has string in the column 'image', and the first file encoded images" in refusal(tmp_path)
    assert "no file" in refusal(tmp_path / "*.x.parquet")
    assert "No such file" in refusal(tmp_path / "none.parquet")
    os.mkfifo(tmp_path / "fifo.parquet")
    assert "it is a FIFO" in refusal(tmp_path / "fifo.parquet")


def test_null_empty_and_damaged_images_are_faults_of_their_sample(tmp_path: Path) -> None:
    """The rows around them are good, where the format lets them."""
    source = table(tmp_path, {"image": [b"A", None, b"", b"D"], "label": [1, 2, 3, 4]})
    with opened(source) as records:
        samples = records.samples(range(4))
        for number, what in ((1, "null"), (2, "empty")):
            with pytest.raises(UnreadableFile, match=what):
                records.read(samples[number], FileBuffer(), lambda _: None)
        assert bytes(records.read(samples[3], FileBuffer(), lambda _: None)) == b"D"
    structs = pa.array([{"bytes": b"A"}, None], pa.struct({"bytes": pa.binary()}))
    with opened(table(tmp_path, {"image": structs})) as records, pytest.raises(UnreadableFile, match="null"):
        records.read(records.samples([1])[0], FileBuffer(), lambda _: None)
    path = Path(table(tmp_path, {"image": [os.urandom(5000), b"B"]}, compression="zstd"))
    content = bytearray(path.read_bytes())
    content[4:3000] = bytes(2996)
    path.write_bytes(content)
    with opened(path) as records, pytest.raises(SampleFault, match="row group 0 cannot be read"):
        records.read(records.samples([0])[0], FileBuffer(), lambda _: None)


@pytest.mark.parametrize("nested", [False, True])
def test_a_column_of_the_dictionary_type_is_images(tmp_path: Path, nested: bool) -> None:
    """As a pandas category is; pyarrow then decodes the whole dictionary for each batch."""
    images: list[bytes | None] = [*repeated(20), None]
    column = pa.array(images, pa.binary()).dictionary_encode()
    if nested:
        column = pa.StructArray.from_arrays([column, pa.nulls(len(column), pa.string())], ["bytes", "path"])
    with opened(table(tmp_path, {"image": column})) as records:
        samples = records.samples(range(len(images)))
        for image, sample in zip(images[:-1], samples, strict=False):
            assert bytes(records.read(sample, FileBuffer(), lambda _: None)) == image
        with pytest.raises(UnreadableFile, match="null"):
            records.read(samples[-1], FileBuffer(), lambda _: None)
        assert records.reader_bytes > PYARROW_BYTES + 5 * 180_000


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    """By readers and by the daemon."""
    source = table(tmp_path, {"image": [b"A"]})
    with opened(source) as records:
        table(tmp_path, {"image": [b"BB"]})
        with pytest.raises(ManifestError, match="start again"):
            records.check_unchanged()
        with pytest.raises(ManifestError, match="start again"):
            contents(records)


def test_without_pyarrow_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch) -> None:
    """Only for this source."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'prefetchd\[parquet\]'"):
        opened(tmp_path / "a.parquet")


def test_pyarrow_is_not_loaded_for_other_sources(tmp_path: Path) -> None:
    """It takes a quarter of a second and 10 MiB."""
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "a.txt").write_text("a.jpg 1\n")
    (tmp_path / "a.jpg").touch()
    code = (
        "import sys; from prefetchd.data.registry import open_source; "
        "from prefetchd.config.validate import make_config; "
        f"open_source(make_config(source={str(tmp_path / 'a.txt')!r})); print('pyarrow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
