"""Directories of class folders as manifests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prefetchd.config.validate import make_config
from prefetchd.data.manifest.records import Manifest
from prefetchd.errors import ManifestError


def make(folder: Path, *names: str | bytes) -> str:
    for name in names:
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb"):
            pass
    return str(folder)


def test_folders_are_classes_and_images_are_sorted_by_path(tmp_path: Path) -> None:
    """Nested files and suffixes of any case count; other files, hidden ones and stray images do not."""
    source = make(
        tmp_path, "dog/2.JPG", "dog/1.png", "cat/b/x.jpeg", "cat/a.webp", "cat-big/q.bmp",
        "cat/notes.txt", "cat/.hidden.jpg", ".git/x.jpg", "stray.jpg",
    )  # fmt: skip
    (tmp_path / "empty").mkdir()
    with Manifest.open(make_config(source=source)) as manifest:
        assert manifest.classes == ("cat", "cat-big", "dog", "empty")
        found = [(os.path.relpath(s.path, source), s.label, s.line) for s in manifest.samples(range(len(manifest)))]
    assert found == [
        ("cat/a.webp", 0, 0),
        ("cat/b/x.jpeg", 0, 0),
        ("cat-big/q.bmp", 1, 0),
        ("dog/1.png", 2, 0),
        ("dog/2.JPG", 2, 0),
    ]


def test_any_file_name_comes_back(tmp_path: Path) -> None:
    """Line breaks, backslashes, quotes, tabs and bytes that are not UTF-8 in names are kept."""
    names = [b"c/a\nb.jpg", b"c/a\\nb.jpg", b'c/".jpg', b"c/\t x \r.jpg", b"c/\xe9.jpg", b"c/#.jpg"]
    source = make(tmp_path, *names)
    with Manifest.open(make_config(source=source)) as manifest:
        got = {os.path.relpath(os.fsencode(s.path), os.fsencode(source)) for s in manifest.samples(range(6))}
    assert got == set(names)


def test_a_folder_of_images_alone_has_no_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without class folders, or with label_columns=0, every image is a sample without a label; unasked, it is said."""
    source = make(tmp_path, "b.jpg", "a.jpg")
    with Manifest.open(make_config(source=source)) as manifest:
        assert manifest.classes is None
        assert [s.label for s in manifest.samples([0, 1])] == [None, None]
    (said,) = caplog.messages
    assert "there are no class folders, and so no labels: y is each image's number" in said
    caplog.clear()
    make(tmp_path, "c/d.jpg")
    with Manifest.open(make_config(source=source, label_columns=0)) as manifest:
        assert [os.path.basename(s.path) for s in manifest.samples(range(3))] == ["a.jpg", "b.jpg", "d.jpg"]
    assert not caplog.messages


def test_links_to_folders_are_followed_but_never_round_and_round(tmp_path: Path) -> None:
    """A class folder may be a link; a link to a folder above is not entered again."""
    make(tmp_path, "store/x.jpg")
    source = make(tmp_path / "data", "b/y.jpg")
    os.symlink(tmp_path / "store", tmp_path / "data" / "a")
    os.symlink(tmp_path / "data" / "b", tmp_path / "data" / "b" / "again")
    os.symlink("..", tmp_path / "data" / "b" / "up")  # would give the images of all classes to this one
    with Manifest.open(make_config(source=source)) as manifest:
        assert manifest.classes == ("a", "b")
        assert len(manifest) == 2


def test_a_directory_attaches_like_a_file(tmp_path: Path) -> None:
    """The listing travels as a descriptor; files that come later change nothing."""
    source = make(tmp_path, *(f"c{i % 7}/{i}.jpg" for i in range(500)))
    manifest = Manifest.open(make_config(source=source))
    facts, fds = manifest.handle()
    attached = Manifest.attach(facts, [os.dup(fd) for fd in fds])
    expected = manifest.samples(range(500))
    manifest.close()
    make(tmp_path, "c0/0000.jpg")
    assert attached.samples(range(500)) == expected
    attached.check_unchanged()
    attached.close()


def test_a_directory_without_images_or_with_table_options_is_refused(tmp_path: Path) -> None:
    """The error says what was looked for."""
    (tmp_path / "a").mkdir()
    for options, what in [
        ({}, "no images"),
        ({"y_column": "x"}, "y_column"),
        ({"label_columns": 2}, "label_columns=2"),
    ]:
        with pytest.raises(ManifestError, match=what):
            Manifest.open(make_config(source=str(tmp_path), **options))


def test_what_tools_leave_beside_data_is_no_class(tmp_path: Path) -> None:
    """Folders of archivers, file systems, network disks and Python, at any depth and in any case."""
    source = make(
        tmp_path, "cat/1.jpg", "dog/1.jpg", "__MACOSX/cat/1.jpg", "__pycache__/x.jpg", "lost+found/x.jpg",
        "@eaDir/x.jpg", "cat/@eaDir/1.jpg/SYNO.jpg", "$RECYCLE.BIN/x.jpg", "System Volume Information/x.jpg",
        "@Recycle/x.jpg", "#recycle/x.jpg", "#snapshot/x.jpg", ".snapshot/x.jpg",
    )  # fmt: skip
    with Manifest.open(make_config(source=source)) as manifest:
        assert manifest.classes == ("cat", "dog")
        assert len(manifest) == 2


def test_what_is_left_out_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Images that OpenCV does not read, images in no class, classes without images."""
    source = make(tmp_path, "cat/1.jpg", "cat/2.heic", "cat/3.HEIC", "dog/1.dng", "loose.jpg", "cat/notes.txt")
    with Manifest.open(make_config(source=source)) as manifest:
        assert len(manifest) == 1
    unread, beside, empty = caplog.messages
    assert "left out 2 of .heic, 1 of .dng, which OpenCV does not read" in unread
    assert "left out an image that lies in no class folder" in beside
    assert "class folders without images are classes all the same (1: dog)" in empty


@pytest.mark.parametrize("suffix", [".ppm", ".pgm", ".PBM", ".pam", ".pfm", ".jp2", ".j2k", ".hdr", ".ras", ".sr"])
def test_suffixes_of_all_that_opencv_reads_are_images(tmp_path: Path, suffix: str) -> None:
    """Data sets of traffic signs, faces and satellites come in them."""
    with Manifest.open(make_config(source=make(tmp_path, f"a/1{suffix}", "b/1.jpg"))) as manifest:
        assert [sample.label for sample in manifest.samples(range(2))] == [0, 1]


def test_images_of_unread_suffixes_alone_are_named_in_the_error(tmp_path: Path) -> None:
    """So that it is seen why there are none."""
    with pytest.raises(ManifestError, match=r"no images in it \(2 class folders, and 2 of \.heic which OpenCV"):
        Manifest.open(make_config(source=make(tmp_path, "a/1.heic", "b/1.heic")))


@pytest.mark.parametrize("place", ["", "a/"])
def test_a_list_beside_the_images_may_have_their_labels(tmp_path: Path, place: str) -> None:
    """Numbers of samples, or names of folders, would be wrong labels then; an option settles it."""
    source = make(tmp_path, "a/1.jpg", "b/1.jpg", f"{place}metadata.csv")
    with pytest.raises(ManifestError, match=r"metadata\.csv lies beside the images.*label_columns=1.*label_columns=0"):
        Manifest.open(make_config(source=source))
    for label_columns, classes in ((1, ("a", "b")), (0, None)):
        with Manifest.open(make_config(source=source, label_columns=label_columns)) as manifest:
            assert manifest.classes == classes
            assert len(manifest) == 2


@pytest.mark.parametrize("name", ["labels.csv", "train.jsonl"])
def test_any_list_beside_images_without_class_folders_may_have_their_labels(tmp_path: Path, name: str) -> None:
    """The label would be the sample's number."""
    source = make(tmp_path, "1.jpg", "2.jpg", name)
    with pytest.raises(ManifestError, match=f"{name} lies beside the images"):
        Manifest.open(make_config(source=source))
    with Manifest.open(make_config(source=source, label_columns=0)) as manifest:
        assert len(manifest) == 2
    with pytest.raises(ManifestError, match="no class folders"):
        Manifest.open(make_config(source=source, label_columns=1))


def refusal(source: str) -> str:
    with pytest.raises(ManifestError) as caught:
        Manifest.open(make_config(source=source))
    assert "label_columns=1" in str(caught.value)
    assert "label_columns=0" in str(caught.value)
    for label_columns in (0, 1):  # the options that settle it
        Manifest.open(make_config(source=source, label_columns=label_columns)).close()
    return str(caught.value)


@pytest.mark.parametrize(
    "name", ["labels.csv", "TRAIN.TSV", "x.json", "x.jsonl", "x.parquet", "x.xlsx", "train.txt", "val.lst"]
)
def test_a_list_beside_class_folders_may_have_the_labels(tmp_path: Path, name: str) -> None:
    """It is named with how to serve it; a text without names of images is no list."""
    source = make(tmp_path, "cat/1.jpg", "dog/1.jpg")
    (tmp_path / "README.txt").write_text("Photos of cats and dogs.\n")
    Manifest.open(make_config(source=source)).close()
    (tmp_path / name).write_text("cat/1.jpg 3\n")
    assert f"{name} lies beside the images and may have them; serve that list instead" in refusal(source)


@pytest.mark.parametrize("splits", [("train", "test"), ("Train", "val"), ("test", "valid", "validation"), ("train",)])
def test_splits_are_no_classes(tmp_path: Path, splits: tuple[str, ...]) -> None:
    """The classes lie below one of them."""
    source = make(tmp_path, *(f"{split}/{label}/1.jpg" for split in splits for label in ("cat", "dog")))
    assert f"name one, as in '{source}/{sorted(splits)[0]}'" in refusal(source)
    make(tmp_path, "cat/1.jpg")
    Manifest.open(make_config(source=source)).close()  # with another folder beside them they are classes


@pytest.mark.parametrize("names", [("images/1.jpg", "labels/1.txt"), ("JPEGImages/1.jpg", "Annotations/1.xml")])
def test_annotations_beside_images_are_no_class(tmp_path: Path, names: tuple[str, str]) -> None:
    """Detection and segmentation sets lay their files out so."""
    assert "neither is a class" in refusal(make(tmp_path, *names))


def test_one_folder_that_leads_to_the_classes_is_refused(tmp_path: Path) -> None:
    """Archives often unpack to one folder around all."""
    source = make(tmp_path, "data/cat/1.jpg", "data/dog/1.jpg")
    message = refusal(source)
    assert "(cat, dog)" in message
    assert f"give '{source}/data'" in message


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (("a/1.jpg", "a/2.jpg"), "there is only one class folder (a)"),
        (("a/x/1.jpg",), "all images lie in folders below the class folders (x)"),
        (("a/x/1.jpg", "b/x/1.jpg", "b/y/1.jpg"), "all images lie in folders below the class folders (x, y)"),
    ],
)
def test_class_folders_that_may_be_none_are_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: tuple[str, ...], what: str
) -> None:
    """They are taken as classes, but not without a word; label_columns=1 says that it is right."""
    source = make(tmp_path, *names)
    Manifest.open(make_config(source=source)).close()
    (message,) = caplog.messages
    assert what in message
    Manifest.open(make_config(source=source, label_columns=1)).close()
    assert caplog.messages == [message]
