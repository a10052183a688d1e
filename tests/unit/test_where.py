"""What `where` and `weights` mean by a value: the class of the delivered labels, whichever field or column has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefetchd.data.order.matching import is_one_of, wanted_number
from prefetchd.errors import ConfigError, ManifestError
from tests.images import write_jpeg
from tests.records import jpeg, write_tar
from tests.unit.test_order_plan import chosen

NUMBERS = [5, 3, 5, 7, 3, 3, 5, 7]
NAMES = ["dog", "cat", "emu", "cat", "dog", "bee", "cat", "dog"]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same table in each kind of source that has columns: a number and a name that are not the same classes."""
    folder = tmp_path_factory.mktemp("tables")
    rows = [
        {"path": str(write_jpeg(folder / f"{i}.jpg", (8, 8), seed=i)), "num": NUMBERS[i], "kind": NAMES[i], "w": i / 10}
        for i in range(8)
    ]
    text = "".join(f"{row['path']},{row['num']},{row['kind']},{row['w']:.2f}\n" for row in rows)
    (folder / "t.csv").write_text("path,num,kind,w\n" + text)
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found: dict[str, Any] = {"csv": folder / "t.csv", "jsonl": folder / "t.jsonl"}
    found["memory"] = {name: [row[name] for row in rows] for name in rows[0]}
    found["memory"]["w"] = np.array(found["memory"]["w"], np.float32)
    members = [(f"{i}.{kind}", content) for i, row in enumerate(rows) for kind, content in _members(i, row)]
    found["tar"] = write_tar(folder / "s.tar", members)
    return found


def _members(number: int, row: dict[str, Any]) -> list[tuple[str, Any]]:
    return [("jpg", jpeg(number)), ("json", json.dumps(row))]


def fields_of(kind: str, *labels: str) -> dict[str, str]:
    image, prefix = ("image(column=jpg)", "json:") if kind == "tar" else ("image(column=path)", "")
    return {"image": image, **{label: f"label(column='{prefix}{label}')" for label in labels}}


def rows_of(values: list[Any], wanted: Any) -> list[int]:
    return [row for row, value in enumerate(values) if value in wanted]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "memory", "tar"])
def test_the_first_label_decides_and_not_the_first_with_names(tables, kind):
    numbers_first, names_first = fields_of(kind, "num", "kind"), fields_of(kind, "kind", "num")
    assert chosen(tables[kind], fields=numbers_first, where={"label": 5}) == rows_of(NUMBERS, [5])
    with pytest.raises(ConfigError, match="'cat' is not a number"):  # it had the number of another field's class
        chosen(tables[kind], fields=numbers_first, where={"label": "cat"})
    assert chosen(tables[kind], fields=names_first, where={"label": "cat"}) == rows_of(NAMES, ["cat"])
    assert chosen(tables[kind], fields=names_first, where={"label": 1}) == rows_of(NAMES, ["cat"])
    with pytest.raises(ConfigError, match="there are 4 classes"):
        chosen(tables[kind], fields=names_first, where={"label": [1, 4]})


@pytest.mark.parametrize("kind", ["csv", "jsonl", "memory", "tar"])
def test_columns_that_are_no_fields_choose_and_weigh(tables, kind):
    fields, prefix = fields_of(kind, "num"), "json:" if kind == "tar" else ""
    assert chosen(tables[kind], fields=fields, where={f"{prefix}kind": ["cat", "bee"]}) == [1, 3, 5, 6]
    assert chosen(tables[kind], fields=fields, where={f"{prefix}w": [0.3, 0.7]}) == [3, 7]
    assert chosen(tables[kind], fields=fields, where={f"{prefix}num": 7, f"{prefix}kind": "dog"}) == [7]
    drawn = chosen(tables[kind], fields=fields, weights=f"{prefix}w", epoch_samples=4000)
    counts = np.bincount(drawn, minlength=8)
    assert not counts[0]
    np.testing.assert_allclose(counts[1:] / 4000, np.arange(1, 8) / 28, atol=0.03)


def test_a_column_of_parquet_chooses_and_weighs(tables, tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table(tables["memory"]), tmp_path / "t.parquet")
    options = {"fields": fields_of("parquet", "num")}
    assert chosen(tmp_path / "t.parquet", **options, where={"kind": "cat", "w": [0.1, 0.6]}) == [1, 6]
    assert 0 not in chosen(tmp_path / "t.parquet", **options, weights="w", epoch_samples=300)


def test_a_label_field_may_have_the_text_of_a_column(tables):
    for where in ({"kind": "cat"}, {"kind": 1}):  # a column of labels has become numbers
        assert chosen(tables["csv"], fields=fields_of("csv", "kind"), where=where) == rows_of(NAMES, ["cat"])
    with pytest.raises(ManifestError, match="which is no number"):
        chosen(tables["csv"], fields=fields_of("csv", "num"), weights="kind")


def test_labels_that_are_lists_are_refused(tables, tmp_path):
    rows = [{"path": path, "vec": [i, i + 1]} for i, path in enumerate(tables["memory"]["path"])]
    (tmp_path / "v.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for options in ({"where": "label=1"}, {"weights": "balanced"}, {"weights": "label"}):
        with pytest.raises(ConfigError, match=r"labels of the shape \(2,\)"):
            chosen(tmp_path / "v.jsonl", fields=fields_of("jsonl", "vec"), **options)


def test_names_that_are_numbers_are_never_taken_for_others():
    names = ("1", "10", "2", "cat")
    assert wanted_number("label", "10", names) == 1
    assert wanted_number("label", "cat", names) == wanted_number("label", "#3", names) == 3
    assert wanted_number("label", "#0", names) == 0
    for text, message in (
        ("1", "it is the name of class 0, and a number too; class 1 is '10'; write '#0' for the one, or '#1'"),
        ("2", "it is the name of class 2"),
        ("3", "no class has this name; class 3 is 'cat'"),
        ("#9", "there are 4 classes"),
        ("dog", "'dog' is not a class"),
    ):
        if text == "2":
            assert wanted_number("label", text, names) == 2  # its name and its number
            continue
        with pytest.raises(ConfigError, match=message):
            wanted_number("label", text, names)
    assert wanted_number("label", "1", ("a", "b")) == 1
    assert wanted_number("label", "-1", ("a", "b"), np.array([0, -1])) == -1
    with pytest.raises(ConfigError, match="there are 2 classes"):
        wanted_number("label", "-1", ("a", "b"), np.array([0, 1]))


def test_true_and_false_are_words_of_a_column_that_has_no_other_values():
    truths = np.array([True, False])
    assert [wanted_number("kept", text, None, truths) for text in ("true", "False", "1")] == [1, 0, 1]
    for values in (np.array([0, 1]), None):
        with pytest.raises(ConfigError, match="'true' is not a number"):
            wanted_number("kept", "true", None, values)


@pytest.mark.parametrize(
    ("values", "wanted", "rows"),
    [
        (np.array([0.1, 0.2], np.float32), [0.1], [0]),
        (np.array([2**60, 2**60 + 1]), [2**60 + 1, 0.5], [1]),
        (np.array([2**63, 2**63 + 1], np.uint64), [2**63 + 1, -1], [1]),
        (np.array([0, 1, 255], np.uint8), [256, 255.0, 10**400], [2]),
        (np.array([True, False]), [1, 2], [0]),
    ],
)
def test_numbers_are_compared_as_the_column_holds_them(values, wanted, rows):
    assert np.flatnonzero(is_one_of(values, wanted)).tolist() == rows
