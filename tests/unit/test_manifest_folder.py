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


def test_a_folder_of_images_alone_has_no_labels(tmp_path: Path) -> None:
    """Without class folders, or with label_columns=0, every image is a sample without a label."""
    source = make(tmp_path, "b.jpg", "a.jpg")
    with Manifest.open(make_config(source=source)) as manifest:
        assert manifest.classes is None
        assert [s.label for s in manifest.samples([0, 1])] == [None, None]
    make(tmp_path, "c/d.jpg")
    with Manifest.open(make_config(source=source, label_columns=0)) as manifest:
        assert [os.path.basename(s.path) for s in manifest.samples(range(3))] == ["a.jpg", "b.jpg", "d.jpg"]


def test_links_to_folders_are_followed_but_never_round_and_round(tmp_path: Path) -> None:
    """A class folder may be a link; a link to a folder above is not entered again."""
    make(tmp_path, "store/x.jpg")
    source = make(tmp_path / "data", "b/y.jpg")
    os.symlink(tmp_path / "store", tmp_path / "data" / "a")
    os.symlink(tmp_path / "data" / "b", tmp_path / "data" / "b" / "again")
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
