"""What the manifest refuses, and how it says so: bad lines, tables that do not fit, files that are none."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from prefetchd.config.validate import make_config
from prefetchd.data.manifest.dialect import MalformedLine
from prefetchd.data.manifest.records import Manifest, Sample
from prefetchd.errors import ManifestError
from tests.unit.test_manifest import no_descriptor_and_no_thread_is_left, pairs, read, refusal, write  # noqa: F401


@pytest.mark.parametrize(
    ("text", "number", "what"),
    [
        ("a.jpg 1\nb.jpg\nc.jpg 3\n", 2, "there is no label"),
        ("a.jpg 1\nb.jpg x\nc.jpg 3\n", 2, "'x' is not a number"),
        ("file label\na.jpg 1\nb.jpg 2\n", 1, "'label' is not a number"),
        ("a.jpg 1\nb.jpg 1 2\nc.jpg 3\n", 2, "ends in 2 where the others end in 1 number"),
        ("a.jpg 1 2\nb.jpg 2\nc.jpg 3 4\n", 2, "ends in 1 where the others end in 2 numbers"),
        ("a.jpg 1\nb.jpg nan\n", 2, "not finite"),
        ("a.jpg 1\nb.jpg -inf\n", 2, "not finite"),
        ("a.jpg 1.5\nb.jpg 1e39\n", 2, "does not fit float32"),
        ("a.jpg 1\nb.jpg 9223372036854775808\n", 2, "does not fit 64 bits"),
        ("a.jpg 1_0\nb.jpg 1\nc.jpg 3\n", 1, "'1_0' is not a number"),
        ("a.jpg cat\nb.jpg\nc.jpg dog\n", 2, "there is no label"),
        ("a.jpg cat\nb.jpg dog\nc d.jpg\n", 3, "there is no label"),
        ("a.jpg\nb.jpg 3\nc.jpg\n", 2, "number '3'"),
        ("a.jpg\nb.jpg cat\nc.jpg\n", 2, "more follows the image 'b.jpg'"),
        ("a.jpg b.png\nc.jpg d.png\n", 1, "two images, 'a.jpg' and 'b.png'"),
        ('a.jpg 1\n"b.jpg 2\n', 2, "a quote is not closed"),
        ('a.jpg 1\n"b" c.jpg 2\n', 2, "between the quoted path and the label"),
        ("a.jpg 1\rb.jpg 2\nc.jpg 1\n", 1, "carriage return"),
    ],
)
def test_a_bad_line_is_named_with_its_number_text_and_fault(tmp_path: Path, text: str, number: int, what: str) -> None:
    """The first bad line is named, shown, explained."""
    message = refusal(write(tmp_path, text))
    assert f"line {number} of " in message
    assert what in message
    assert repr(text.split("\n")[number - 1])[:12] in message


@pytest.mark.parametrize(
    ("text", "options", "what"),
    [
        ("a.jpg,1\nb.jpg\n", {}, "line 2"),
        ("a.jpg,1\n,2\n", {}, "no path in column 0"),
        ("a.jpg,1\nb.jpg,\n", {}, "no label in column 1"),
        ('a.jpg,1\n"b.jpg,2\n', {}, "a quote is not closed"),
        ("a.jpg,1\nb.jpg,1 2\n", {}, "'1 2' is not a number"),
        ("path,label\n", {}, "no samples below its header"),
        ("path,kind,id\na.jpg,x,3\n", {}, "columns 0 'path', 1 'kind', 2 'id' "),
        ("path,kind\na.jpg,x\n", {"y_column": "label"}, "columns 0 'path', 1 'kind' "),
        ("a.jpg,x\n", {"y_column": "2"}, "y_column='2'"),
        ("a.jpg,x\n", {"label_columns": 2}, "beside the path there are 1"),
        ("path,a,a\nx.jpg,1,2\n", {"y_column": "a"}, "2 columns are called that"),
        ("path,label,label\nx.jpg,1,2\n", {}, "labels, as 2 columns are called 'label'"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, text: str, options: dict[str, object], what: str) -> None:
    """Missing columns, fields and labels are told, with the columns that there are."""
    assert what in refusal(write(tmp_path, text, "l.csv"), **options)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("photo breed\na.jpg cat\nb.jpg dog\n", {}),
        ("photo breed\na.jpg cat\nb.jpg dog\n", {"label_columns": 1}),
        ("photo breed\na.jpg cat,dog\nb.jpg dog\n", {"label_separator": ","}),
        ("Foto\na.jpg\nb c.jpg\n", {}),
        ('"the photo" breed\n"a b.jpg" cat\n', {}),
        ("path label\na cat\nb dog\n", {}),
    ],
)
def test_a_text_list_with_a_header_is_refused(tmp_path: Path, text: str, options: dict[str, object]) -> None:
    """It would be a sample, and its last word a class; a file of that name settles it."""
    source = write(tmp_path, text)
    assert "looks like a header" in refusal(source, **options)
    for name in ("photo", "Foto", "the photo", "path"):
        (tmp_path / name).touch()
    assert len(pairs(source, **options)) == text.count("\n")


@pytest.mark.parametrize("header", ["image,label", "photo,breed"])
def test_a_header_that_comes_again_is_refused(tmp_path: Path, header: str) -> None:
    """Joined tables have one for each: as a sample it would name a class."""
    source = write(tmp_path, f"{header}\na.jpg,cat\nb.jpg,dog\n{header}\nc.jpg,cat\n", "l.csv")
    assert "line 4 of" in refusal(source)
    assert "it is the header again" in refusal(source)


def test_several_bad_lines_are_refused_with_a_way_out(tmp_path: Path) -> None:
    assert "--write-clean" in refusal(write(tmp_path, "a.jpg 1\nb.jpg\nc.jpg nan\n" + "d.jpg 2\n" * 9))
    assert "target=mask" in refusal(write(tmp_path, "a.jpg b.png\nc.jpg d.png\n"))


def test_the_first_bad_lines_are_named_and_further_ones_counted(tmp_path: Path) -> None:
    """Three lines are shown with their numbers and faults, in any block; of thousands, that there are thousands."""
    text = "".join(f"a{i}.jpg {i}\n" if i % 1000 else "b.jpg\n" for i in range(1, 200_000))
    message = refusal(write(tmp_path, text))
    assert "line 1000 of" in message
    shown = "line 2000: there is no label: 'b.jpg'; line 3000: there is no label: 'b.jpg'; and 196 more bad lines; "
    assert shown in message
    message = refusal(write(tmp_path, "a.jpg 1\nb.jpg\nc.jpg 2\nd.jpg x\ne.jpg 3\n" + "f.jpg 4\n" * 100_000))
    assert "line 2 of" in message
    assert "no label: 'b.jpg'; line 4: the label 'x' is not a number, as the others are: 'd.jpg x'; mend" in message
    message = refusal(write(tmp_path, "a.jpg 1\n" * 2000 + "b.jpg\n" * 100_000))
    assert re.search(r"line 2003: [^;]*; and at least \d+ more bad lines; ", message)


@pytest.mark.parametrize("every", [2, 3, 64, 1000])
def test_malformed_lines_are_left_out_where_they_are_collected(tmp_path: Path, every: int) -> None:
    """The samples are those of the list without these lines, and keep their line numbers, in readers too."""
    lines = [f"a{i}.jpg {i}" for i in range(1, 20_001)]
    wrong = {n: ("b.jpg", "c.jpg nan", "# no sample", "")[n % 4] for n in range(every, 20_001, every)}
    text = "\n".join(wrong.get(n, line) for n, line in enumerate(lines, 1))
    malformed: list[MalformedLine] = []
    with Manifest.open(make_config(source=write(tmp_path, text)), malformed) as manifest:
        assert [line.number for line in malformed] == [n for n in wrong if n % 4 < 2]
        assert {line.reason for line in malformed} <= {
            "there is no label: 'b.jpg'", "the label 'nan' is not finite: 'c.jpg nan'",
        }  # fmt: skip
        facts, fds = manifest.handle()
        with Manifest.attach(facts, [os.dup(fd) for fd in fds]) as attached:
            samples = attached.samples(range(len(attached)))
    assert [(sample.line, sample.label) for sample in samples] == [(n, n) for n in range(1, 20_001) if n not in wrong]


@pytest.mark.parametrize(
    ("name", "text", "number"),
    [
        ("l.csv", "path,label\na.jpg,1\nb.jpg\nc.jpg,2\n", 3),
        ("l.jsonl", '{"path": "a.jpg", "label": 1}\n{"path": "b.jpg", "label": 3}\n{"path": \n', 3),
        ("l.txt", "a.jpg cat\nb.jpg dog\nc.jpg d.jpg\n", 3),
    ],
)
def test_malformed_lines_of_every_kind_of_list_are_left_out(tmp_path: Path, name: str, text: str, number: int) -> None:
    malformed: list[MalformedLine] = []
    with Manifest.open(make_config(source=write(tmp_path, text, name)), malformed) as manifest:
        assert len(manifest.samples(range(len(manifest)))) == 2
    assert [line.number for line in malformed] == [number]


def test_a_list_of_nothing_but_malformed_lines_is_refused_in_any_case(tmp_path: Path) -> None:
    """So is one with ten thousand of them: whatever that file is, it is no such list."""
    config = make_config(source=write(tmp_path, "a.jpg nan\nb.jpg nan\n"))
    with pytest.raises(ManifestError, match=r"line 1 of .*; line 2: .*leave it out$"):
        Manifest.open(config, [])
    config = make_config(source=write(tmp_path, "a.jpg 1\n" * 300 + "b.jpg\n" * 20_000))
    with pytest.raises(ManifestError, match="at least"):
        Manifest.open(config, [])


@pytest.mark.parametrize("n_lines", [100, 100_000])
def test_a_line_that_is_too_long_is_named_with_its_number(tmp_path: Path, n_lines: int) -> None:
    """Also when it is longer than a block, in the middle of the file, or at its end."""
    for after in ("\n", "\n" + "a.jpg 1\n" * n_lines, ""):
        message = refusal(write(tmp_path, "a.jpg 1\n" * n_lines + "b" * (3 << 20) + ".jpg 2" + after))
        assert f"line {n_lines + 1} of" in message
        assert "longer than 1048576 bytes" in message


def test_a_line_as_long_as_allowed_is_read(tmp_path: Path) -> None:
    """A block grows as far as a line needs, and the line's sample is found again."""
    long = "b" * ((1 << 20) - 6) + ".jpg 2"
    source = write(tmp_path, "a.jpg 1\n" * 70_000 + long + "\n" + "c.jpg 3\n" * 70_000)
    with Manifest.open(make_config(source=source, root="/")) as manifest:
        assert len(manifest) == 140_001
        assert manifest.samples([70_001, 70_000, 0]) == [
            Sample("/c.jpg", 3, 70_002),
            Sample("/" + long[:-2], 2, 70_001),
            Sample("/a.jpg", 1, 1),
        ]


def test_what_is_no_manifest_is_refused_with_the_reason(tmp_path: Path) -> None:
    """Empty, binary, UTF-16, compressed, missing and special files each get their own line."""
    assert "0 bytes" in refusal(write(tmp_path, ""))
    assert "blank lines and comments" in refusal(write(tmp_path, "# nothing\n\n"))
    assert "looks binary" in refusal(write(tmp_path, b"a.jpg 1\nb\0.jpg 2\n"))
    assert "looks binary" in refusal(write(tmp_path, b"a.jpg 1\n" * 300_000 + b"\0"))
    assert "UTF-16" in refusal(write(tmp_path, "a.jpg 1\n".encode("utf-16")))
    assert "a zip archive" in refusal(write(tmp_path, b"x", "x.zip"))
    assert "is an image" in refusal(write(tmp_path, b"x", "x.JPG"))
    assert "No such file" in refusal(str(tmp_path / "none.txt"))
    assert "stores are read by s3://, gs://, az:// or https://;" in refusal("hdfs://example.org/train.txt")
    assert "longer than" in refusal(write(tmp_path, "a.jpg 1\n" + "b" * (1 << 20) + ".jpg 2\n"))
    assert "longer than" in refusal(write(tmp_path, "a.jpg 1\n" * 400 + "b" * (3 << 20)))
    os.mkfifo(tmp_path / "fifo")
    assert "FIFO" in refusal(str(tmp_path / "fifo"))


@pytest.mark.not_root
def test_a_forbidden_file_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path, "a.jpg 1\n")
    os.chmod(source, 0)
    assert "Permission denied" in refusal(source)
