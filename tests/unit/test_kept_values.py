"""Values come out of a table as they went in, or are refused: large numbers, gaps, names, text, `.npy` files."""

from __future__ import annotations

import io
import json
import math
import os
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
