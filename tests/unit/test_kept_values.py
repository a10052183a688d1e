"""Values come out of a table as they went in, or are refused: large numbers, gaps, names, text, `.npy` files."""

from __future__ import annotations

import io
import json
import math
import os
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from prefetchd import Field
from prefetchd.client.in_memory.recognize import take_in
from prefetchd.config.validate import make_config
from prefetchd.data.registry import attach_source, open_source
from prefetchd.errors import PrefetchdError
from prefetchd.ring.layout import BatchLayout

N_ROWS = 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for row in range(N_ROWS):
        cv2.imwrite(str(tmp_path / f"{row}.png"), np.full((4, 4, 3), row, np.uint8))
    return tmp_path


def served(source: Any, fields: dict[str, Field], **options: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the arrays of all samples, as a reader that attached to the source writes them, and the faults."""
    given: dict[str, Any] = {"fields": {"image": Field("image", "path"), **fields}, "image_size": 4, **options}
    table = None
    if isinstance(source, str | Path):
        config = make_config(source=str(source), **given)
    else:
        table = take_in(source, make_config(source="<source>", **given))
        config = make_config(source=table.name, **given)
    opened = open_source(config, table=table)
    handle, fds = opened.handle()
    reader = attach_source(config, handle, [os.dup(fd) for fd in fds])
    n_rows = opened.facts.n_samples
    layout = BatchLayout(n_rows, opened.facts.fields)
    arrays = layout.arrays(np.zeros(layout.slot_bytes, np.uint8), n_rows)
    ids = np.arange(n_rows)
    faults = [fault.reason for row in ids for fault in reader.fill(0, ids[row:][:1], [row], arrays, lambda _: None)]
    return {each.name: array for each, array in zip(opened.facts.fields, arrays, strict=True)}, faults


def table_of(folder: Path, kind: str, values: list[Any]) -> Any:
    """Write, or return, a table of the images with a column `v`."""
    paths = [f"{row}.png" for row in range(len(values))]
    if kind == "csv":
        (folder / "l.csv").write_text("path,v\n" + "".join(f"{p},{v}\n" for p, v in zip(paths, values, strict=True)))
        return folder / "l.csv"
    if kind == "jsonl":
        lines = [json.dumps({"path": path, "v": value}) for path, value in zip(paths, values, strict=True)]
        (folder / "l.jsonl").write_text("\n".join(lines))
        return folder / "l.jsonl"
    return {"path": [str(folder / path) for path in paths], "v": values}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "memory"])
@pytest.mark.parametrize(
    ("field", "values"),
    [
        (Field("label"), [16777217, 0.5]),
        (Field("label", dtype="float32"), [16777217, 1]),
        (Field("label", dtype="int8"), [300, 1]),
        (Field("label"), [2**53 + 1, 0.5]),
        (Field("label", dtype="float64"), [2**53 + 1, 0.5]),
        (Field("label"), [2**64 + 1, 1]),
        (Field("label"), [1e40, 1.5]),
        (Field("array"), [16777217, 0.5]),
        (Field("array", dtype="float32"), [16777217, 1]),
        (Field("array", dtype="float16"), [1e30, 1.5]),
        (Field("array", dtype="int32"), [1.5, 2.0]),
        (Field("array", dtype="uint8"), [-1, 2]),
    ],
)
def test_numbers_that_would_become_others_are_refused(folder, kind, field, values):
    with pytest.raises(PrefetchdError, match=r"does not hold|holds as it is|does not fit 64 bits") as caught:
        served(table_of(folder, kind, values), {"v": field})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "memory"])
def test_a_dtype_that_holds_them_takes_large_numbers(folder, kind):
    found, _ = served(table_of(folder, kind, [16777217, 0.1]), {"v": Field("array", dtype="float64")})
    assert found["v"].tolist() == [16777217, 0.1]
    found, _ = served(table_of(folder, kind, [2**53 + 1, 2]), {"v": Field("label")})
    assert found["v"].tolist() == [2**53 + 1, 2]


def test_many_classes_do_not_wrap_in_a_small_dtype(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "l.csv").write_text("path,v\n" + "".join(f"a.png,class {row}\n" for row in range(300)))
    with pytest.raises(PrefetchdError, match=r"dtype='int8'.*which it does not hold"):
        served(tmp_path / "l.csv", {"v": Field("label", dtype="int8")})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_label_that_is_missing_or_infinite_is_refused(folder, value):
    with pytest.raises(PrefetchdError, match=r"row 1 \(from 0\) has a label that is"):
        served(table_of(folder, "memory", [1.0, value, 2.0]), {"v": Field("label")})
    found, _ = served(table_of(folder, "memory", [1.0, value, 2.0]), {"v": Field("array")})
    assert np.array_equal(found["v"], np.float32([1.0, value, 2.0]), equal_nan=True)


def test_unsigned_labels_beyond_int64_are_refused(folder):
    with pytest.raises(PrefetchdError, match="18446744073709551615, which it does not hold"):
        served(table_of(folder, "memory", np.array([2**64 - 1, 1], np.uint64)), {"v": Field("label")})  # type: ignore[arg-type]


def test_names_that_python_takes_for_numbers_are_classes(folder):
    """`1_2` is no 12."""
    found, _ = served(table_of(folder, "csv", ["1_2", "12", "3"]), {"v": Field("label")})
    assert found["v"].tolist() == [1, 0, 2]


def test_an_array_of_text_never_becomes_class_numbers(folder):
    for values in (["1.5", "x.npy"], ["1.0", "abc"]):
        with pytest.raises(PrefetchdError, match=r"row 1 \(from 0\) has .*, which is no number"):
            served(table_of(folder, "csv", values), {"v": Field("array")})
    found, _ = served(table_of(folder, "csv", ["1.0", "inf", "2"]), {"v": Field("array")})
    assert found["v"].tolist() == [1.0, math.inf, 2.0]


@pytest.mark.parametrize("other", ["array", "text"])
def test_a_field_may_have_the_name_of_another_ones_column(folder, other):
    """The classes of the label `v` are not what the column `v` holds."""
    values = [7, 8] if other == "array" else ["seven", "eight"]
    (folder / "l.jsonl").write_text(
        "\n".join(json.dumps({"path": f"{row}.png", "v": values[row], "w": "ba"[row]}) for row in range(2))
    )
    found, _ = served(folder / "l.jsonl", {"v": Field("label", "w"), "w": Field(other, "v")})
    assert found["v"].tolist() == [1, 0]
    if other == "array":
        assert found["w"].tolist() == [7, 8]
    else:
        assert [bytes(row[:n]) for row, n in zip(found["w.bytes"], found["w.length"], strict=True)] == [
            b"seven",
            b"eight",
        ]


def test_a_header_with_a_name_twice_is_refused(folder):
    (folder / "l.csv").write_text("path,v,v\n0.png,1,5\n1.png,2,6\n")
    with pytest.raises(PrefetchdError, match="2 of this name"):
        served(folder / "l.csv", {"v": Field("label")})


def test_cut_text_must_be_utf8_and_ends_with_a_character(folder):
    (folder / "0.txt").write_bytes("aé€".encode())
    (folder / "1.txt").write_bytes("caf\xe9 au lait".encode("latin-1"))
    (folder / "l.csv").write_text("path\n0.png\n1.png\n")
    found, faults = served(folder / "l.csv", {"t": Field("text", ".txt", max_bytes=5, truncate=True)})
    assert bytes(found["t.bytes"][0]) == "aé".encode() + bytes(2)
    assert found["t.length"][0] == 3
    assert faults == ["field t: it is no UTF-8 (byte 3)"]


@pytest.mark.parametrize(
    ("array", "dtype"),
    [(np.array([1, 300]), "int8"), (np.array([1.0, 1e300]), "float32"), (np.array([1, 2**40]), "int32")],
)
def test_npy_numbers_that_would_overflow_are_bad(folder, array, dtype):
    content = io.BytesIO()
    np.save(content, array)
    (folder / "0.npy").write_bytes(content.getvalue())
    (folder / "l.csv").write_text("path\n0.png\n")
    _, faults = served(folder / "l.csv", {"a": Field("array", ".npy", shape=2, dtype=dtype)})
    assert faults == [f"field a: it has {array.dtype} numbers, of which {dtype} does not hold all"]


def test_masked_numbers_are_missing(folder):
    values = np.ma.MaskedArray([1, 2, 3], mask=[False, True, False])
    with pytest.raises(PrefetchdError, match=r"row 1 .*has no value"):
        served({**table_of(folder, "memory", [1, 2, 3]), "v": values}, {"v": Field("label")})
    with pytest.raises(PrefetchdError, match="1 of its numbers are masked"):
        take_in((np.zeros((3, 2)), values), make_config(source="<source>"))


def test_columns_without_a_value_that_can_be_held_are_refused_in_words(folder):
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    paths = table_of(folder, "memory", [1, 2, 3])["path"]
    empty = pandas.DataFrame({"path": paths, "v": pandas.Categorical([None] * 3)})
    wide = polars.DataFrame({"path": paths, "v": polars.Series([1, 2, 3], dtype=polars.Int128)})
    for frame, what in ((empty, "all its values are missing"), (wide, "Int128")):
        with pytest.raises(PrefetchdError, match=what):
            served(frame, {"v": Field("label")})


def boxes_of(folder: Path, rows: list[tuple[list[list[float]], list[int]]]) -> Path:
    lines = [json.dumps({"path": f"{row}.png", "b": b, "l": labels}) for row, (b, labels) in enumerate(rows)]
    (folder / "b.jsonl").write_text("\n".join(lines))
    return folder / "b.jsonl"


@pytest.mark.parametrize("by_field", [True, False])
def test_fields_of_boxes_in_fractions_are_not_taken_for_pixels(folder, by_field):
    source = boxes_of(folder, [([[0, 0, 0.5, 0.5]], [1]), ([], [])])
    field = Field("boxes", labels="l", source_box_format="xyxy" if by_field else None)
    options = {} if by_field else {"source_box_format": "xyxy"}
    with pytest.raises(PrefetchdError, match="source_box_format='xyxy_normalized'"):
        served(source, {"b": field}, **options)


def test_fields_of_boxes_have_classes_from_0(folder):
    source = boxes_of(folder, [([[0, 0, 2, 2]], [1]), ([[0, 0, 2, 2]], [-1])])
    with pytest.raises(PrefetchdError, match=r"row 1 \(from 0\) has the label -1"):
        served(source, {"b": Field("boxes", labels="l", source_box_format="xyxy")})


def test_fields_of_coco_boxes_refuse_another_format(folder):
    images = [{"id": 1, "file_name": "0.png"}]
    annotations = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2]}]
    (folder / "a.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    with pytest.raises(PrefetchdError, match="its boxes are xywh; leave it out"):
        served(folder / "a.json", {"b": Field("boxes", "boxes", labels="labels", source_box_format="xyxy")})


@pytest.mark.parametrize(
    ("option", "value"),
    [("box_format", "xywh"), ("min_visible", 0.5), ("max_boxes", 3), ("crowds", True), ("mask_border", 7)],
)
def test_options_of_kinds_that_no_field_has_are_refused(folder, option, value):
    with pytest.raises(PrefetchdError, match=f"cannot use {option} with these fields"):
        served(table_of(folder, "csv", [1, 2]), {"v": Field("label")}, **{option: value})


def test_a_mask_needs_an_image(folder):
    with pytest.raises(PrefetchdError, match="add one, or give the masks as a field of kind image"):
        make_config(source="x.csv", fields={"m": Field("mask", "path")})


def test_labels_of_text_and_of_numbers_do_not_mix_in_tar_shards(folder):
    png = (folder / "0.png").read_bytes()
    with tarfile.open(folder / "s.tar", "w") as shard:
        for key, label in (("a", "zero"), ("b", 1)):
            for extension, content in (("png", png), ("json", json.dumps({"label": label}).encode())):
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    with pytest.raises(PrefetchdError, match=r"sample 1 \(from 0\) has a number \(1\), and the first has text"):
        served(folder / "s.tar", {"image": Field("image", "png"), "v": Field("label", "json:label")})


def test_a_root_that_means_nothing_is_refused(folder):
    (folder / "d" / "images").mkdir(parents=True)
    cv2.imwrite(str(folder / "d" / "images" / "a.png"), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(PrefetchdError, match="cannot use root"):
        served(folder / "d", {"image": Field("image", "images")}, root=folder)


def test_fields_of_a_dictionary_may_be_arrays(folder):
    """A column called `x` of several axes does not make the dictionary one of arrays."""
    source = {**table_of(folder, "memory", [1, 2, 3]), "x": np.arange(6).reshape(3, 2)}
    found, _ = served(source, {"x": Field("array")})
    assert found["x"].tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("option", [{"x_column": "x"}, {"label_columns": 0}, {"fields": {"v": Field("label")}}])
def test_options_of_columns_are_refused_with_arrays(option):
    arrays = np.zeros((3, 2)), np.arange(3)
    for source in (arrays, arrays[0]):
        with pytest.raises(PrefetchdError, match=r"arrays: they have no"):
            take_in(source, make_config(source="<source>", **option))


def test_arrays_that_numpy_does_not_have_are_refused_in_words():
    torch = pytest.importorskip("torch")
    numbers = torch.arange(6).reshape(3, 2)
    with pytest.raises(PrefetchdError, match="cannot become an array of numpy"):
        take_in({"x": numbers.bfloat16(), "y": np.arange(3)}, make_config(source="<s>", x_column="x", y_column="y"))
    for scalar in ((np.array(3), np.arange(3)), {"x": np.array(3)}):
        with pytest.raises(PrefetchdError) as caught:
            take_in(scalar, make_config(source="<source>"))
        assert "\n" not in str(caught.value)


def test_functions_of_a_folder_that_are_not_called_are_named(folder):
    class Folder:
        def __init__(self) -> None:
            self.samples = [(str(folder / "0.png"), 0)]
            self.classes = ["a"]

        def __getitem__(self, number: int) -> tuple[Any, int]:
            return self.samples[number][0], 1

    with pytest.warns(RuntimeWarning, match="the __getitem__ of this Folder is not called"):
        take_in(Folder(), make_config(source="<source>"))


@pytest.mark.parametrize("kind", ["jsonl", "memory"])
def test_text_that_looks_like_a_number_is_a_name_where_numbers_are_no_text(folder, kind):
    """As without fields: "01" is not "1"."""
    found, _ = served(table_of(folder, kind, ["10", "01", "1"]), {"v": Field("label")})
    assert found["v"].tolist() == [2, 0, 1]
    found, _ = served(table_of(folder, "csv", ["10", "2", "1"]), {"v": Field("label")})
    assert found["v"].tolist() == [10, 2, 1]
    both = {"v": Field("label"), "t": Field("text", "v")}
    found, _ = served(table_of(folder, "csv", ["10", "2", "1"]), both)
    assert found["v"].tolist() == [10, 2, 1]


def test_a_header_above_columns_by_number_is_no_sample(folder):
    (folder / "l.csv").write_text("path,v\n0.png,1\n1.png,2\n")
    with pytest.raises(PrefetchdError, match=r"cannot take line 1 for a sample.*'v' there, and numbers below"):
        served(folder / "l.csv", {"image": Field("image", "0"), "v": Field("label", "1")})
    (folder / "l.csv").write_text("0.png,1\n1.png,2\n")
    found, _ = served(folder / "l.csv", {"image": Field("image", "0"), "v": Field("label", "1")})
    assert found["v"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("0.png,1\n1.png,2\n", [1, 2]),  # the first row has the number of the column
        ("0.png,1\n1.png,1\n", [1, 1]),
        (",0,1\n0,0.png,7\n1,1.png,8\n", [7, 8]),  # as pandas writes columns without names
    ],
)
def test_columns_by_number_lose_no_row(folder, text, labels):
    (folder / "l.csv").write_text(text)
    found, _ = served(folder / "l.csv", {"image": Field("image", "0"), "v": Field("label", "1")})
    assert found["v"].tolist() == labels
    assert found["image"][:, 0, 0, 0].tolist() == [0, 1]


def test_a_number_beyond_the_columns_is_no_value_of_the_first_row(folder):
    (folder / "l.csv").write_text("0.png,5\n1.png,6\n")
    with pytest.raises(PrefetchdError, match=r"cannot find the column '5' .* has 2, from 0"):
        served(folder / "l.csv", {"image": Field("image", "0"), "v": Field("label", "5")})


@pytest.mark.parametrize("option", [{"target": "keypoints"}, {"fields": {"k": Field("keypoints", "keypoints")}}])
def test_keypoints_in_fractions_are_not_taken_for_pixels(folder, option):
    (folder / "k.jsonl").write_text(json.dumps({"path": "0.png", "keypoints": [[0.25, 0.5], [1, 0]]}))
    fields = {"image": Field("image", "path"), **option["fields"]} if "fields" in option else {}
    with pytest.raises(PrefetchdError, match="as in fractions of the image; write pixels"):
        open_source(make_config(source=str(folder / "k.jsonl"), **{**option, "fields": fields}))


def test_names_of_the_classes_of_boxes_in_memory_are_refused_by_their_column(folder):
    source = {"path": [str(folder / "0.png")], "boxes": [[[0, 0, 2, 2]]], "labels": [["cat"]]}
    config = make_config(source="<source>", target="boxes", source_box_format="xyxy")
    with pytest.raises(PrefetchdError, match=r"cannot use the column 'labels' of .*; give lists of numbers"):
        open_source(config, table=take_in(source, config))
