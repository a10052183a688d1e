"""Boxes and keypoints in JSON lines and Parquet files, and their records."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from prefetchd.config.validate import make_config
from prefetchd.data.registry import attach_source, open_source
from prefetchd.data.table.listed import read_jsonl
from prefetchd.data.table.object_records import ObjectRecords
from prefetchd.errors import ManifestError, PrefetchdError
from tests.detection import paint
from tests.images import exif, write_jpeg

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
        ([{**ROW, "boxes": [[0.1, 0, 0.5, 1]]}], {}, "give source_box_format='xyxy_normalized'"),
        ([{"path": "a.jpg", "boxes": []}], {}, "or y_column='boxes' if all are of one class"),
        ([{"where": "a.jpg", "boxes": [], "labels": []}], {}, "give x_column"),
        ([ROW], {"y_column": "boxes,labels,more"}, "name the boxes' and the labels'"),
        ([ROW], {"y_column": "boxes,kinds"}, "cannot find y_column='kinds'"),
        ([{"path": "a.jpg", "keypoints": []}], {"target": "keypoints"}, "no row has any"),
        ([{"path": "a.jpg", "points": [[1]]}], {"target": "keypoints"}, "a point is (x, y) or (x, y, visibility)"),
        (
            [{"path": "a.jpg", "points": [[1, 2]]}, {"path": "b.jpg", "points": [[[1, 2], [3, 4]]]}],
            {"target": "keypoints"},
            "its objects have 2 keypoints, and others 1",
        ),
    ],
)
def test_lists_that_cannot_be_told_are_refused(tmp_path, rows, options, words):
    with pytest.raises(ManifestError) as caught:
        read(jsonl(tmp_path, *rows), **options)
    assert words in str(caught.value)


NUMBER = st.one_of(st.integers(-5, 2**70), st.floats(), st.none(), st.text(max_size=2), st.booleans())
VALUE = st.one_of(NUMBER, st.lists(NUMBER, max_size=4), st.lists(st.lists(NUMBER, max_size=5), max_size=3))


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(VALUE, VALUE, st.sampled_from(["boxes", "keypoints"]))
def test_whatever_a_row_has_it_is_read_or_refused(tmp_path, objects, labels, target):
    source = jsonl(tmp_path, {"path": "a.jpg", "boxes": objects, "keypoints": objects, "labels": labels})
    with contextlib.suppress(ManifestError):
        found = read(source, target=target)
        assert len(found.labels) == len(found.ids) == found.offsets[-1]
        assert found.boxes.shape == (found.offsets[-1], 4)


def test_keypoints_of_an_image_or_of_its_objects(tmp_path):
    rows = [
        {"path": "a.jpg", "keypoints": [[1, 2], [3, 4]]},
        {"path": "b.jpg", "keypoints": []},
        {"path": "c.jpg", "keypoints": [[5, 6, 0]]},
    ]
    found = read(jsonl(tmp_path, *rows), target="keypoints")
    assert found.offsets.tolist() == [0, 2, 2, 3]
    assert found.keypoints.tolist() == [[[1, 2, 2]], [[3, 4, 2]], [[5, 6, 0]]]
    rows = [
        {"path": "a.jpg", "keypoints": [[[1, 2, 0], [3, 4, 1]], [[5, 6, 2], [7, 8, 2]]]},
        {"path": "b.jpg", "keypoints": []},
    ]
    found = read(jsonl(tmp_path, *rows), target="keypoints")
    assert found.offsets.tolist() == [0, 2, 2]
    assert found.keypoints[1].tolist() == [[5, 6, 2], [7, 8, 2]]


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


@pytest.fixture
def coco(tmp_path):
    return str(paint(tmp_path / "painted").coco())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "label"}, 'it has COCO annotations, and an image has several objects; give target="boxes"'),
        ({"target": "label", "box_format": "xywh"}, "box_format"),
        ({"target": "keypoints", "min_visible": 0.5}, "cannot use min_visible"),
        ({"target": "keypoints"}, "no annotation has a labelled one"),
        ({"y_column": "boxes"}, "cannot use y_column"),
        ({"source_box_format": "xyxy"}, "cannot use source_box_format"),
        ({"label_columns": 1}, "cannot use label_columns"),
        ({"cache": "/tmp/none"}, "cannot use cache with target"),
        ({"target_transform": "json:dumps"}, "cannot use target_transform with target='boxes'"),
        ({"min_visible": 2}, "min_visible"),
        ({"box_format": "yxyx"}, "box_format"),
        ({"root": "/nowhere"}, "give root"),
    ],
)
def test_what_does_not_go_together_is_refused(coco, options, words):
    with pytest.raises(PrefetchdError) as caught:
        open_source(make_config(source=coco, **{"target": "boxes", **options}))
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["a.csv", "", "shard.tar"])
def test_sources_without_boxes_are_refused_with_what_has_them(tmp_path, name):
    (tmp_path / "a.csv").write_text("path,label\n000.png,1\n")
    with pytest.raises(ManifestError, match=r"they come from COCO|must have images/ and labels/"):
        open_source(make_config(source=str(tmp_path / name), target="boxes"))


def test_keypoints_of_an_image_that_exif_turns(tmp_path):
    """Keypoints of the stored pixels, by the stated size, and of the upright image mark the same pixel."""
    stored = np.full((60, 90), 50, np.uint8)
    stored[20, 70] = 255
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif(6))
    images = [{"id": 1, "file_name": "a.png", "width": 90, "height": 60}]
    annotations = [{"id": 1, "image_id": 1, "keypoints": [70, 20, 2]}]
    (tmp_path / "a.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    (tmp_path / "a.jsonl").write_text(json.dumps({"path": "a.png", "keypoints": [[39, 70]]}))
    for name in ("a.json", "a.jsonl"):
        x, points, seen, count = (each[0] for each in filled(tmp_path / name, "keypoints", (90, 60)))
        assert points.tolist() == [[39, 70]]
        assert x[70, 39, 0] == 255
        assert (seen.tolist(), count.tolist()) == ([2], 1)


def test_yolo_keypoints_are_fractions(tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    write_jpeg(tmp_path / "images" / "a.jpg", (40, 80))
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.2 0.25 0.5 2 0.75 0.25 1")
    (tmp_path / "data.yaml").write_text("kpt_shape: [2, 3]\nnames: [one]")
    _, points, seen, count = (each[0] for each in filled(tmp_path, "keypoints", (40, 80)))
    assert points.tolist() == [[20, 20], [60, 10]]
    assert (seen.tolist(), count.tolist()) == ([2, 1], 2)


def filled(source: Path, target: str, size: tuple[int, int]) -> list[np.ndarray]:
    """Return the arrays of a data set's first sample."""
    config = make_config(source=str(source), target=target, image_size=size)
    opened = open_source(config)
    handle, fds = opened.handle()
    attached = attach_source(config, handle, [os.dup(fd) for fd in fds])
    arrays = [np.zeros((1, *each.shape), each.dtype) for each in opened.facts.fields]
    assert attached.fill(0, np.array([0]), [0], arrays, lambda _: None) == []
    for each in (opened, attached):
        each.records.close()
    return arrays
