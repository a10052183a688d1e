"""COCO files: what they say, what is left out and what is refused."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefetchd.data.table.coco import is_coco, read_coco
from prefetchd.errors import ManifestError


def coco(**changes: Any) -> dict[str, Any]:
    return {
        "info": {"year": 2026},
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 40, "height": 30, "license": 1},
            {"id": 3, "file_name": "b.jpg", "width": 20, "height": 10},
            {"id": 9, "file_name": "none.jpg", "width": 5, "height": 6},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 2, "name": "cat", "supercategory": "animal"}],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 18, "bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 3, 4, 5, 6]]},
            {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0, 0, 8.5, 9], "iscrowd": 0},
            {"id": 5, "image_id": 3, "category_id": 2, "bbox": [5, 5, 2, 2], "iscrowd": 0},
            {
                "id": 6,
                "image_id": 7,
                "category_id": 18,
                "bbox": [1, 1, 4, 4],
                "iscrowd": 1,
                "segmentation": {"size": 2},
            },
        ],
        **changes,
    }


def written(folder: Path, content: Any) -> str:
    path = folder / "instances.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_objects_of_each_image_in_the_order_of_the_file(tmp_path):
    found = read_coco(written(tmp_path, coco()), "/images")
    assert found.paths == ["a.jpg", "b.jpg", "none.jpg"]
    assert found.folder == "/images"
    assert found.offsets.tolist() == [0, 1, 3, 3]
    assert found.boxes.tolist() == [[0, 0, 8.5, 9], [1, 2, 3, 4], [5, 5, 2, 2]]
    assert found.box_format == "xywh"
    assert found.labels.tolist() == [0, 1, 0]
    assert found.ids.tolist() == [2, 1, 5]
    assert found.classes == ("cat", "dog")
    assert found.sizes is not None
    assert found.sizes.tolist() == [[30, 40], [10, 20], [6, 5]]
    assert found.notes == ("left out 1 crowds; crowds=True takes them",)


def test_crowds_if_asked_for(tmp_path):
    found = read_coco(written(tmp_path, coco()), "/images", crowds=True)
    assert found.offsets.tolist() == [0, 2, 4, 4]
    assert found.ids.tolist() == [2, 6, 1, 5]
    assert found.notes == ()


def test_empty_boxes_are_left_out_with_a_note(tmp_path):
    content = coco()
    content["annotations"][0]["bbox"] = [1, 2, 0, 4]
    found = read_coco(written(tmp_path, content), "/images")
    assert found.offsets.tolist() == [0, 1, 2, 2]
    assert "left out 1 boxes without width or height, such as annotation 1" in found.notes


def test_negative_boxes_come_through_to_the_sample_that_they_spoil(tmp_path):
    content = coco()
    content["annotations"][0]["bbox"] = [1, 2, -3, 4]
    assert read_coco(written(tmp_path, content), "/images").boxes[1].tolist() == [1, 2, -3, 4]


def test_images_named_by_text_and_annotations_without_ids(tmp_path):
    content = coco()
    for image in content["images"]:
        image["id"] = f"image{image['id']}"
    for annotation in content["annotations"]:
        annotation["image_id"] = f"image{annotation['image_id']}"
        del annotation["id"]
    found = read_coco(written(tmp_path, content), "/images")
    assert found.ids.tolist() == [1, 0, 2]
    assert found.id_name == "annotation number"


def test_without_categories_the_ids_are_the_names(tmp_path):
    content = coco()
    del content["categories"]
    found = read_coco(written(tmp_path, content), "/images")
    assert found.classes == ("2", "18")
    assert found.labels.tolist() == [0, 1, 0]


def test_keypoints_of_objects_that_have_some(tmp_path):
    content = coco()
    content["annotations"][0]["keypoints"] = [1, 2, 2, 0, 0, 0]
    content["annotations"][1]["keypoints"] = [0, 0, 0, 0, 0, 0]
    content["annotations"][2]["keypoints"] = [3, 4, 1, 5, 6, 2]
    found = read_coco(written(tmp_path, content), "/images", with_keypoints=True)
    assert found.offsets.tolist() == [0, 0, 2, 2]
    assert found.keypoints is not None
    assert found.keypoints.tolist() == [[[1, 2, 2], [0, 0, 0]], [[3, 4, 1], [5, 6, 2]]]
    assert "left out 1 annotations without a labelled keypoint" in found.notes
    assert found.boxes.tolist() == [[1, 2, 3, 4], [5, 5, 2, 2]]  # for a field of boxes beside one of keypoints


def change(what: str, at: int, **values: Any) -> dict[str, Any]:
    content = coco()
    content[what][at].update(values)
    return content


def test_a_byte_order_mark_is_passed_over(tmp_path):
    path = written(tmp_path, "\ufeff" + json.dumps(coco()))
    assert is_coco(path)
    assert read_coco(path, "/images").classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (change("annotations", 0, image_id=4), "annotation 1 is of image 4, which its images do not list"),
        (change("annotations", 1, category_id=3), "annotation 2 is of category 3, which its categories do not list"),
        (change("annotations", 1, id=1), "it has an annotation '1' twice"),
        (change("images", 1, id=7), "it has an image '7' twice"),
        (change("images", 1, file_name="a.jpg"), "it has a file_name 'a.jpg' twice"),
        (change("categories", 1, id=18), "it has a category '18' twice"),
        (change("annotations", 2, bbox=[1, 2, 3]), "at `.annotations[2].bbox`"),
        (change("annotations", 2, bbox=None), "annotation 5 has no bbox"),
        (change("annotations", 2, bbox=["1", 2, 3, 4]), "Expected `float`, got `str`, at `.annotations[2].bbox[0]`"),
        (change("annotations", 2, image_id=None), "at `.annotations[2].image_id`"),
        (change("annotations", 2, bbox=[float("nan"), 2, 3, 4]), "anew, with null in place of NaN and Infinity"),
        (coco(images=[], annotations=[]), "its images are an empty list"),
        ('{"images": [', "it is not JSON"),
        ({"images": []}, "missing required field `annotations`"),
    ],
)
def test_what_contradicts_itself_is_refused_with_its_place(tmp_path, content, words):
    with pytest.raises(ManifestError) as caught:
        read_coco(written(tmp_path, content), "/images")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_keypoints_of_other_lengths_are_refused(tmp_path):
    content = change("annotations", 0, keypoints=[1, 2, 2])
    content["annotations"][1]["keypoints"] = [1, 2, 2, 3, 4, 2]
    with pytest.raises(ManifestError, match=r"annotations have \[3, 6\] numbers"):
        read_coco(written(tmp_path, content), "/images", with_keypoints=True)
    with pytest.raises(ManifestError, match="no annotation has a labelled one"):
        read_coco(written(tmp_path, coco()), "/images", with_keypoints=True)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", {"images": [], "annotations": []}, True),
        ("a.json", {"images": []}, False),
        ("a.json", [1, 2], False),
        ("a.jsonl", {"images": [], "annotations": []}, False),
        ("a.json", "{", False),
    ],
)
def test_a_coco_file_is_known_by_its_keys(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    assert is_coco(str(path)) == expected
    assert not is_coco(str(tmp_path / "missing.json"))


def test_many_images_keep_their_objects(tmp_path):
    rng = np.random.default_rng(0)
    of = rng.integers(0, 2000, 9000)
    content = {
        "images": [{"id": n * 3, "file_name": f"{n}.jpg"} for n in range(2000)],
        "annotations": [
            {"id": n, "image_id": int(image) * 3, "category_id": 1, "bbox": [n, 0, 1, 1]} for n, image in enumerate(of)
        ],
    }
    found = read_coco(written(tmp_path, content), "/images")
    for image in range(2000):
        mine = slice(*found.offsets[image : image + 2])
        assert found.boxes[mine, 0].tolist() == np.flatnonzero(of == image).tolist()


LEAF = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 2**70),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.floats(), max_size=5),
)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), LEAF)
def test_whatever_a_value_is_the_file_is_read_or_refused(tmp_path, data, value):
    content = coco()
    content["annotations"][0]["keypoints"] = [1, 2, 2]
    at: Any = content
    while isinstance(at, dict | list) and at:
        key = data.draw(st.sampled_from(list(at) if isinstance(at, dict) else range(len(at))))
        if data.draw(st.booleans()) or not isinstance(at[key], dict | list):
            at[key] = value
            break
        at = at[key]
    source = written(tmp_path, content)
    for options in ({}, {"crowds": True}, {"with_keypoints": True}):
        with contextlib.suppress(ManifestError):
            found = read_coco(source, "/images", **options)
            assert len(found.boxes) == len(found.labels) == len(found.ids) == found.offsets[-1]
