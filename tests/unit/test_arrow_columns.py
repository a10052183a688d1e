"""Columns of pyarrow, pandas, polars and Hugging Face give what the same values in lists give."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefetchd.columns.arrow import add_arrow, add_arrow_column
from prefetchd.columns.mapped_files import MappedFiles
from prefetchd.columns.store import Columns
from prefetchd.columns.writer import ColumnsWriter
from prefetchd.config.validate import make_config
from prefetchd.data.files import FileBuffer
from prefetchd.data.images.source import ImageSource
from prefetchd.data.registry import open_source
from prefetchd.data.table.arrow_files import ArrowFiles
from prefetchd.errors import ConfigError, ManifestError
from tests.unit.test_in_memory import passed, records

pa = pytest.importorskip("pyarrow")

VALUES = {
    "path": ["a.jpg", "ä.jpg", "", "d.jpg", "e.jpg"],
    "name": ["x", None, "z", "x", None],
    "image": [b"ab", b"", b"c", None, b"de"],
    "label": [3, -1, 2, 0, 7],
    "maybe": [1, None, 3, None, 5],
    "weight": [0.5, None, 1.5, 2.0, -1.0],
    "flag": [True, False, None, True, False],
    "tokens": [[1, 2], [], [3], [4, 5, 6], [7]],
    "boxes": [[[1.0, 2.0]], [], [[3.0, 4.0], [5.0, 6.0]], [], [[7.0, 8.0]]],
}


def plain(columns: Columns) -> dict[str, list[Any]]:
    """Return all values of a table as Python's own, `None` where one is missing."""
    found = {}
    for name, column in columns.items():
        values = [bytes(value) if isinstance(value, memoryview) else value for value in column]
        values = [value.tolist() if isinstance(value, np.ndarray) else value for value in values]
        found[name] = [None if column.is_missing(row) else value for row, value in enumerate(values)]
    return found


def read(table: Any, **options: Any) -> dict[str, list[Any]]:
    n_rows = table.num_rows if options.get("take") is None else len(options["take"])
    with ColumnsWriter(n_rows) as writer:
        attributes = add_arrow(writer, table, wanted=None, **options)
        assert not attributes["left_out"]
        with Columns.attach(*writer.finish(attributes)) as columns:
            return plain(columns)


def tables() -> list[Any]:
    whole = pa.table(VALUES)
    cut = pa.concat_tables([whole.slice(0, 2), whole.slice(2, 0), whole.slice(2, 3)])
    padded = pa.concat_tables([whole.slice(3), whole, whole.slice(0, 1)]).slice(2, 5)  # begins within its buffers
    large = whole.cast(
        pa.schema(
            [
                ("path", pa.large_string()),
                ("name", pa.dictionary(pa.int8(), pa.string())),
                ("image", pa.large_binary()),
                ("label", pa.int16()),
                ("maybe", pa.int64()),
                ("weight", pa.float32()),
                ("flag", pa.bool_()),
                ("tokens", pa.large_list(pa.int64())),
                ("boxes", pa.list_(pa.list_(pa.float64(), 2))),
            ]
        )
    )
    views = pa.array(whole["path"].to_pylist(), pa.string_view())
    viewed = pa.table({**{name: whole[name] for name in whole.column_names}, "path": views})
    return [whole, cut, padded.slice(0, 5), large, viewed]


@pytest.mark.parametrize("number", range(5))
def test_every_layout_gives_the_values(number: int) -> None:
    assert read(tables()[number]) == VALUES


@pytest.mark.parametrize("number", range(5))
def test_rows_are_taken_in_any_order(number: int) -> None:
    take = np.array([4, 0, 0, 2, 3])
    assert read(tables()[number], take=take) == {name: [values[row] for row in take] for name, values in VALUES.items()}


def test_long_rows_are_taken_in_any_order() -> None:
    values = [bytes([number]) * (2000 + number) for number in range(5)]
    chunks = pa.chunked_array([values[:2], values[2:]])
    take = [4, 1, 1, 0, 3]
    assert read(pa.table({"image": chunks}), take=np.array(take)) == {"image": [values[row] for row in take]}


def test_lists_with_nulls_are_taken_too() -> None:
    values = [[1, 2], None, [3]]
    assert read(pa.table({"tokens": values})) == {"tokens": values}
    assert read(pa.table({"tokens": values}), take=np.array([2, 1])) == {"tokens": [[3], None]}


def test_what_stands_under_a_null_is_not_taken() -> None:
    kept = pa.array(["abc", "def", "g"])
    hidden = pa.StringArray.from_buffers(3, kept.buffers()[1], kept.buffers()[2], pa.py_buffer(b"\x05"), 1)
    assert hidden.to_pylist() == ["abc", None, "g"]
    assert read(pa.table({"path": hidden})) == {"path": ["abc", None, "g"]}


def test_parts_of_structs_are_columns_with_a_dot() -> None:
    values = [{"label": 1, "box": {"name": "a"}, "odd": {}}, None, {"label": 3, "box": {"name": "c"}, "odd": {}}]
    table = pa.table({"meta": pa.chunked_array([values[:2], values[2:]], pa.array(values).type)})
    for wanted, found in (
        (None, {"meta.label": [1, None, 3], "meta.box.name": ["a", None, "c"]}),
        (["meta.box.name"], {"meta.box.name": ["a", None, "c"]}),
    ):
        with ColumnsWriter(3) as writer:
            add_arrow(writer, table, wanted=wanted)
            with Columns.attach(*writer.finish()) as columns:
                assert plain(columns) == found
    with records(
        pa.table({"path": ["a", "b"], "meta": [{"label": "u"}, {"label": "v"}]}), y_column="meta.label"
    ) as made:
        assert made.classes == ("u", "v")


@pytest.mark.parametrize("values", [[["a"]], [[[1], [2, 3]]], [[{"a": 1}]]])
def test_a_type_that_cannot_be_held_is_left_out_or_refused(values: list[Any]) -> None:
    column = pa.array(values)
    with ColumnsWriter(1) as writer:
        attributes = add_arrow(writer, pa.table({"odd": column}), wanted=None)
        assert list(attributes["left_out"]) == ["odd"]
        with pytest.raises(ValueError, match="cannot use the column 'odd': it"):
            add_arrow(writer, pa.table({"odd": column}), wanted=["odd"])


def test_two_columns_of_one_name_are_refused() -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    with ColumnsWriter(1) as writer, pytest.raises(ValueError, match="'a': there are two of this name"):
        add_arrow(writer, table, wanted=None)


def test_arrays_alone_may_be_columns_of_a_dictionary() -> None:
    with records({"path": pa.array(["a", "b"]), "label": pa.chunked_array([[1], [2]])}) as made:
        assert [(sample.path, sample.label) for sample in made.samples([0, 1])] == [("/data/a", 1), ("/data/b", 2)]
    with ColumnsWriter(2) as writer:
        add_arrow_column(writer, "image", pa.array([b"a", None]))
        with Columns.attach(*writer.finish()) as columns:
            assert plain(columns) == {"image": [b"a", None]}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(
                st.none() | st.text(st.characters(exclude_categories=("Cs",)), max_size=6),
                st.none() | st.binary(max_size=4),
                st.none() | st.integers(-(2**63), 2**63 - 1),
                st.lists(st.integers(0, 9), max_size=3),
            ),
            max_size=8,
        ),
        min_size=1,
        max_size=4,
    ).filter(any),
    st.data(),
)
def test_any_chunks_give_what_lists_give(chunks: list[list[tuple]], data: st.DataObject) -> None:
    kinds = {"text": pa.string(), "bytes": pa.binary(), "number": pa.int64(), "list": pa.list_(pa.int64())}
    parts = [[row[place] for row in chunk] for place in range(4) for chunk in chunks]
    columns = {
        name: pa.chunked_array(
            [pa.array(part, kind) for part in parts[place * len(chunks) : (place + 1) * len(chunks)]]
        )
        for place, (name, kind) in enumerate(kinds.items())
    }
    rows = [row for chunk in chunks for row in chunk]
    take = data.draw(st.none() | st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=9))
    expected = rows if take is None else [rows[row] for row in take]
    found = read(pa.table(columns), take=None if take is None else np.array(take))
    assert list(zip(*(found[name] for name in kinds), strict=True)) == expected


# --- images in Arrow files


def write_arrow(path: Path, table: Any, rows: int = 2, *, stream: bool = True) -> Path:
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def encoded(made: Any, sample: Any) -> bytes:
    return bytes(made.read(sample, FileBuffer(), lambda n_bytes: None))


def image_table(images: list[bytes | None], paths: list[str | None] | None = None) -> Any:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": image, "path": None if paths is None else paths[n]} for n, image in enumerate(images)]
    return pa.table({"image": pa.array(rows, kind), "label": list(range(len(images)))})


@pytest.mark.parametrize("stream", [True, False])
def test_images_stay_in_the_files_that_hold_them(tmp_path: Path, stream: bool) -> None:
    images = [b"one", b"", b"three", b"four!"]
    write_arrow(tmp_path / "data.arrow", image_table(images), stream=stream)
    with ArrowFiles.open(make_config(source=str(tmp_path / "data.arrow"))) as made:
        samples = made.samples([3, 0])
        assert [sample.label for sample in samples] == [3, 0]
        assert {sample.path for sample in samples} == {str(tmp_path / "data.arrow")}
        assert [encoded(made, sample) for sample in samples] == [
            b"four!",
            b"one",
        ]
        assert made.where(samples[0]) == f"{tmp_path / 'data.arrow'} row 3"
        with pytest.raises(Exception, match=r"empty \(0 bytes\)"):
            made.read(made.samples([1])[0], FileBuffer(), lambda n_bytes: None)
        assert not made.reads_apart
        made.check_unchanged()
        (tmp_path / "data.arrow").write_bytes(b"other")
        with pytest.raises(ManifestError, match="cannot go on with"):
            made.check_unchanged()
        with pytest.raises(ManifestError, match="cannot go on with"):
            made.read(samples[0], FileBuffer(), lambda n_bytes: None)


def test_a_mapped_table_gives_places_and_one_in_memory_gives_copies(tmp_path: Path) -> None:
    write_arrow(tmp_path / "data.arrow", image_table([b"one", b"two", b"three"]))
    mapped = pa.ipc.open_stream(pa.memory_map(str(tmp_path / "data.arrow"))).read_all()
    for table, place in ((mapped, 3), (image_table([b"one", b"two", b"three"]), 1)):
        with records(table) as made:
            sample = made.samples([2])[0]
            assert len(sample.place) == place
            assert encoded(made, sample) == b"three"


def test_a_file_that_was_replaced_or_deleted_is_not_taken_for_what_is_mapped(tmp_path: Path) -> None:
    for change in (os.unlink, lambda path: os.replace(write_arrow(tmp_path / "new", image_table([b"x"])), path)):
        path = write_arrow(tmp_path / "data.arrow", image_table([b"one", b"two"]))
        mapped = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        change(path)
        with records(mapped) as made:
            assert encoded(made, made.samples([1])[0]) == b"two"


def test_images_of_compressed_files_are_copied(tmp_path: Path) -> None:
    table = image_table([b"one" * 99, b"two" * 99])
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    path = str(tmp_path / "data-0.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table.schema, options=options) as writer:
        writer.write_table(table)
    pattern = str(tmp_path / "data-*.arrow")
    source = open_source(make_config(source=pattern))  # also its look at the disk
    assert isinstance(source, ImageSource)
    records = source.records
    assert [encoded(records, sample) for sample in records.samples([1, 0])] == [b"two" * 99, b"one" * 99]
    records.close()
    with pytest.raises(ConfigError, match=r"cannot cache .*data-\*\.arrow: its images are in memory"):
        open_source(make_config(source=pattern, cache=str(tmp_path / "cache")))


def test_memory_that_is_no_map_of_a_file_is_in_none() -> None:
    memory = np.zeros(100, np.uint8)
    assert MappedFiles().find(memory.ctypes.data, 100) is None
    assert MappedFiles().find(0, 1) is None


def test_images_may_be_paths_or_partly_paths() -> None:
    with records(image_table([None, None], ["a.jpg", "b.jpg"])) as made:
        assert made.lists_files
        assert [sample.path for sample in made.samples([0, 1])] == ["/data/a.jpg", "/data/b.jpg"]
    with records(image_table([None, b"two"], ["a.jpg", "b.jpg"])) as made:
        one, two = made.samples([0, 1])
        assert (one.path, one.place) == ("/data/a.jpg", ())
        assert encoded(made, two) == b"two"
    with pytest.raises(ManifestError, match=r"row 1 .*there is no image in the column 'image'"):
        records(image_table([b"one", None]))


# --- Hugging Face, pandas, polars


def hugging_face(images: list[bytes]) -> Any:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": image, "path": None} for image in images], "label": [n % 2 for n in range(len(images))]}
    return datasets.Dataset.from_dict(rows, features=features)


def contents(made: Any) -> list[tuple[bytes, Any]]:
    buffer = FileBuffer()
    return [
        (bytes(made.read(sample, buffer, lambda n_bytes: None)), sample.label)
        for sample in made.samples(range(len(made)))
    ]


def test_a_dataset_gives_its_rows_as_they_were_selected(tmp_path: Path) -> None:
    images = [b"%d" % number for number in range(7)]
    dataset = hugging_face(images)
    dataset.save_to_disk(str(tmp_path / "saved"))
    whole = [(image, number % 2) for number, image in enumerate(images)]
    datasets = pytest.importorskip("datasets")
    for source in (dataset, datasets.load_from_disk(str(tmp_path / "saved"))):
        for view in (source, source.select([5, 0, 2]), source.select(range(2, 5)), source.shuffle(seed=3)):
            rows = [
                whole[images.index(row["image"]["bytes"])]
                for row in view.cast_column("image", datasets.Image(decode=False))
            ]
            with records(view) as made:
                assert made.classes == ("cat", "dog")
                assert contents(made) == rows
        odd = source.filter(lambda label: label == 1, input_columns=["label"], load_from_cache_file=False)
        with records(odd) as made:
            assert contents(made) == [row for row in whole if row[1]]
        with records(source.rename_column("label", "y"), y_column="y") as made:
            assert made.classes == ("cat", "dog")


def test_a_saved_folder_gives_the_same_samples_as_the_dataset(tmp_path: Path) -> None:
    dataset = hugging_face([b"%d" % number for number in range(7)])
    dataset.save_to_disk(str(tmp_path / "saved"), num_shards=3)
    with ArrowFiles.open(make_config(source=str(tmp_path / "saved"))) as made, records(dataset) as expected:
        assert contents(made) == contents(expected)
        assert made.classes == ("cat", "dog")


def test_a_folder_of_several_datasets_is_refused_with_the_one_to_give(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    splits = datasets.DatasetDict({"train": hugging_face([b"a"]), "test": hugging_face([b"b"])})
    splits.save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ManifestError, match=r"the data sets train, test; give the folder of one, .*saved/train"):
        open_source(make_config(source=str(tmp_path / "saved")))
    with pytest.raises(ConfigError, match=r"2 data sets; give one, as in data\['train'\]"):
        passed(splits)


def test_a_transform_of_a_dataset_is_refused() -> None:
    dataset = hugging_face([b"a"]).with_transform(lambda rows: rows)
    with pytest.raises(ConfigError, match=r"cannot use the transform of this Dataset.*reset_format\(\)"):
        passed(dataset)


def test_a_streamed_dataset_is_refused() -> None:
    with pytest.raises(ConfigError, match="this IterableDataset: its samples come one after another"):
        passed(hugging_face([b"a"]).to_iterable_dataset())


@pytest.mark.parametrize("content", [b"", b"no arrow file", b"ARROW1\0\0cut"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.arrow").write_bytes(content)
    with pytest.raises(ManifestError, match=r"cannot read .*data\.arrow: .*; write the files again"):
        ArrowFiles.open(make_config(source=str(tmp_path / "data.arrow")))


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="it has no samples"):
        passed(image_table([]))
    write_arrow(tmp_path / "data.arrow", image_table([]))
    with pytest.raises(ManifestError, match="it has no rows"):
        ArrowFiles.open(make_config(source=str(tmp_path / "data.arrow")))


def frames() -> list[Any]:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    values = {name: VALUES[name] for name in ("path", "label", "maybe", "weight", "flag", "image", "tokens")}
    typed = pandas.DataFrame(values, index=[9, 8, 7, 6, 5]).astype({"maybe": "Int64", "flag": "boolean"})
    arrow = pandas.DataFrame({name: pandas.Series(pandas.array(values[name], dtype=pandas.ArrowDtype(kind)))
                              for name, kind in (("path", pa.string()), ("maybe", pa.int64()))})  # fmt: skip
    old = typed.astype({"path": object})
    return [pandas.DataFrame(values), typed, arrow, old, polars.DataFrame(values)]


@pytest.mark.parametrize("number", range(5))
def test_frames_give_their_columns(number: int) -> None:
    frame = frames()[number]
    table = passed(frame)
    with Columns.attach(table.description, table.fd) as columns:
        assert columns.attributes["left_out"] == {}
        found = plain(columns)
    for name, values in found.items():
        expected: list[Any] = VALUES[name]
        if number != 4 and name == "weight":
            expected = [float("nan") if value is None else value for value in expected]
        if number == 0 and name == "maybe":
            expected = [1.0, float("nan"), 3.0, float("nan"), 5.0]
        assert repr(values) == repr(expected), name


def test_categories_are_names_or_numbers() -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    paths = ["a.jpg", "b.jpg", "c.jpg"]
    names = pandas.DataFrame({"path": paths, "label": pandas.Categorical(["v", "u", "v"], categories=["v", "u", "w"])})
    with records(names) as made:
        assert made.classes == ("u", "v")
        assert [sample.label for sample in made.samples(range(3))] == [1, 0, 1]
    numbers = pandas.DataFrame({"path": paths, "label": pandas.Categorical([7, None, 5])})
    with records(numbers, missing_label=-1) as made:
        assert [sample.label for sample in made.samples(range(3))] == [7, -1, 5]
    with records(
        polars.DataFrame({"path": paths, "label": polars.Series(["v", "u", "v"], dtype=polars.Categorical)})
    ) as made:
        assert [sample.label for sample in made.samples(range(3))] == [1, 0, 1]


def test_series_may_be_paths_or_columns() -> None:
    pandas = pytest.importorskip("pandas")
    series = pandas.Series(["a.jpg", "b.jpg"], index=[5, 5])
    with records(series) as made, records({"path": series, "label": pandas.Series([2, 1])}) as both:
        assert [sample.path for sample in made.samples([0, 1])] == ["/data/a.jpg", "/data/b.jpg"]
        assert [sample.label for sample in both.samples([0, 1])] == [2, 1]
    with records((series, pandas.Series([2, 1]))) as both:
        assert [sample.label for sample in both.samples([0, 1])] == [2, 1]


def test_frames_with_two_columns_of_one_name_or_columns_of_times_are_refused() -> None:
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ManifestError, match="'path': there are two of this name"):
        passed(pandas.DataFrame([["a", "b"]], columns=["path", "path"]))
    times = pandas.DataFrame({"path": ["a"], "label": pandas.to_datetime(["2020-01-01"])})
    with pytest.raises(ManifestError, match="it holds datetime64"):
        records(times)


def test_what_a_list_and_a_table_hold_has_one_digest() -> None:
    pairs = [("a.jpg", 1), ("b.jpg", 0)]
    columns = {"path": ["a.jpg", "b.jpg"], "label": [1, 0]}
    sources = [columns, pa.table(columns), pa.table({**columns, "label": pa.array([1, 0], pa.uint8())})]
    for library in ("pandas", "polars"):
        sources.append(pytest.importorskip(library).DataFrame(columns))
    with records(pairs) as expected:
        for source in sources:
            with records(source) as made:
                assert made.digest == expected.digest


def test_tensors_become_arrays() -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.data import Subset, TensorDataset

    x, y = torch.arange(6.0).reshape(3, 2), torch.tensor([2, 0, 1])
    for source, rows in (
        ((x, y), [0, 1, 2]),
        (TensorDataset(x, y), [0, 1, 2]),
        (Subset(TensorDataset(x, y), [2, 0]), [2, 0]),
    ):
        table = passed(source)
        assert table.kind == "arrays"
        with Columns.attach(table.description, table.fd) as columns:
            assert columns["x"].values.tolist() == x[rows].tolist()
            assert columns["y"].values.tolist() == y[rows].tolist()
