"""With fields, an option that concerns none of them is refused, and never ignored."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import pytest

from prefetchd import ConfigError, Field, ManifestError
from prefetchd.config.validate import make_config
from prefetchd.data.fields.source import FieldsSource
from prefetchd.data.registry import open_source
from prefetchd.data.table.class_lists import class_lists
from tests.detection import paint
from tests.images import photograph

IMAGE = {"image": Field("image", "path")}
LABEL = {"label": Field("label")}
POINTS = {**IMAGE, "points": Field("keypoints", "x,y")}
BOXES = {**IMAGE, "objects": Field("boxes", "boxes", labels="labels")}


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    cv2.imwrite(str(tmp_path / "a.png"), photograph(20, 30, 0))
    (tmp_path / "a.csv").write_text("path,label,x,y\na.png,1,3,4\n")
    return tmp_path / "a.csv"


def opened(source: Path, **options: Any) -> None:
    found = open_source(make_config(source=str(source), **options))
    assert isinstance(found, FieldsSource)
    found.records.close()


def refused(source: Path, **options: Any) -> str:
    with pytest.raises((ConfigError, ManifestError)) as caught:
        opened(source, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("fields", "options", "words"),
    [
        (POINTS, {"min_visible": 0.5}, "cannot use min_visible with these fields: none is of kind boxes; leave it out"),
        (POINTS, {"box_format": "xywh"}, "none is of kind boxes;"),
        (POINTS, {"source_box_format": "xywh"}, "none is of kind boxes;"),
        (POINTS, {"crowds": True}, "COCO files only"),
        (IMAGE, {"max_boxes": 3}, "none is of kind boxes or keypoints"),
        (IMAGE, {"mask_border": 3}, "none is of kind mask"),
        (LABEL, {"augment": "hflip"}, "none is of kind image;"),
        (LABEL, {"image_size": 8}, "none is of kind image;"),
        (LABEL, {"color": "gray"}, "none is of kind image;"),
        (LABEL, {"cache": "somewhere"}, "no field is an image"),
    ],
)
def test_options_of_kinds_that_are_not_there(
    listed: Path, fields: dict[str, Field], options: dict[str, Any], words: str
) -> None:
    opened(listed, fields=fields)
    message = refused(listed, fields=fields, **options)
    assert words in message
    assert message.endswith("leave it out")


def test_folders_and_shards_have_no_root(tmp_path: Path) -> None:
    painted = paint(tmp_path / "pairs", 2)
    (tmp_path / "images").mkdir()
    painted.folder.rename(tmp_path / "images" / "a")
    opened(tmp_path, fields={"image": Field("image", "images")})
    assert "cannot use root" in refused(tmp_path, fields={"image": Field("image", "images")}, root="/")
    painted.folder = tmp_path / "images" / "a"
    painted.shard(tmp_path / "a.tar")
    assert "cannot use root" in refused(tmp_path / "a.tar", fields={"image": Field("image", "png")}, root="/")


def test_a_coco_file_says_how_it_writes_boxes(tmp_path: Path) -> None:
    source = paint(tmp_path, 3).coco()
    opened(source, fields=BOXES, crowds=True)
    own = {**IMAGE, "objects": Field("boxes", "boxes", source_box_format="xyxy")}
    assert "its boxes are xywh; leave it out" in refused(source, fields=own)
    assert "cannot use source_box_format" in refused(source, fields=BOXES, source_box_format="xyxy")


def test_labels_that_are_not_there_are_named(tmp_path: Path) -> None:
    painted = paint(tmp_path, 3)
    fields = {**IMAGE, "objects": Field("boxes", "boxes", labels="label")}
    message = refused(painted.jsonl(), fields=fields, source_box_format="xywh")
    assert re.search(r"the key 'label' in .*: did you mean 'labels'", message)


def test_names_in_lists_become_numbers_in_their_sorted_order() -> None:
    assert class_lists([["owl", "cat"], [], ["cat"]]) == ([[1, 0], [], [0]], ["cat", "owl"])
    assert class_lists([["10", "9"]]) == ([[1, 0]], ["9", "10"])
    for values in ([[3, 4], []], [[], []], [1, 2], ["a", "b"], []):
        assert class_lists(values) == (values, None)
    for odd in (["cat", 3], [3], ["cat", ""]):
        with pytest.raises(ValueError, match=r"row 1 \(from 0\) has the labels .*, and others have names of classes"):
            class_lists([["owl"], odd])
