"""Boxes and keypoints in JSON lines and Parquet files, and their records."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefetchd.config.validate import make_config
from prefetchd.data.registry import attach_source, open_source
from prefetchd.data.table.listed import read_jsonl
from prefetchd.data.table.object_records import ObjectRecords
from prefetchd.errors import ManifestError
from tests.images import write_jpeg

ROW = {"path": "a.jpg", "boxes": [[1, 2, 3, 4]], "labels": [0]}


def jsonl(folder: Path, *rows: Any) -> str:
    path = folder / "list.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def read(source: str, **options: Any) -> Any:
    options = {"target": "boxes", "source_box_format": "xyxy", **options}
    if options["target"] == "keypoints":
        del options["source_box_format"]
    return read_jsonl(make_config(source=source, **options), source)


def test_rows_with_names_sizes_and_no_objects(tmp_path):
    source = jsonl(
        tmp_path,
        {**ROW, "labels": ["dog"], "width": 9, "height": 7},
        "",
        {"path": "b.jpg", "boxes": [], "labels": []},
        {"path": "c.jpg", "boxes": [[1, 2, 3, 4], [1.5, 2, 3, 4]], "labels": ["cat", "dog"], "width": None},
    )
    found = read(source)
    assert found.paths == ["a.jpg", "b.jpg", "c.jpg"]
    assert found.folder == str(tmp_path)
    assert found.offsets.tolist() == [0, 1, 1, 3]
    assert found.boxes.tolist() == [[1, 2, 3, 4], [1, 2, 3, 4], [1.5, 2, 3, 4]]
    assert found.labels.tolist() == [1, 0, 1]
    assert found.ids.tolist() == [0, 0, 1]
    assert found.classes == ("cat", "dog")
    assert found.sizes.tolist() == [[7, 9], [0, 0], [0, 0]]
    assert found.lines.tolist() == [1, 3, 4]


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({"file_name": "a.jpg", "objects": {"bbox": [[1, 2, 3, 4]], "category": [5], "area": [4]}}, {}),
        ({"image": "a.jpg", "where": [[1, 2, 3, 4]], "what": [5]}, {"y_column": "where, what"}),
        (
            {"image": "a.jpg", "other": "b.jpg", "deep": {"b": [[1, 2, 3, 4]]}, "class": [5]},
            {"y_column": "deep.b,class"},
        ),
        ({"x": "a.jpg", "bboxes": [[1, 2, 3, 4]], "labels": [5]}, {"x_column": "x"}),
    ],
)
def test_keys_by_their_usual_names_or_as_options_say(tmp_path, row, options):
    found = read(jsonl(tmp_path, row), **options)
    assert found.paths == ["a.jpg"]
    assert found.boxes.tolist() == [[1, 2, 3, 4]]
    assert found.labels.tolist() == [5]


def test_boxes_of_one_class_need_no_labels(tmp_path):
    found = read(jsonl(tmp_path, ROW, ROW), y_column="boxes")
    assert found.labels.tolist() == [0, 0]
    assert found.classes is None


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**ROW, "boxes": [[1, 2, 3]]}, "line 2 of"),
        ({**ROW, "boxes": [[1, 2, 3]]}, "its boxes have the shape (1, 3); there must be four numbers"),
        ({**ROW, "boxes": [1, 2, 3, 4]}, "its boxes have the shape (4,)"),
        ({**ROW, "boxes": "1 2 3 4"}, "its boxes are text"),
        ({**ROW, "boxes": [[1, 2, 3, "x"]]}, "its boxes are a list"),
        ({**ROW, "boxes": [[1, 2, 3, 4], [1, 2]]}, "its boxes are a list"),
        ({**ROW, "labels": [0, 1]}, "it has 1 boxes and 2 labels"),
        ({**ROW, "labels": 3}, "its labels are a number (3), and not a list"),
        ({**ROW, "labels": ["cat"]}, "it has the label 'cat'; labels are whole numbers, or all of them names"),
        ({**ROW, "labels": [1.5]}, "it has the label 1.5"),
        ({**ROW, "labels": [True]}, "it has the label True"),
        ({**ROW, "labels": [-1]}, "it has the label -1; a class is a number from 0"),
        ({"path": "b.jpg", "boxes": []}, "there is no key 'labels'"),
        ({**ROW, "path": 3}, "the path under 'path' is a number"),
        ("[1]", "it is JSON but no object"),
        ("{", "it is not JSON"),
    ],
)
def test_a_row_that_does_not_fit_is_named(tmp_path, row, words):
    with pytest.raises(ManifestError) as caught:
        read(jsonl(tmp_path, ROW, row))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([], {}, "it lists no images"),
        ([ROW], {"source_box_format": None}, "cannot tell how"),
        ([{"path": "a.jpg", "x": 1}], {}, "cannot tell where"),
        ([{"path": "a.jpg", "boxes": []}], {}, "or y_column='boxes' if all are of one class"),
        ([{"where": "a.jpg", "boxes": [], "labels": []}], {}, "give x_column"),
        ([ROW], {"y_column": "boxes,labels,more"}, "name the boxes' and the labels'"),
        ([ROW], {"y_column": "boxes,kinds"}, "cannot find y_column='kinds'"),
        ([{"path": "a.jpg", "keypoints": []}], {"target": "keypoints"}, "no row has any"),
        ([{"path": "a.jpg", "points": [[1]]}], {"target": "keypoints"}, "a point is (x, y) or (x, y, visibility)"),
        (
            [{"path": "a.jpg", "points": [[1, 2]]}, {"path": "b.jpg", "points": [[1, 2], [3, 4]]}],
            {"target": "keypoints"},
            "its objects have 2 keypoints, and others 1",
        ),
    ],
)
def test_lists_that_cannot_be_told_are_refused(tmp_path, rows, options, words):
    with pytest.raises(ManifestError) as caught:
        read(jsonl(tmp_path, *rows), **options)
    assert words in str(caught.value)


def test_keypoints_of_one_object_or_of_several(tmp_path):
    rows = [
        {"path": "a.jpg", "keypoints": [[1, 2], [3, 4]]},
        {"path": "b.jpg", "keypoints": []},
        {"path": "c.jpg", "keypoints": [[[1, 2, 0], [3, 4, 1]], [[5, 6, 2], [7, 8, 2]]]},
    ]
    found = read(jsonl(tmp_path, *rows), target="keypoints")
    assert found.offsets.tolist() == [0, 1, 1, 3]
    assert found.keypoints[0].tolist() == [[1, 2, 2], [3, 4, 2]]
    assert found.keypoints[2].tolist() == [[5, 6, 2], [7, 8, 2]]


def test_records_give_the_same_in_another_process_and_follow_the_content(tmp_path):
    write_jpeg(tmp_path / "a.jpg")
    source = jsonl(tmp_path, ROW, {**ROW, "boxes": [], "labels": []})
    config = make_config(source=source, target="boxes", source_box_format="xyxy")
    with ObjectRecords.open(config) as records:
        handle, fds = records.handle()
        with ObjectRecords.attach(handle, [os.dup(fd) for fd in fds]) as attached:
            assert len(attached) == 2
            assert attached.digest == records.digest
            (first, second) = attached.samples([0, 1])
            assert first.path == str(tmp_path / "a.jpg")
            assert first.values.boxes.tolist() == [[1, 2, 3, 4]]
            assert second.values.boxes.shape == (0, 4)
            assert attached.where(second) == f"{source} line 2: {tmp_path}/a.jpg"
            assert attached.objects.most == 1
            assert attached.class_counts().tolist() == [1]
    jsonl(tmp_path, ROW, {**ROW, "boxes": [], "labels": [], "width": 5, "height": 6})
    with ObjectRecords.open(config) as changed:
        assert changed.digest != records.digest


def test_a_source_delivers_the_leaves_of_y(tmp_path):
    write_jpeg(tmp_path / "a.jpg", (40, 80))
    source = jsonl(tmp_path, {**ROW, "boxes": [[0, 0, 40, 20], [60, 20, 80, 40]], "labels": [3, 7]})
    options = {"target": "boxes", "source_box_format": "xyxy", "image_size": (20, 40), "max_boxes": 3}
    config = make_config(source=source, **options)
    opened = open_source(config)
    handle, fds = opened.handle()
    attached = attach_source(config, handle, [os.dup(fd) for fd in fds])
    fields = opened.facts.fields
    assert [each.name for each in fields] == ["x", "y.boxes", "y.labels", "y.count"]
    arrays = [np.full((1, *each.shape), 9, each.dtype) for each in fields]
    assert attached.fill(0, np.array([0]), [0], arrays, lambda _: None) == []
    assert arrays[1][0].tolist() == [[0, 0, 20, 10], [30, 10, 40, 20], [0, 0, 0, 0]]
    assert arrays[2][0].tolist() == [3, 7, -1]
    assert arrays[3].tolist() == [2]
    for each in (opened, attached):
        each.records.close()
