"""YOLO folders: what they say, and what is refused with file and line."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefetchd.data.table.yolo import read_yolo
from prefetchd.data.table.yolo_files import yolo_folders
from prefetchd.errors import ManifestError


def write(folder: Path, files: dict[str, str]) -> str:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return str(folder)


PLAIN = {
    "images/b.jpg": "",
    "images/a.png": "",
    "images/deep/c.jpg": "",
    "images/readme.md": "",
    "labels/a.txt": "1 0.5 0.5 0.2 0.4\n\n0 .25 0.25 1e-1 0.1\n",
    "labels/deep/c.txt": "0 0.1 0.1 0.1 0.1",
    "classes.txt": "cat\ndog\n",
}


def test_images_by_path_and_objects_by_line(tmp_path):
    found = read_yolo(write(tmp_path, PLAIN))
    assert found.paths == ["a.png", "b.jpg", "deep/c.jpg"]
    assert found.folder == str(tmp_path / "images")
    assert found.offsets.tolist() == [0, 2, 2, 3]
    assert found.boxes.tolist() == [[0.5, 0.5, 0.2, 0.4], [0.25, 0.25, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1]]
    assert found.box_format == "cxcywh_normalized"
    assert found.labels.tolist() == [1, 0, 0]
    assert found.ids.tolist() == [1, 3, 1]
    assert found.classes == ("cat", "dog")
    assert found.notes == ("1 of 3 images have no label file, and so no boxes",)


def test_one_split_is_named_by_its_images(tmp_path):
    files = {f"{kind}/train/{name}": "0 0.5 0.5 0.1 0.1" for kind, name in (("images", "a.jpg"), ("labels", "a.txt"))}
    files |= {f"{kind}/val/{name}": "0 0.5 0.5 0.1 0.1" for kind, name in (("images", "b.jpg"), ("labels", "b.txt"))}
    source = write(tmp_path, {**files, "data.yaml": "names: ['x, y', \"z\"]  # two\n"})
    with pytest.raises(ManifestError, match=r"its images are splits \(train, val\); name one: .*images/train"):
        read_yolo(source)
    found = read_yolo(f"{source}/images/train")
    assert found.paths == ["a.jpg"]
    assert found.classes == ("x, y", "z")
    assert yolo_folders(f"{source}/labels/train") is None
    assert yolo_folders(f"{source}/images/val") == (f"{source}/images/val", f"{source}/labels/val")


def test_splits_with_the_names_above_them(tmp_path):
    files = {
        "train/images/a.jpg": "",
        "train/labels/a.txt": "1 0.5 0.5 0.1 0.1",
        "data.yaml": "nc: 2\nnames:\n- a\n- b\n",
    }
    assert read_yolo(write(tmp_path, files) + "/train").classes == ("a", "b")


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("path: ../x\nnames:\n  0: person\n  1: 'it''s'\n  2: \"a: b\"\ndownload: x\n", ("person", "it's", "a: b")),
        ("names:\n  - person # one\n  - dog\n", ("person", "dog")),
        ("names: [person,\n  'a, b', dog]\nnc: 3\n", ("person", "a, b", "dog")),
        ("names: {0: person, 1: dog}\n", ("person", "dog")),
        ("names: [ # two\n  person, # [first]\n  'a # b', c#d]  # [person, cat]\n", ("person", "a # b", "c#d")),
        ("nc: 1\ntrain: images\n", None),
    ],
)
def test_names_of_a_data_yaml(tmp_path, text, classes):
    files = {"images/a.jpg": "", "labels/a.txt": "0 0.5 0.5 0.1 0.1", "data.yaml": text}
    assert read_yolo(write(tmp_path, files)).classes == classes


@pytest.mark.parametrize("text", ["names: *anchor\n", "names:\n  0: a\n  2: b\n", "names: [a, b\n", "names: |\n  a\n"])
def test_names_that_are_more_than_plain_are_refused(tmp_path, text):
    source = write(tmp_path, {"images/a.jpg": "", "labels/a.txt": "", "data.yaml": text})
    with pytest.raises(ManifestError, match=r"not a plain list or mapping; write classes\.txt"):
        read_yolo(source)


def test_keypoints_as_kpt_shape_says(tmp_path):
    line = "0 0.5 0.5 0.2 0.2 0.1 0.2 2 0 0 0"
    files = {"images/a.jpg": "", "labels/a.txt": line, "data.yaml": "kpt_shape: [2, 3] # two\nnames: [a]"}
    found = read_yolo(write(tmp_path, files), with_keypoints=True)
    assert found.keypoints is not None
    assert found.keypoints.tolist() == [[[0.1, 0.2, 2], [0, 0, 0]]]
    assert read_yolo(str(tmp_path)).boxes.tolist() == [[0.5, 0.5, 0.2, 0.2]]
    write(tmp_path, {"labels/a.txt": "0 0.5 0.5 0.2 0.2 0.1 0.2 0 0", "data.yaml": "kpt_shape: [2, 2]"})
    found = read_yolo(str(tmp_path), with_keypoints=True)
    assert found.keypoints is not None
    assert found.keypoints.tolist() == [[[0.1, 0.2, 2], [0, 0, 0]]]


def test_classes_of_one_file_and_kpt_shape_of_another(tmp_path):
    line = "0 0.5 0.5 0.2 0.2 0.1 0.2"
    files = {
        "images/a.jpg": "",
        "labels/a.txt": line,
        "classes.txt": "cat",
        "data.yaml": "kpt_shape: [1, 2]\nnames: [a]",
    }
    found = read_yolo(write(tmp_path, files), with_keypoints=True)
    assert found.classes == ("cat",)
    assert found.keypoints is not None
    assert found.keypoints.tolist() == [[[0.1, 0.2, 2]]]


def test_a_byte_order_mark_before_a_label(tmp_path):
    files = {"images/a.jpg": "", "labels/a.txt": "\ufeff1 0.5 0.5 0.2 0.2\r\n0 0.5 0.5 0.1 0.1\r\n"}
    assert read_yolo(write(tmp_path, files)).labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"labels/a.txt": "0 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1\n"}, "cannot use line 2 of a.txt in"),
        ({"labels/a.txt": "0 0.5 0.5 0.1\n"}, "it has 4 fields, and a line has 5: class, centre x"),
        ({"labels/a.txt": "0 0.5 0.5 0.1 0.1 0.9"}, "it has 6 fields"),
        ({"labels/a.txt": "0 0.5 0.5 0.1 0.1 0.9 0.2"}, "as polygons and keypoints have"),
        ({"labels/a.txt": "0 0.5 0.5 0.1 0.1\n0 0.5 x 0.1 0.2"}, "line 2 of a.txt"),
        ({"labels/deep/c.txt": "0 0.5 x 0.1 0.2"}, "it has 'x', which is not a number"),
        ({"labels/deep/c.txt": "0 0.5 0.5 0.1 0.2\n2 0.5 0.5 0.1 0.2"}, "line 2 of deep/c.txt"),
        ({"labels/a.txt": "2 0.5 0.5 0.1 0.2"}, "it has the class 2, and it must be a whole number from 0 to 1"),
        ({"labels/a.txt": "0.5 0.5 0.5 0.1 0.2"}, "it has the class 0.5"),
        ({"labels/a.txt": "-1 0.5 0.5 0.1 0.2"}, "it has the class -1"),
        ({"labels/a.txt": "nan 0.5 0.5 0.1 0.2"}, "it has the class nan"),
        ({"images/a.jpg": ""}, "a.jpg and a.png share the label file a.txt"),
        ({"classes.txt": "cat\n\ndog\n"}, "line 2 is empty"),
    ],
)
def test_what_does_not_fit_is_refused_with_file_and_line(tmp_path, files, words):
    source = write(tmp_path, {**PLAIN, **files})
    with pytest.raises(ManifestError) as caught:
        read_yolo(source)
    assert words in str(caught.value)


def test_label_files_without_an_image(tmp_path):
    source = write(tmp_path, {**PLAIN, "labels/lost.txt": "", "labels/classes.txt": "cat\ndog"})
    assert "left out 1 label files without an image, such as lost.txt" in read_yolo(source).notes
    source = write(tmp_path / "other", {"images/a.jpg": "", "labels/b.txt": ""})
    with pytest.raises(ManifestError, match=r"none of its 1 label files belongs to an image, such as b\.txt"):
        read_yolo(source)
    source = write(tmp_path / "third", {"images/a.jpg": "", "labels/a.TXT": ""})
    with pytest.raises(
        ManifestError, match=r"such as a\.TXT; a label file has its image's name and folder, and ends in"
    ):
        read_yolo(source)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60), st.text("namesc: -'\"[]{},#01ab\n", max_size=40))
def test_whatever_the_files_hold_they_are_read_or_refused(tmp_path, line, names):
    source = write(tmp_path, {"images/a.jpg": "", "data.yaml": f"names:{names}\n"})
    (tmp_path / "labels").mkdir(exist_ok=True)
    (tmp_path / "labels" / "a.txt").write_bytes(line)
    with contextlib.suppress(ManifestError):
        found = read_yolo(source)
        assert len(found.labels) == found.offsets[-1]


def test_folders_that_are_none(tmp_path):
    with pytest.raises(ManifestError, match="must have images/ and labels/"):
        read_yolo(str(tmp_path))
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    with pytest.raises(ManifestError, match="has no images"):
        read_yolo(str(tmp_path))
    with pytest.raises(ManifestError, match="kpt_shape"):
        read_yolo(write(tmp_path, PLAIN), with_keypoints=True)
