"""Labels that would be guessed wrong: lists as names, names as numbers, missing ones, integers that float32 changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefetchd.config.validate import make_config
from prefetchd.data.labels import BadLabel, Labels, check_names, find_label, fits_float32
from prefetchd.data.manifest.records import Manifest
from prefetchd.errors import ManifestError


def opened(folder: Path, text: str, name: str = "l.csv", **options: object) -> Manifest:
    (folder / name).write_text(text)
    return Manifest.open(make_config(source=str(folder / name), **options))


def labels(folder: Path, text: str, name: str = "l.csv", **options: object) -> list[object]:
    with opened(folder, text, name, **options) as manifest:
        return [sample.label for sample in manifest.samples(range(len(manifest)))]


def refusal(folder: Path, text: str, name: str = "l.csv", **options: object) -> str:
    with pytest.raises(ManifestError) as caught:
        opened(folder, text, name, **options)
    return str(caught.value)


def rows(*values: str, quote: bool = True) -> str:
    """A CSV with a path and a label for each value."""
    mark = '"' if quote else ""
    return "image,label\n" + "".join(f"{number}.jpg,{mark}{value}{mark}\n" for number, value in enumerate(values))


# --- lists of labels


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        (("0,5", "1,25", "cat"), "write 0.5 for a fraction"),
        (("[1, 2]", "[3]", "cat", "dog"), "label_separator=','"),
        (("147 616 813", "51", "cat", "x", "y"), "label_separator=' '"),
        (("Mass|Nodule", "Mass", "Edema"), "label_separator='|'"),
        (("cat;dog", "bird"), "label_separator=';'"),
        (("1,4,7", "cat", "dog", "bird"), "label_separator=','"),
        (("a, b", "b, c", "a, c", "a", "c", "b"), "label_separator=','"),
        (("cat, dog", "dog, bird"), "label_separator=','"),
        (("cat, dog", "cat", "bird"), "label_separator=','"),
        (("haze primary", "clear primary water", "clear primary"), "label_separator=' '"),
        (("golden", "retriever", "golden retriever"), "label_separator=' '"),
        (("A/B", "A", "B"), "label_separator='/'"),
        (("A/B", "B/C"), "label_separator='/'"),
        (("A+B", "A", "B"), "label_separator='+'"),
        (("A & B", "A", "B"), "label_separator='&'"),
        (("A & B", "B & C", "D"), "label_separator='&'"),
        (("cat_dog", "cat", "dog"), "label_separator='_'"),
    ],
)
def test_labels_that_look_like_lists_are_refused_with_the_option(
    tmp_path: Path, values: tuple[str, ...], hint: str
) -> None:
    """Each combination would be a class of its own."""
    message = refusal(tmp_path, rows(*values))
    assert hint in message
    assert 'label_separator=""' in message
    assert labels(tmp_path, rows(*values), label_separator="") == [sorted(values).index(value) for value in values]


@pytest.mark.parametrize(
    "names",
    [
        ("tench, Tinca tinca", "goldfish, Carassius auratus", "maillot", "maillot, tank suit", "cock"),
        ("black cat", "white cat", "black dog", "white dog"),
        ("golden retriever", "labrador retriever", "flat coated retriever", "pug"),
        ("black bear", "american black bear", "polar bear", "bear"),
        ("animal/cat", "animal/dog", "plant/oak"),
        ("living_room", "bed_room", "room", "t-shirt", "sweat-shirt"),
        ("salt & pepper", "mac & cheese", "R+L"),
        ("2.0 (Clean)", "1.0 (Noisy)"),
        ("50%", "60%"),
        ("a/b", "b-c", "c_d", "é", "x.y", "10-12"),
        (),
    ],
)
def test_names_with_commas_and_spaces_are_names(names: tuple[str, ...]) -> None:
    """Synonyms and names of two words are not taken for lists."""
    check_names(names, "the list")


def test_a_list_of_numbers_beside_single_numbers_is_refused_with_the_option(tmp_path: Path) -> None:
    """In text, where the majority are numbers, and where they are not."""
    assert "label_separator=','" in refusal(tmp_path, "a.jpg 1,4,7\nb.jpg 5\nc.jpg 6\n", "l.txt")
    assert "label_separator=','" in refusal(tmp_path, "a.jpg 1,4,7\nb.jpg 5,6\nc.jpg 6\n", "l.txt")


@pytest.mark.parametrize(
    ("name", "text", "separator"),
    [
        ("l.csv", rows("b|a", "c", "", "a|a"), "|"),
        ("l.csv", rows("[b, a]", "['c']", "[]", "a"), ","),
        ("l.tsv", "image\tlabel\n0.jpg\tb a\n1.jpg\tc\n2.jpg\t\n3.jpg\ta\n", " "),
        ("l.txt", "0.jpg b|a\n1.jpg c\n2.jpg |\n3.jpg a|\n", "|"),
        (
            "l.jsonl",
            "".join(
                json.dumps({"image": f"{number}.jpg", "label": label}) + "\n"
                for number, label in enumerate((["b", "a"], "c", None, ["a"]))
            ),
            ",",
        ),
    ],
)
def test_a_label_separator_makes_a_vector_over_the_sorted_classes(
    tmp_path: Path, name: str, text: str, separator: str
) -> None:
    """1 for each name in the field, in float32; an empty field names none."""
    with opened(tmp_path, text, name, label_separator=separator) as manifest:
        assert manifest.classes == ("a", "b", "c")
        assert (manifest.label_dtype, manifest.label_shape) == ("float32", (3,))
        facts = manifest.handle()[0]
        assert facts["label_shape"] == [3]
        found = [sample.label for sample in manifest.samples(range(4))]
    assert found == [(1, 1, 0), (0, 0, 1), (0, 0, 0), (1, 0, 0)]


def test_classes_that_are_integers_are_sorted_as_integers(tmp_path: Path) -> None:
    """10 comes after 9."""
    with opened(tmp_path, "a.jpg 10,9\nb.jpg 1\n", "l.txt", label_separator=",") as manifest:
        assert manifest.classes == ("1", "9", "10")
        assert manifest.sample(0).label == (0, 1, 1)


def test_a_label_separator_that_does_not_go_with_the_list_is_refused(tmp_path: Path) -> None:
    """Without labels, with several columns, with white space in text, in a directory."""
    assert "no labels" in refusal(tmp_path, "a.jpg\nb.jpg\n", label_separator="|")
    assert "2 columns" in refusal(tmp_path, "image,a,b\nx.jpg,1,2\n", label_separator="|")
    assert "white space" in refusal(tmp_path, "a.jpg b c\n", "l.txt", label_separator=" ")
    assert "its labels name 0 classes" in refusal(tmp_path, rows("", ""), label_separator="|")
    with pytest.raises(ManifestError, match="label_separator"):
        Manifest.open(make_config(source=str(tmp_path), label_separator="|"))


# --- missing labels


@pytest.mark.parametrize(
    ("name", "text", "missing", "expected"),
    [
        ("l.csv", rows("1", "", "nan", "0", quote=False), -1, [1, -1, -1, 0]),
        ("l.csv", "image,a,b\nx.jpg,1.0,\ny.jpg,,-1.0\n", 0, [(1.0, 0.0), (0.0, -1.0)]),
        ("l.csv", rows("cat", "", "dog", quote=False), "none", [0, 2, 1]),
        ("l.csv", rows("", "", "", "2", quote=False), -1, [-1, -1, -1, 2]),
        ("l.txt", "a.jpg 1\nb.jpg\nc c.jpg\nd.jpg NaN\ne.jpg 2\nf.jpg 3\ng.jpg 4\n", 9, [1, 9, 9, 9, 2, 3, 4]),
        ("l.jsonl", '{"image":"a","label":1}\n{"image":"b","label":null}\n{"image":"c"}\n', "-1", [1, -1, -1]),
        ("l.jsonl", '{"image":"a","label":"x"}\n{"image":"b","label":""}\n', "y", [0, 1]),
    ],
)
def test_missing_labels_get_the_value_that_is_given(
    tmp_path: Path, name: str, text: str, missing: object, expected: list[object]
) -> None:
    """Empty fields of any label, and NaN among numbers; refused with the option without it."""
    assert labels(tmp_path, text, name, missing_label=missing) == expected
    assert "missing_label" in refusal(tmp_path, text, name) or name == "l.jsonl"


@pytest.mark.parametrize("word", ["nan", "NA", "null", "None", "n/a"])
@pytest.mark.parametrize("name", ["l.csv", "l.txt", "l.jsonl"])
def test_a_missing_name_is_no_class(tmp_path: Path, name: str, word: str) -> None:
    """Among names of classes, too; counted, and `missing_label` settles it."""
    form = {"l.csv": "{0}.jpg,{1}\n", "l.txt": "{0}.jpg {1}\n", "l.jsonl": '{{"image":"{0}.jpg","label":"{1}"}}\n'}[
        name
    ]
    values = ["cat", word, "dog"] * 3
    text = "".join(form.format(number, value) for number, value in enumerate(values))
    message = refusal(tmp_path, text, name)
    assert message.count("says that there is none") == 3
    assert "missing_label='none'" in message
    assert labels(tmp_path, text, name, missing_label="unknown") == [0, 2, 1] * 3
    with pytest.raises(BadLabel, match="missing"):
        Labels("the shards").take([word])


def test_a_missing_label_may_be_nan_and_must_be_a_number_among_numbers(tmp_path: Path) -> None:
    """NaN makes the labels float32."""
    with opened(tmp_path, rows("1", "", quote=False), missing_label=float("nan")) as manifest:
        assert manifest.label_dtype == "float32"
        assert manifest.sample(0).label == 1.0
        assert manifest.sample(1).label != manifest.sample(1).label
    assert "its labels are numbers" in refusal(tmp_path, rows("1", "", quote=False), missing_label="x")


def test_lines_without_a_label_are_counted(tmp_path: Path) -> None:
    """The fix is one option."""
    message = refusal(tmp_path, rows(*("1" if number % 2 else "" for number in range(40)), quote=False))
    assert "and 17 more bad lines; " in message
    assert "missing_label=-1" in message


# --- integers in float32


@pytest.mark.parametrize(
    ("value", "fits"),
    [(0, True), (1 << 24, True), ((1 << 24) + 1, False), (-(1 << 24) - 1, False), (1 << 40, True), (123456789, False)],
)
def test_integers_that_float32_holds(value: int, fits: bool) -> None:
    """All up to 2^24, and beyond it those that end in enough zero bits."""
    assert fits_float32(value) is fits


@pytest.mark.parametrize("name", ["l.csv", "l.txt", "l.jsonl"])
def test_a_fraction_among_integers_that_it_would_change_is_refused(tmp_path: Path, name: str) -> None:
    """In either order; with the line, wherever it stands."""
    form = {"l.csv": "{0}.jpg,{1}\n", "l.txt": "{0}.jpg {1}\n", "l.jsonl": '{{"image":"{0}.jpg","label":{1}}}\n'}[name]
    values = [str(number) for number in range(300)]
    values[7], values[290] = "16777217", "0.5"
    for order in (values, values[::-1]):
        text = "".join(form.format(number, value) for number, value in enumerate(order))
        message = refusal(tmp_path, text, name)
        assert "the label 16777217" in message
        assert f"line {order.index('16777217') + 1} of" in message
    values[7] = "16777216"
    text = "".join(form.format(number, value) for number, value in enumerate(values))
    assert labels(tmp_path, text, name)[7] == 16777216.0
    values[7], values[290] = "16777217", "5"
    text = "".join(form.format(number, value) for number, value in enumerate(values))
    assert labels(tmp_path, text, name)[7] == 16777217


@pytest.mark.parametrize("name", ["l.csv", "l.txt", "l.jsonl"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_whole_number_with_a_point_that_float32_changes_is_refused(tmp_path: Path, name: str, ending: str) -> None:
    """pandas writes ids so where one of them is missing; numbers that float32 holds are served."""
    form = {"l.csv": "{0}.jpg,{1}", "l.txt": "{0}.jpg {1}", "l.jsonl": '{{"image":"{0}.jpg","label":{1}}}'}[name]
    values = ["2", "16777216.0", "0.12345670", "123456789.5", "1234567890.25"]
    text = "".join(form.format(number, value) + ending for number, value in enumerate(values))
    assert labels(tmp_path, text, name)[:2] == [2.0, 16777216.0]
    for value in ("16777217.0", "-123456789.000"):
        assert f"the label {value[:9]}" in refusal(tmp_path, text + form.format(9, value) + ending, name)


@pytest.mark.parametrize("order", [(16777217.0, 2), (2, 16777217.0), (123456789, 0.5), (0.5, 123456789)])
def test_records_refuse_a_fraction_among_large_integers_too(order: tuple[float, float]) -> None:
    """Labels of tar shards and Parquet files come one by one."""
    found = Labels("the shards")
    with pytest.raises(ManifestError, match=str(int(max(order)))):
        list(map(found.take, ([value] for value in order)))


def test_records_refuse_names_that_are_lists_unless_they_are_taken_whole() -> None:
    """`label_separator` cannot split them, and `label_separator=""` settles it."""
    for whole in (False, True):
        found = Labels("the shards", whole=whole)
        found.take(["a|b"])
        found.take(["a"])
        if whole:
            found.check_complete()
        else:
            with pytest.raises(ManifestError, match="write a 0/1 vector"):
                found.check_complete()
    with pytest.raises(BadLabel, match="empty"):
        Labels("x").take([""])


# --- under which name


def test_a_label_under_an_unknown_name_is_never_left_out() -> None:
    """A usual name is found in any case; what pandas adds is none; anything else is asked for."""
    assert find_label(["width", "Label", "target"], "x") == "Label"
    assert find_label(["Unnamed: 0", ""], "x") is None
    assert find_label([], "x") is None
    for names, likely in ((["breed"], "breed"), (["id", "fine_label"], "fine_label"), (["id"], "id")):
        with pytest.raises(ManifestError, match=f"give y_column='{likely}', label_columns=0 for no labels"):
            find_label(names, "x")


def test_a_json_label_under_an_unknown_key_has_to_be_named(tmp_path: Path) -> None:
    """The label would be the sample's number otherwise."""
    text = '{"image": "a.jpg", "breed": "dingo"}\n{"image": "b.jpg", "breed": "pug"}\n'
    assert "give y_column='breed', label_columns=0 for no labels" in refusal(tmp_path, text, "l.jsonl")
    assert labels(tmp_path, text, "l.jsonl", y_column="breed") == [0, 1]
    assert labels(tmp_path, text, "l.jsonl", label_columns=0) == [None, None]


def test_nan_as_python_writes_it_is_a_missing_label(tmp_path: Path) -> None:
    """`json.dumps` writes NaN, which is no JSON."""
    text = "".join(json.dumps({"image": "a.jpg", "label": label}) + "\n" for label in (1, float("nan"), 2))
    assert "line 2 of" in refusal(tmp_path, text, "l.jsonl")
    assert "missing_label" in refusal(tmp_path, text, "l.jsonl")
    assert labels(tmp_path, text, "l.jsonl", missing_label=-1) == [1, -1, 2]
