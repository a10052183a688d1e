"""Tables whose columns could be guessed wrong: headers, ids, rows that begin with `#`, labels before paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefetchd.config.validate import make_config
from prefetchd.data.manifest.records import Manifest
from prefetchd.errors import ManifestError


def pairs(folder: Path, text: str, name: str = "l.csv", **options: object) -> list[tuple[str, object]]:
    (folder / name).write_text(text)
    with Manifest.open(make_config(source=str(folder / name), **options)) as manifest:
        found = manifest.samples(range(len(manifest)))
        return [(str(Path(sample.path).relative_to(folder)), sample.label) for sample in found]


def refusal(folder: Path, text: str, name: str = "l.csv", **options: object) -> str:
    with pytest.raises(ManifestError) as caught:
        pairs(folder, text, name, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    "title", ["", "Unnamed: 0", "index", "ID", "image_id", "idx", "#", "row", "fold", "split", "width"]
)
@pytest.mark.parametrize("label", ["label", "Target", "class"])
def test_a_column_called_label_is_the_label_whatever_stands_beside_it(tmp_path: Path, title: str, label: str) -> None:
    """An index is no part of y."""
    text = f"{title},image,{label}\n0,a.jpg,3\n1,b.jpg,1\n"
    assert pairs(tmp_path, text) == [("a.jpg", 3), ("b.jpg", 1)]


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("Filename;Width;Height;Roi.X1;Roi.Y1;ClassId", "a.jpg;1;2;3;4;5"),
        ("Width,Height,Roi.X1,Roi.Y1,Class ID,Path", "1,2,3,4,5,a.jpg"),
        ("image-path,patient_id,class-id", "a.jpg,9,5"),
        ("patient_id,filename,age", "9,a.jpg,5"),
        ("filename,kfold,score", "a.jpg,3,5"),
    ],
)
def test_usual_names_are_known_in_any_spelling(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, header: str, row: str
) -> None:
    """Without regard to case, `_`, `-` and spaces; what was left out is logged."""
    with caplog.at_level("INFO", "prefetchd"):
        assert pairs(tmp_path, f"{header}\n{row}\n") == [("a.jpg", 5)]
    assert "labels of" in caplog.text


@pytest.mark.parametrize(
    "header",
    ["image,age,height_cm", "image,xmin,ymax", "image,breed_id,split", "image,BreedId,score", "image,width,height"],
)
def test_numbers_under_unlike_names_have_to_be_named(tmp_path: Path, header: str) -> None:
    """They may be anything; ids and sizes are no labels alone."""
    message = refusal(tmp_path, f"{header}\na.jpg,3,4\nb.jpg,5,6\n")
    assert "give y_column" in message
    assert header.split(",")[1] in message


@pytest.mark.parametrize(
    ("header", "row", "label"),
    [
        ("image,x1,x2,x3", "7,8,9", (7, 8, 9)),
        ("image,eye_x,eye_y,nose_x,nose_y", "7,8,3,4", (7, 8, 3, 4)),
        ("image,Edema,Mass", "1,0", (1, 0)),
        ("image,A,B", "7,8", (7, 8)),
    ],
)
def test_siblings_and_columns_of_zeros_and_ones_are_one_vector(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, header: str, row: str, label: object
) -> None:
    """The log says which columns they are."""
    with caplog.at_level("INFO", "prefetchd"):
        assert pairs(tmp_path, f"{header}\na.jpg,{row}\n") == [("a.jpg", label)]
    assert f"the columns {header.split(',')[1]}, " in caplog.text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.lst", "12\t5\ta.jpg\n7\t6\tb.jpg\n99\t6\tc.jpg\n"),
        ("l.csv", "5,a.jpg,1\n2,b.jpg,0\n9,c.jpg,1\n"),
        ("l.csv", "5,a.jpg,1\n"),
    ],
)
def test_numbers_before_the_path_and_more_beside_it_have_to_be_named(tmp_path: Path, name: str, text: str) -> None:
    """Without a header one of them may number the samples."""
    message = refusal(tmp_path, text, name)
    for option in ("x_column", "y_column", "label_columns=0"):
        assert option in message


@pytest.mark.parametrize(
    "header", ["mask_path,image_path,label", "thumbnail,image,label", "Mask,Photo,label", "preview,File Name,label"]
)
def test_a_usual_name_is_the_path_among_columns_of_images(tmp_path: Path, header: str) -> None:
    """And a mask is not."""
    assert pairs(tmp_path, f"{header}\nm.png,i.png,3\n") == [("i.png", 3)]


def test_two_columns_of_images_under_unusual_names_have_to_be_named(tmp_path: Path) -> None:
    """Neither comes first by right."""
    text = "left,right,label\nl.png,r.png,3\n"
    assert "give x_column" in refusal(tmp_path, text)
    assert pairs(tmp_path, text, x_column="right") == [("r.png", 3)]


def test_columns_that_number_the_samples_are_no_labels(tmp_path: Path) -> None:
    """Beside others that are; alone they have to be named."""
    assert pairs(tmp_path, "idx,image,x,y\n0,a.jpg,3,4\n1,b.jpg,1,2\n")[0] == ("a.jpg", (3, 4))
    assert "label_columns=0" in refusal(tmp_path, "image,id\na.jpg,3\nb.jpg,1\n")
    assert pairs(tmp_path, "image,id\na.jpg,3\nb.jpg,1\n", y_column="id") == [("a.jpg", 3), ("b.jpg", 1)]
    assert pairs(tmp_path, ",image\n0,a.jpg\n1,b.jpg\n") == [("a.jpg", None), ("b.jpg", None)]


def test_a_first_column_that_counts_the_lines_has_to_be_named(tmp_path: Path) -> None:
    """Without a header nothing says whether it is a label."""
    text = "0,a.jpg,3\n1,b.jpg,1\n2,c.jpg,2\n"
    assert "column 0 counts the lines" in refusal(tmp_path, text)
    assert pairs(tmp_path, text, y_column="2") == [("a.jpg", 3), ("b.jpg", 1), ("c.jpg", 2)]
    assert pairs(tmp_path, "4,a.jpg\n1,b.jpg\n2,c.jpg\n") == [("a.jpg", 4), ("b.jpg", 1), ("c.jpg", 2)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("id,breed\n0a,dingo\n0b,pug\n", [("0a", 0), ("0b", 1)]),
        ("id_code,diagnosis\n0a,2\n0b,4\n", [("0a", 2), ("0b", 4)]),
        ("name,score\n0a,2\n0b,4\n", [("0a", 2), ("0b", 4)]),
        ("0c,dingo\n0b,pug\n", [("0c", 0), ("0b", 1)]),
    ],
)
def test_a_header_over_paths_without_suffix_is_recognised(tmp_path: Path, text: str, expected: object) -> None:
    """By its names, or as a word over numbers."""
    assert pairs(tmp_path, text) == expected


def test_the_disk_says_whether_the_first_row_is_a_sample(tmp_path: Path) -> None:
    """Unusual names over names of classes: files that are there are no header."""
    for name in ("0a", "0b"):
        (tmp_path / name).touch()
    assert pairs(tmp_path, "photo,breed\n0a,dingo\n0b,pug\n") == [("0a", 0), ("0b", 1)]
    (tmp_path / "photo").touch()
    assert pairs(tmp_path, "photo,breed\n0a,dingo\n0b,pug\n") == [("photo", 0), ("0a", 1), ("0b", 2)]


def test_a_header_in_text_is_no_sample_and_no_class(tmp_path: Path) -> None:
    """Among names of classes nothing else would refuse it."""
    assert "looks like a header" in refusal(tmp_path, "image label\na.jpg cat\nb.jpg dog\n", "l.txt")
    assert pairs(tmp_path, "# image label\na.jpg cat\nb.jpg dog\n", "l.txt") == [("a.jpg", 0), ("b.jpg", 1)]


def test_rows_that_begin_with_a_hash_are_rows(tmp_path: Path) -> None:
    """A hash and a space begin a comment, and in CSV so does a line of other columns before the first row."""
    expected = [("#a.jpg", 5), ("b.jpg", 6), ("#c.jpg", 7)]
    assert pairs(tmp_path, "image,label\n#a.jpg,5\nb.jpg,6\n# no sample\n#c.jpg,7\n") == expected
    assert pairs(tmp_path, "#made by hand\n#image,label\n#a.jpg,5\nb.jpg,6\n#c.jpg,7\n") == expected
    assert pairs(tmp_path, "#a.jpg 5\n# no sample\nb.jpg 6\n", "l.txt") == [("#a.jpg", 5), ("b.jpg", 6)]


def test_rows_that_begin_with_a_hash_are_found_in_long_tables(tmp_path: Path) -> None:
    """The index, the pass over blocks and the lookups count the same lines."""
    rows = [f"{'#' if number % 3 else ''}{number}.jpg,{number}\n" for number in range(5000)]
    found = pairs(tmp_path, "image,label\n" + "# comment\n".join(rows))
    assert [label for _, label in found] == list(range(5000))
    assert found[4999][0] == "#4999.jpg"


@pytest.mark.parametrize("text", ["1 a.jpg\n2 b.jpg\n", "cat a.jpg\ndog b.jpg\n"])
def test_a_label_before_the_path_is_not_read_as_a_part_of_it(tmp_path: Path, text: str) -> None:
    """By what is there on the disk, or by the number; `label_columns=0` takes all of it."""
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    assert "write the path first" in refusal(tmp_path, text, "l.txt")
    expected = [(line, None) for line in text.splitlines()]
    assert pairs(tmp_path, text, "l.txt", label_columns=0) == expected
    for line in text.splitlines():
        (tmp_path / line).touch()
    assert pairs(tmp_path, text, "l.txt") == expected


def test_a_space_in_a_name_is_no_label_before_the_path(tmp_path: Path) -> None:
    """Where nothing is there, words belong to the name."""
    assert pairs(tmp_path, "my cat.jpg\nmy dog.jpg\n", "l.txt") == [("my cat.jpg", None), ("my dog.jpg", None)]
    assert "write the path first" in refusal(tmp_path, "1 cat.jpg\n2 dog.jpg\n", "l.txt")
