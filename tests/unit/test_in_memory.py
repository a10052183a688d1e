"""Sources in memory: what the trainer gives becomes a table, and the table's rows are the samples that lists give."""

from __future__ import annotations

import os
import pathlib
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from prefetchd.client.in_memory.recognize import take_in
from prefetchd.columns.passed import PassedTable
from prefetchd.columns.store import Columns
from prefetchd.config.validate import make_config
from prefetchd.data.files import FileBuffer
from prefetchd.data.table.records import TableRecords
from prefetchd.errors import ConfigError, ManifestError

PATHS = ["a.jpg", "b.png", "c d.jpg"]


def passed(source: Any, **options: Any) -> PassedTable:
    return take_in(source, make_config(source="<source>", **options))


def records(source: Any, **options: Any) -> TableRecords:
    """Return the records of a source, attached as a reader attaches."""
    table = passed(source, **options)
    config = make_config(source=table.name, root="/data", **options)
    assert table.kind == "table"
    with TableRecords.make(Columns.attach(table.description, table.fd), config, table.name) as made:
        handle, fds = made.handle()
        attached = TableRecords.attach(handle, [os.dup(fd) for fd in fds])
        assert (attached.digest, attached.classes, len(attached)) == (made.digest, made.classes, len(made))
        return attached


def rows_of(source: Any, **options: Any) -> list[tuple[str, Any]]:
    with records(source, **options) as made:
        return [(sample.path, sample.label) for sample in made.samples(range(len(made)))]


def labels_of(source: Any, **options: Any) -> list[Any]:
    return [label for _, label in rows_of(source, **options)]


def pairs(labels: list[Any]) -> list[tuple[str, Any]]:
    return list(zip(PATHS, labels, strict=False))


# --- what the samples are


def test_a_list_of_pairs_gives_paths_below_the_root_and_labels():
    with records(pairs([3, 1, 2])) as made:
        samples = made.samples([2, 0])
        assert [(sample.path, sample.label, sample.line) for sample in samples] == [
            ("/data/c d.jpg", 2, 3),
            ("/data/a.jpg", 3, 1),
        ]
        assert (made.label_dtype, made.label_shape, made.classes, made.name) == ("int64", (), None, "<list of 3 pairs>")
        assert made.where(samples[0]) == "<list of 3 pairs> row 2: /data/c d.jpg"
        assert made.reads_apart
        assert made.lists_files
        assert made.shared_bytes > 0


@pytest.mark.parametrize(
    "source",
    [
        [["a.jpg", 3], ["b.png", 1], ["c d.jpg", 2]],
        [(pathlib.Path(path), np.int64(label)) for path, label in zip(PATHS, (3, 1, 2), strict=True)],
        tuple((path, label) for path, label in zip(PATHS, (3, 1, 2), strict=True)),
        (PATHS, [3, 1, 2]),
        (np.array(PATHS), np.array([3, 1, 2])),
        {"path": PATHS, "label": [3, 1, 2]},
        {"path": np.array(PATHS, object), "label": np.array([3, 1, 2], np.int8)},
        {"label": (3, 1, 2), "filename": PATHS},
        {"path": deque(PATHS), "label": deque([3, 1, 2])},
        deque([("a.jpg", 3), ("b.png", 1), ("c d.jpg", 2)]),
        [{"path": path, "label": label} for path, label in zip(PATHS, (3, 1, 2), strict=True)],
    ],
)
def test_every_spelling_gives_the_same_samples_and_the_same_digest(source):
    with records(source) as made, records(pairs([3, 1, 2])) as expected:
        assert made.digest == expected.digest
        assert made.samples(range(3)) == expected.samples(range(3))


def test_paths_alone_have_no_labels():
    assert rows_of(PATHS) == [(f"/data/{path}", None) for path in PATHS]
    assert rows_of(np.array(PATHS)) == rows_of(PATHS)
    assert rows_of([(path,) for path in PATHS]) == rows_of(PATHS)
    assert rows_of(pairs([1, 2, 3]), label_columns=0) == rows_of(PATHS)


def test_paths_may_be_bytes_that_are_not_utf8():
    raw = os.fsdecode(b"\xff.jpg")
    assert rows_of([(raw, 1)]) == [("/data/" + raw, 1)]


def test_encoded_images_are_read_from_the_table():
    images = [b"\xff\xd8one", b"", b"\xff\xd8three"]
    with records([(image, number) for number, image in enumerate(images)]) as made:
        samples = made.samples(range(3))
        assert [sample.label for sample in samples] == [0, 1, 2]
        buffer = FileBuffer()
        assert bytes(made.read(samples[2], buffer, lambda n_bytes: None)) == images[2]
        with pytest.raises(Exception, match=r"empty \(0 bytes\)"):
            made.read(samples[1], buffer, lambda n_bytes: None)
        assert made.where(samples[2]) == "<list of 3 pairs> row 2"
        assert not made.lists_files


def test_a_sample_that_is_not_there_is_an_index_error():
    with records(PATHS) as made:
        for row in (-1, 3):
            with pytest.raises(IndexError):
                made.samples([row])


# --- labels


def test_text_labels_become_sorted_classes():
    with records(pairs(["dog", "cat", "dog"])) as made:
        assert made.classes == ("cat", "dog")
        assert [sample.label for sample in made.samples(range(3))] == [1, 0, 1]


def test_fractions_make_all_labels_float32():
    with records(pairs([1.5, 2.0, -0.25])) as made:
        assert made.label_dtype == "float32"
        assert [sample.label for sample in made.samples(range(3))] == [1.5, 2.0, -0.25]
    assert labels_of(pairs([1, 2.5, 3])) == [1.0, 2.5, 3.0]


def test_truth_values_are_numbers():
    labels = labels_of(pairs([True, False, True]))
    assert labels == [1, 0, 1]
    assert {type(label) for label in labels} == {int}


@pytest.mark.parametrize(
    "source",
    [
        [("a.jpg", 1, 2.5), ("b.jpg", 3, 4)],
        [("a.jpg", [1, 2.5]), ("b.jpg", [3, 4])],
        [("a.jpg", np.array([1, 2.5])), ("b.jpg", np.array([3.0, 4.0]))],
        {"path": ["a.jpg", "b.jpg"], "label": np.array([[1, 2.5], [3, 4]])},
    ],
)
def test_several_numbers_are_a_vector(source):
    with records(source) as made:
        assert (made.label_shape, made.label_dtype) == ((2,), "float32")
        assert [sample.label for sample in made.samples(range(2))] == [(1.0, 2.5), (3.0, 4.0)]


def test_columns_are_named_by_options():
    columns = {"x": [1, 2], "file": ["a.jpg", "b.jpg"], "y": [0.5, 1.5], "name": ["u", "v"]}
    assert labels_of(columns, y_column="x") == [1, 2]
    assert labels_of(columns, y_column=["x", "y"]) == [(1.0, 0.5), (2.0, 1.5)]
    assert labels_of(columns, x_column=1, y_column="3") == [0, 1]
    assert labels_of(columns, x_column="name", label_columns=0) == [None, None]
    assert labels_of(columns, label_columns=1) == [0, 1]


def test_several_names_in_one_label_are_a_vector_of_0_and_1():
    with records(pairs(["cat|dog", "", "ant | cat"]), label_separator="|") as made:
        assert (made.classes, made.label_dtype, made.label_shape) == (("ant", "cat", "dog"), "float32", (3,))
        assert [sample.label for sample in made.samples(range(3))] == [(0, 1, 1), (0, 0, 0), (1, 1, 0)]


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_missing_labels_are_refused_or_given(missing):
    with pytest.raises(ManifestError, match=r"row 1 of <list of 3 pairs>.*is missing.*missing_label=-1"):
        records(pairs([3, missing, 2]))
    assert labels_of(pairs([3, missing, 2]), missing_label=-1) == [3, -1, 2]
    assert labels_of(pairs([3.5, missing, 2]), missing_label=-1) == [3.5, -1.0, 2.0]
    last = labels_of(pairs([3, 2, missing]), missing_label="nan")[2]
    assert last != last


@pytest.mark.parametrize("missing", [None, "", "NaN", " none "])
def test_missing_names_are_refused_or_given(missing):
    with pytest.raises(ManifestError, match=r"row 1 of <list of 3 pairs>: its label is missing.*missing_label='none'"):
        records(pairs(["cat", missing, "dog"]))
    with records(pairs(["cat", missing, "dog"]), missing_label="other") as made:
        assert made.classes == ("cat", "dog", "other")
        assert [sample.label for sample in made.samples(range(3))] == [0, 2, 1]


def test_names_that_look_like_lists_are_refused_unless_taken_whole():
    with pytest.raises(ManifestError, match=r"looks like a list.*label_separator="):
        records(pairs(["cat|dog", "cat", "dog"]))
    assert labels_of(pairs(["cat|dog", "cat", "none"]), label_separator="") == [1, 0, 2]


def test_masks_are_paths_below_the_root():
    source = [("a.jpg", "a.png"), ("b.jpg", "masks/b.png")]
    assert rows_of(source, target="mask") == [("/data/a.jpg", "/data/a.png"), ("/data/b.jpg", "/data/masks/b.png")]
    columns = {"image": ["a.jpg"], "mask": ["a.png"], "label": [1]}
    assert rows_of(columns, target="mask") == [("/data/a.jpg", "/data/a.png")]


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([2**63], "does not fit 64 bits|do not fit 64 bits"),
        ([float("inf")], "row 0 .*not finite"),
        ([1e39], "row 0 .*not finite, or does not fit float32"),
        ([0.5, 16777217], "16777217 .*float32 does not hold it exactly"),
        ([[1, 2], [1]], "row 1 .*has 1 numbers, and the first has 2"),
        ([[], []], "has 0 numbers"),
        (["a", 1], "row 1 has the type int"),
        ([b"a", b"b"], "holds bytes"),
        ([None, None], "all its values are None"),
        ([object()], "row 0 has the type object"),
        ([["cat"]], "other values than numbers"),
    ],
)
def test_labels_that_cannot_be_delivered_are_refused(labels, reason):
    with pytest.raises(ManifestError, match=reason) as refused:
        records(pairs(labels))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"missing_label": "x"}, "cannot use missing_label='x'.*its labels are numbers"),
        ({"label_separator": "|"}, "cannot use label_separator='|'.*numbers"),
        ({"label_columns": 0, "missing_label": "-1"}, "cannot use missing_label.*no labels"),
        ({"label_columns": 2}, "label_columns=2"),
        ({"y_column": "z"}, "cannot find the column y_column='z'.*'path', 'label'"),
        ({"x_column": "label"}, "holds int64 numbers.*x_column"),
        ({"target": "mask"}, "label are no column of paths"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, reason):
    with pytest.raises(ManifestError, match=reason):
        records(pairs([1, 2, 3]), **options)


@pytest.mark.parametrize(
    ("array", "held"),
    [
        (np.zeros(3, [("a", "i4")]), r"\[\('a', '<i4'\)\]"),
        (np.array(["2020"], "M8[D]"), r"datetime64\[D\]"),
        (np.array([[1, 2], [3, 4]], object), r"objects \(int\)"),
        (np.float64(3), "one value, without an axis of rows"),
    ],
)
def test_an_array_of_neither_numbers_nor_paths_is_refused_by_what_it_holds(array, held):
    for source in (array, (array, np.arange(3))) if np.ndim(array) else (array,):
        with pytest.raises(ManifestError, match=f"cannot serve this (ndarray|float64): it holds {held}; give an array"):
            take_in(source, make_config(source="<source>"))
    assert rows_of(np.array(PATHS, object)) == rows_of(PATHS)


# --- columns


def test_a_column_that_could_be_the_label_or_not_is_refused():
    with pytest.raises(ManifestError, match=r"cannot tell which of the columns .* 'breed'.*y_column='breed'"):
        records({"path": PATHS, "id": [1, 2, 3], "breed": ["a", "b", "c"]})


def test_columns_of_images_that_are_ambiguous_are_refused():
    with pytest.raises(ManifestError, match=r"cannot tell which column .* as 2 name or hold images.*x_column"):
        records({"left": ["a.jpg"], "right": ["b.jpg"], "label": [1]})
    with pytest.raises(ManifestError, match=r"as none has a usual name.*x_column"):
        records({"u": ["a"], "label": [1]})


def test_a_column_that_cannot_be_held_is_refused_only_when_it_is_asked_for():
    columns = {"path": PATHS, "label": [1, 2, 3], "extra": [object()] * 3}
    assert labels_of(columns) == [1, 2, 3]
    with pytest.raises(ManifestError, match=r"cannot use y_column='extra'.*type object"):
        records(columns, y_column="extra")
    with pytest.raises(ManifestError, match=r"cannot use the column 'extra' of <dictionary of 3 rows>.*type object"):
        records(columns, x_column="path", y_column="extra")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_labels_of_any_float_type_are_checked_without_a_warning(dtype):
    assert labels_of({"path": PATHS, "label": np.array([0.5, -2, 3], dtype)}) == [0.5, -2.0, 3.0]
    with pytest.raises(ManifestError, match=r"row 1 .* is not finite"):
        records({"path": PATHS, "label": np.array([0.5, np.inf, 3], dtype)})


def test_a_column_of_objects_is_refused_by_its_parts():
    pa = pytest.importorskip("pyarrow")
    rows = pa.table({"path": PATHS, "label": [{"a": 1, "b": 2}] * 3})
    with pytest.raises(ManifestError, match=r"its values have parts; give one of them: 'label\.a', 'label\.b'$"):
        records(rows)
    assert labels_of(rows, y_column="label.b") == [2, 2, 2]


def test_only_the_columns_that_are_named_are_copied():
    columns = {"path": PATHS, "label": [1, 2, 3], "extra": [b"x" * 9] * 3}
    for options, expected in (
        ({}, {"path", "label", "extra"}),
        ({"x_column": "path", "y_column": "label"}, {"path", "label"}),
        ({"x_column": "0", "label_columns": 0}, {"path"}),
    ):
        table = passed(columns, **options)
        with Columns.attach(table.description, table.fd) as made:
            assert set(made) == expected


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ([], "the list: it has no samples"),
        ([None], "row 0 has the type NoneType"),
        ([5], "row 0 has the type int"),
        ([()], "row 0 is empty; give a tuple"),
        ([["a.jpg"] * 5000], r"row 0 has 5000 values, as if columns were meant; give a dict of columns, or a tuple"),
        ([(np.zeros((4, 4, 3), np.uint8), 1)], r"holds uint8 numbers.*decoded images as arrays \(x, y\)"),
        ([("a.jpg", 1), ("b.jpg",)], "row 1 has 1 values, and the first 2"),
        ([("a.jpg", 1), "b.jpg"], "row 1 has the type str"),
        ([(None, 1)], "'path'.*None"),
        ([(None, 1), ("a.jpg", 2)], "row 0 .*there is no path"),
        ([("", 1), ("a.jpg", 2)], "row 0 .*there is no path"),
        ([(3, "a.jpg")], "holds int64 numbers.*x_column"),
        ([{"path": "a", "label": 1}, {"path": "b"}], "row 1 has other keys"),
        ({}, "it has no columns"),
        ({"path": []}, "it has no samples"),
        ({"path": ["a.jpg"], "label": [1, 2]}, r"differ in length \(path 1, label 2\)"),
        ((["a.jpg", "b.jpg"], [1]), r"differ in length \(path 2, label 1\)"),
        ({"path": ["a.jpg"], "label": 1}, "'label'.*type int"),
        ({"path": "a.jpg"}, "'path'.*type str"),
        ({"path": {"a.jpg", "b.jpg"}}, "'path'.*type set"),
        ((np.zeros((3, 2)), np.zeros(2)), "x has 3 rows and y has 2"),
        ((np.zeros((3, 2)), np.array(["a", "b", "c"])), "y from memory: its values .* are no numbers"),
        ((np.zeros((0, 2)), np.zeros(0)), "no samples"),
        ((np.zeros(2), np.zeros(2), np.zeros(2)), "a tuple of 3 arrays"),
        ({"x": np.zeros((2, 2)), "y": np.zeros(2), "z": np.zeros(2)}, None),
    ],
)
def test_what_cannot_be_a_table_is_refused(source, reason):
    if reason is None:
        assert passed(source).kind == "arrays"
        return
    with pytest.raises(ManifestError, match=reason) as refused:
        records(source)
    assert "\n" not in str(refused.value)


@dataclass
class Samples:
    """Looks like a torch `Dataset`."""

    n_samples: int

    def __len__(self) -> int:
        return self.n_samples

    def __getitem__(self, index: int) -> int:
        return index


class Loader(Samples):
    """Looks like a torch `DataLoader`."""

    batch_sampler = collate_fn = dataset = None


class Pipeline:
    """Looks like a `tf.data.Dataset`."""

    element_spec = None

    def __iter__(self) -> Any:
        return iter([])


class Lazy:
    """Looks like a polars LazyFrame."""

    def collect(self) -> None:
        pass


class WithSplits:
    column_names = ("image",)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (Samples(3), r"this Samples: it makes samples in this process.*\(path, label\) pairs"),
        (Loader(3), "this Loader: prefetchd takes its place"),
        (Pipeline(), "a tf.data pipeline"),
        (Lazy(), r"give its collect\(\)"),
        ((number for number in range(3)), r"this generator: .*give list\(\.\.\.\)"),
        ({"a.jpg", "b.jpg"}, "this set: it has no order"),
        (5, "an object of the type int"),
        (object(), "an object of the type object"),
        ({"train": WithSplits(), "test": WithSplits()}, r"2 data sets; give one, as in data\['train'\]"),
    ],
)
def test_what_makes_samples_itself_is_refused_with_what_to_give(source, reason):
    with pytest.raises(ConfigError, match=reason) as refused:
        passed(source)
    assert "\n" not in str(refused.value)


def test_no_reference_to_the_list_is_kept():
    class List(list):  # which a weak reference can follow
        pass

    source = List(pairs([1, 2, 3]))
    seen = weakref.ref(source)
    passed(source).close()
    del source
    assert seen() is None


# --- class folders


class Folder:
    """Looks like a torchvision `ImageFolder`."""

    classes = ("cat", "dog")
    transform = target_transform = None

    def __init__(self, **changes: Any) -> None:
        self.samples = [("/data/cat/a.jpg", 0), ("/data/dog/b.jpg", 1), ("/data/dog/c.jpg", 1)]
        self.__dict__.update(changes)


class Subset:
    """Looks like a `torch.utils.data.Subset`."""

    def __init__(self, dataset: Any, indices: Any) -> None:
        self.dataset, self.indices = dataset, indices


def test_a_class_folder_gives_its_samples_and_classes():
    with records(Folder()) as made:
        assert (made.classes, made.name) == (("cat", "dog"), "<Folder of 3 samples>")
        assert [(sample.path, sample.label) for sample in made.samples(range(3))] == Folder().samples


def test_a_part_of_a_class_folder_keeps_its_order():
    with records(Subset(Folder(), [2, 0])) as made:
        assert made.classes == ("cat", "dog")
        assert [sample.path for sample in made.samples(range(2))] == ["/data/dog/c.jpg", "/data/cat/a.jpg"]
    with pytest.raises(ConfigError, match="this Samples: it makes samples in this process"):
        passed(Subset(Samples(3), [0]))


def test_a_transform_of_a_class_folder_is_said_to_be_left_out_and_one_of_labels_is_refused():
    with pytest.warns(RuntimeWarning, match="the transform of this Folder is not applied"):
        records(Folder(transform=len)).close()
    with pytest.raises(ConfigError, match="target_transform of this Folder"):
        passed(Folder(target_transform=len))


def test_a_label_without_a_class_is_refused():
    with pytest.raises(ManifestError, match=r"row 2 .*its label is 2, and 'label' has 2 classes"):
        records(Folder(samples=[("a.jpg", 0), ("b.jpg", 1), ("c.jpg", 2)]))


# --- arrays


def test_arrays_are_copied_as_they_are():
    x, y = np.arange(12, dtype=np.float16).reshape(3, 2, 2), np.array([2, 0, 1], np.int32)
    for source in ((x, y), {"x": x, "y": y}, (x, y.tolist())):
        table = passed(source)
        assert (table.kind, table.name) == ("arrays", "<arrays of 3 rows>")
        with Columns.attach(table.description, table.fd) as columns:
            np.testing.assert_array_equal(columns["x"].values, x)
            assert columns["x"].values.dtype == x.dtype
            np.testing.assert_array_equal(columns["y"].values, y)
    for source in (x, np.arange(3)):
        table = passed(source)
        with Columns.attach(table.description, table.fd) as columns:
            assert list(columns) == ["x"]


def test_a_mapped_array_is_to_be_given_by_its_file(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 2)))
    with pytest.raises(ManifestError, match=r"it is mapped from .*x\.npy; give the file's name"):
        passed((np.load(tmp_path / "x.npy", mmap_mode="r"), np.zeros(4)))
