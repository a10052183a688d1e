"""The look at the disk when a list is opened: some of the files are there, or the error says where they would be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prefetchd.config.validate import make_config
from prefetchd.data.registry import open_source
from prefetchd.errors import ManifestError


def refusal(source: Path, text: str, **options: object) -> str:
    source.write_text(text)
    with pytest.raises(ManifestError) as caught:
        open_source(make_config(source=str(source), **options))
    message = str(caught.value)
    assert message.startswith(f"cannot serve {source}: ")
    assert "\n" not in message
    return message.partition("; ")[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("img/x.jpg", "img/y.jpg", "sub/deep/z.jpg", "x.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("img\\x.jpg,0\nimg\\y.jpg,1\n", "img/x.jpg is there: write /"),
        ("C:\\data\\x.jpg,0\n", "a Windows path with a drive"),
        ("ftp://example.com/x.jpg,0\n", "download what is elsewhere"),
        ("~/x.jpg,0\n", "~ is not expanded in a list"),
        ("$HOME/x.jpg,0\n", "variables are not expanded"),
        ("img/*.jpg,0\n", "no patterns"),
        ("path,label\nimg/x,0\nimg/y,1\n", "the suffix is missing: x.jpg is there"),
        ("img/x.png,0\n", "x.jpg is there, with another suffix"),
        ("img/X.JPG,0\n", "img/x.jpg is there, in another case"),
        ("IMG/x.jpg,0\n", "img/x.jpg is there, in another case"),
        ("data/img/x.jpg,0\n", "img/x.jpg is there under the root: take data/ off"),
        ("deep/z.jpg,0\n", "give root='{folder}/sub'"),
        ("nowhere/at/all.jpg,0\n", "give root, the folder that the paths start from"),
    ],
)
def test_the_error_names_the_spelling_that_is_there(folder: Path, text: str, hint: str) -> None:
    """Each mistake that people make has its own words."""
    assert hint.format(folder=folder) in refusal(folder / "l.csv", text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("x.jpg;0\ny.jpg;1\n", "a semicolon separates its fields"),
        ("x.jpg|0\n", "a bar separates its fields, which no list may have: write a comma"),
        ("x.jpg golden retriever\n", "put quotes around a label of several words"),
    ],
)
def test_the_error_says_how_a_line_was_split(folder: Path, text: str, hint: str) -> None:
    """A line of text that was meant otherwise."""
    assert hint in refusal(folder / "l.txt", text)


def test_a_root_above_the_list_is_found(folder: Path) -> None:
    """Lists often lie in a folder beside the images."""
    (folder / "lists").mkdir()
    assert f"give root='{folder}'" in refusal(folder / "lists" / "l.txt", "img/x.jpg 0\n")
    assert "the root is no folder" in refusal(folder / "l.txt", "img/x.jpg 0\n", root=str(folder / "none"))


def test_one_sample_that_is_there_is_enough(folder: Path) -> None:
    """Single missing files are found by the readers, under the policy for bad samples."""
    lines = [f"none/{number}.jpg {number}\n" for number in range(99)]
    source = folder / "l.txt"
    source.write_text("".join([*lines, "img/x.jpg 99\n"]))
    source_of_images = open_source(make_config(source=str(source)))
    assert source_of_images.facts.n_samples == 100
    for fd in source_of_images.handle()[1]:
        os.close(fd)


def test_the_samples_looked_at_are_spread_over_the_list(folder: Path) -> None:
    """The first and the last among them."""
    lines = ["img/x.jpg 0\n" if number in (1, 98) else f"none/{number}.jpg {number}\n" for number in range(100)]
    assert "none of 8 samples" not in refusal(folder / "l.txt", "".join(lines))
    with pytest.raises(ManifestError, match="none of 8 samples looked at is there, such as line 1: "):
        open_source(make_config(source=str(folder / "l.txt")))


def test_a_list_that_is_verified_is_opened_whatever_is_missing(folder: Path) -> None:
    """`prefetchd verify` reports each missing file."""
    (folder / "l.txt").write_text("none/x.jpg 0\n")
    source = open_source(make_config(source=str(folder / "l.txt")), malformed=[])
    assert source.facts.n_samples == 1
    for fd in source.handle()[1]:
        os.close(fd)


@pytest.mark.parametrize("name", ["*.csv", "img/{x,y}.jpg", "img/*.jpg"])
def test_a_pattern_is_no_list(folder: Path, name: str) -> None:
    """Patterns name shards; of lists and images the words say so."""
    with pytest.raises(ManifestError, match=r"patterns name tar shards.*give a list file, or a directory"):
        open_source(make_config(source=str(folder / name)))


def test_paths_in_a_parquet_file_are_looked_for_too(folder: Path) -> None:
    """They start from the file's folder, or from `root`."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"path": ["x.jpg", "y.jpg"], "label": [0, 1]}), folder / "sub" / "a.parquet")
    with pytest.raises(ManifestError, match=f"none of 2 samples looked at is there.*give root='{folder}'"):
        open_source(make_config(source=str(folder / "sub" / "a.parquet")))
    source = open_source(make_config(source=str(folder / "sub" / "a.parquet"), root=str(folder / "img")))
    assert source.facts.n_samples == 2
    for fd in source.handle()[1]:
        os.close(fd)
