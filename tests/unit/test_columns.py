"""The column store: what goes into a table comes out of it, and a table that makes no sense is refused."""

from __future__ import annotations

import copy
import json
import os
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefetchd.columns.store import Columns
from prefetchd.columns.values import add_values, offset_blocks
from prefetchd.columns.writer import ColumnsWriter
from prefetchd.errors import ManifestError
from prefetchd.ipc.descriptors import memfd, seal


def table(attributes=None, **columns) -> Columns:
    with ColumnsWriter(len(next(iter(columns.values())))) as writer:
        for name, values in columns.items():
            if isinstance(values, np.ndarray):
                writer.add_numbers(name, values)
            else:
                add_values(writer, name, values)
        return Columns.attach(*writer.finish(attributes))


def attach_anew(columns: Columns) -> Columns:
    description, fd = columns.handle()
    return Columns.attach(description, os.dup(fd))


def test_each_kind_of_column_comes_out_as_it_went_in():
    paths = ["a.jpg", "ä/b.jpg", "", os.fsdecode(b"c\xff.jpg")]
    boxes = [[[1, 2, 3, 4]], [], [[5, 6, 7, 8], [9, 10, 11, 12]], None]
    with table(
        {"classes": ["x"]},
        path=paths,
        label=[3, 1, 2, 0],
        weight=[0.5, 1, None, 2],
        image=[b"\xff\xd8", b"", b"abc", bytearray(b"d")],
        boxes=boxes,
        pixels=np.arange(24, dtype=">u2").reshape(4, 2, 3),
    ) as made:
        columns = attach_anew(made)
        made.close()
    assert list(columns) == ["path", "label", "weight", "image", "boxes", "pixels"]
    assert (columns.n_rows, columns.attributes) == (4, {"classes": ["x"]})
    assert list(columns["path"]) == paths
    assert list(columns["label"]) == [3, 1, 2, 0]
    assert list(columns["weight"]) == [0.5, 1.0, 0.0, 2.0]
    assert [columns["weight"].is_missing(row) for row in range(4)] == [False, False, True, False]
    assert columns["label"].missing is None
    assert [bytes(each) for each in columns["image"]] == [b"\xff\xd8", b"", b"abc", b"d"]
    assert [each.tolist() for each in columns["boxes"]] == [boxes[0], [], boxes[2], []]
    assert columns["boxes"].lengths.tolist() == [1, 0, 2, 0]
    assert columns["pixels"].values.dtype == np.uint16
    assert columns["pixels"].rows([3, 0]).tolist() == [[[18, 19, 20], [21, 22, 23]], [[0, 1, 2], [3, 4, 5]]]
    assert columns["path"].rows(np.array([2, 0])) == ["", "a.jpg"]
    columns.close()


def test_values_are_views_that_cannot_be_written():
    with table(label=[1, 2], image=[b"ab", b"c"], tokens=[[1], [2, 3]]) as columns:
        assert columns["label"].values.base is not None
        for array in (columns["label"].values, columns["tokens"][1]):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 5
        assert columns["image"][0].readonly


def test_views_live_longer_than_the_table():
    with table(label=[1, 2]) as columns:
        values = columns["label"].values
    columns.close()
    assert values.tolist() == [1, 2]


def test_a_row_that_is_not_there_is_an_index_error():
    with table(label=[1, 2], path=["a", "b"]) as columns:
        for row in (-1, 2):
            for name in ("label", "path"):
                with pytest.raises(IndexError, match=f"row {row} of 2 in the column '{name}'"):
                    columns[name][row]
        with pytest.raises(IndexError, match="of 2"):
            columns["label"].rows([0, 2])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=("Cs",)), max_size=9),
            st.integers(-(2**63), 2**63 - 1),
            st.lists(st.integers(-9, 9), max_size=4),
            st.none() | st.binary(max_size=5),
        ),
        min_size=1,
        max_size=40,
    )
)
def test_any_rows_come_out_as_they_went_in(rows):
    texts, numbers, lists, images = (list(values) for values in zip(*rows, strict=True))
    images[0] = images[0] or b"x"
    with table(text=texts, number=numbers, list=lists, image=images) as columns:
        assert list(columns["text"]) == texts
        assert list(columns["number"]) == numbers
        assert [each.tolist() for each in columns["list"]] == lists
        assert [bytes(each) for each in columns["image"]] == [each or b"" for each in images]
        assert [columns["image"].is_missing(row) for row in range(len(rows))] == [each is None for each in images]


def test_blocks_do_not_show():
    n_rows = (1 << 16) + 3
    paths = [f"folder/{number}.jpg" for number in range(n_rows)]
    paths[70_000 % n_rows] = "é"
    with table(path=paths, tokens=[[number, 1] for number in range(n_rows)]) as columns:
        assert list(columns["path"]) == paths
        assert columns["tokens"][n_rows - 1].tolist() == [n_rows - 1, 1]


def test_rows_that_lie_as_arrow_has_them_are_taken_as_they_are():
    offsets, data = np.array([2, 4, 4, 7], np.int32), b"..abcde..."
    with ColumnsWriter(3) as writer:
        writer.add_strings("path", offset_blocks(offsets, data))
        writer.add_ragged("tokens", offset_blocks(offsets, np.arange(9, dtype=np.int16)), "int16")
        columns = Columns.attach(*writer.finish())
    with columns:
        assert list(columns["path"]) == ["ab", "", "cde"]
        assert [each.tolist() for each in columns["tokens"]] == [[2, 3], [], [4, 5, 6]]


@pytest.mark.parametrize("dtype", [object, "U5", "S5"])
def test_text_may_come_as_an_array(dtype):
    with ColumnsWriter(2) as writer:
        add_values(writer, "path", np.array(["a", "bc"], dtype))
        with Columns.attach(*writer.finish()) as columns:
            assert [bytes(each) if dtype == "S5" else each.encode() for each in columns["path"]] == [b"a", b"bc"]


def test_the_digest_follows_the_content_alone():
    def digest(**columns):
        with table(**columns) as made:
            return made.handle()[0]["digest"]

    first = digest(path=["a", "bc"], label=[1, 2])
    assert digest(path=["a", "bc"], label=np.array([1, 2])) == first
    assert digest(path=[pathlib.Path("a"), "bc"], label=[1, 2]) == first
    others = [
        digest(path=["ab", "c"], label=[1, 2]),
        digest(path=["a", "bc"], label=[1, 3]),
        digest(path=["a", "bc"], label=[1.0, 2.0]),
        digest(path=["a", "bc"], other=[1, 2]),
        digest(path=["a", None], label=[1, 2]),
        digest(path=["a", ""], label=[1, 2]),
        digest(path=["a", "bc"]),
    ]
    assert len({first, *others}) == len(others) + 1


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([None, None], "all its values are None"),
        (["a", 1], "row 1 has the type int"),
        ([1, "a"], "row 1 has the type str"),
        ([1, None, object()], "row 2 has the type object, and values must be of the first one's kind"),
        ([object()], "row 0 has the type object"),
        (["a", 0.5], "row 1 has the type float, and values must be text"),
        ([2**64], "a number does not fit 64 bits"),
        ([2**63, -1], "a number does not fit 64 bits"),
        ([[1, 2], ["a"]], "other values than numbers"),
        ([[[1, 2]], [[1, 2, 3]]], "unlike lengths"),
        ([[[1, 2], [1]]], "unlike lengths"),
    ],
)
def test_a_value_that_cannot_be_served_is_named(values, reason):
    with ColumnsWriter(len(values)) as writer, pytest.raises(ValueError, match=reason):
        add_values(writer, "label", values)


def test_columns_must_fit_the_table():
    with ColumnsWriter(2) as writer:
        writer.add_numbers("a", np.zeros(2))
        with pytest.raises(ValueError, match="two of this name"):
            writer.add_numbers("a", np.zeros(2))
        with pytest.raises(ValueError, match=r"the shape \(3,\), and the table 2 rows"):
            writer.add_numbers("b", np.zeros(3))
        with pytest.raises(ValueError, match="dtype is object"):
            writer.add_numbers("b", np.array([None, 1]))
        with pytest.raises(ValueError, match="it has 1 rows, and the table 2"):
            add_values(writer, "b", ["a"])
        with pytest.raises(ValueError, match="it has 1 rows, and the table 2"):
            writer.add_strings("b", [(np.array([1]), b"a")])
        with pytest.raises(ValueError, match="more than the table's 2 rows"):
            writer.add_strings("b", [(np.array([1, 1, 1]), b"abc")])
        with pytest.raises(ValueError, match="5 bytes came for 2 values"):
            writer.add_strings("b", [(np.array([1, 1]), b"abcde")])
        with pytest.raises(ValueError, match="below 0"):
            writer.add_strings("b", [(np.array([2, -1]), b"a")])


def edited(columns: Columns, change) -> tuple[dict, int]:
    """Return description and memory of a table whose head `change` has edited."""
    description, fd = copy.deepcopy(columns.handle()[0]), columns.fd
    at, length = description["head"]
    content = os.pread(fd, description["bytes"], 0)
    head = json.loads(content[at : at + length])
    change(head)
    text = json.dumps(head).encode()
    other = memfd("test")
    os.write(other, content[:at] + text)
    seal(other)
    description.update(bytes=at + len(text), head=[at, len(text)])
    return description, other


def refused(description: dict, fd: int) -> None:
    with pytest.raises(ValueError, match="this is no table") as error:
        Columns.attach(description, fd)
    assert "\n" not in str(error.value)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.pop("rows"),
        lambda found: found.pop("columns"),
        lambda found: found.update(rows=-1),
        lambda found: found.update(rows=1 << 62),
        lambda found: found.update(rows=3),
        lambda found: found.update(rows="x"),
        lambda found: found.update(attributes=[1]),
        lambda found: found.update(columns=[[]]),
        lambda found: found["columns"].append(found["columns"][0]),
        lambda found: found["columns"][0].__setitem__(1, "objects"),
        lambda found: found["columns"][0].__setitem__(2, "object"),
        lambda found: found["columns"][0].__setitem__(3, [64]),
        lambda found: found["columns"][0].__setitem__(3, [1 << 39]),
        lambda found: found["columns"][0].__setitem__(3, [-1]),
        lambda found: found["columns"][0].__setitem__(4, 3),
        lambda found: found["columns"][0].__setitem__(5, 1 << 30),
        lambda found: found["columns"][0].__setitem__(5, -64),
        lambda found: found["columns"][0].__setitem__(5, 1),
        lambda found: found["columns"][1].__setitem__(4, 1 << 39),
        lambda found: found["columns"][1].__setitem__(6, -1),
        lambda found: found["columns"][1].__setitem__(6, 1 << 30),
        lambda found: found["columns"][1].__setitem__(7, 1 << 30),
    ],
)
def test_a_head_that_makes_no_sense_is_refused(change):
    with table(label=[1, 2], path=["a", "bc"]) as columns:
        Columns.attach(*edited(columns, lambda found: None)).close()
        refused(*edited(columns, change))


@pytest.mark.parametrize(
    "change",
    [
        {"bytes": 1},
        {"bytes": -1},
        {"bytes": "x"},
        {"head": [0, 1 << 40]},
        {"head": [0, 4]},
        {"head": []},
        {"head": None},
    ],
)
def test_a_description_that_makes_no_sense_is_refused(change):
    with table(label=[1, 2], path=["a", "bc"]) as columns:
        refused({**columns.handle()[0], **change}, os.dup(columns.fd))
        refused({}, os.dup(columns.fd))


def test_memory_that_may_change_is_refused():
    with ColumnsWriter(1) as writer:
        writer.add_numbers("label", np.zeros(1))
        description, fd = writer.finish()
    content = os.pread(fd, 1 << 16, 0)
    os.close(fd)
    unsealed = memfd("test")
    os.write(unsealed, content)
    with pytest.raises(ValueError, match="not sealed"):
        Columns.attach(description, unsealed)


@pytest.mark.parametrize("offsets", [(0, -1, 3), (0, 4, 3), (2, 1, 3), (0, 1, 1 << 40)])
def test_offsets_that_lead_out_of_the_values_are_found_when_rows_are_read(offsets):
    with table(path=["a", "bc"]) as columns:
        description, fd = columns.handle()
        content = bytearray(os.pread(fd, description["bytes"], 0))
        at = content.index(np.array([0, 1, 3], np.int64).tobytes())
        content[at : at + 24] = np.array(offsets, np.int64).tobytes()
        other = memfd("test")
        os.write(other, content)
        seal(other)
        with Columns.attach(description, other) as wrong:
            with pytest.raises(ManifestError, match=r"cannot read row [01] of the column 'path'"):
                list(wrong["path"])
            with pytest.raises(ManifestError, match="cannot read row"):
                _ = wrong["path"].lengths


def test_a_table_without_rows_or_columns_can_be_made():
    with ColumnsWriter(0) as writer, Columns.attach(*writer.finish()) as columns:
        assert (columns.n_rows, len(columns), columns.attributes) == (0, 0, {})


def test_a_writer_that_is_not_finished_leaves_no_descriptor():
    before = len(os.listdir("/proc/self/fd"))
    with ColumnsWriter(1):
        pass
    assert len(os.listdir("/proc/self/fd")) == before
