"""The quick check of a block is sure of nothing that parsing the line would refuse or read in another way."""

from __future__ import annotations

import random
from itertools import accumulate

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefetchd.data.manifest.block_check import BlockCheck
from prefetchd.data.manifest.dialect import BadLine, Dialect, is_sample
from prefetchd.data.manifest.line import check_number, parse_line

DIALECTS = {
    "one number": Dialect("text", "number", 1, exact=True),
    "one number, given": Dialect("text", "number", 1),
    "three numbers": Dialect("text", "number", 3, exact=True),
    "two numbers, given": Dialect("text", "number", 2),
    "class": Dialect("text", "class", 1),
    "no label": Dialect("text", "none", 0, exact=True),
    "no label, given": Dialect("text", "none", 0),
    "csv": Dialect("table", "number", 1, separator=",", columns=2, x=0, y=(1,)),
    "csv, label first": Dialect("table", "number", 1, separator=",", columns=2, x=1, y=(0,)),
    "csv, classes": Dialect("table", "class", 1, separator=",", columns=2, x=0, y=(1,)),
    "csv, two of four": Dialect("table", "number", 2, separator=",", columns=4, x=1, y=(3, 0)),
    "csv, paths": Dialect("table", "none", 0, separator=",", columns=1, x=0),
    "tsv, classes in the middle": Dialect("table", "class", 1, separator="\t", columns=3, x=2, y=(1,)),
}

# Pieces that lines are made of; a line is any of them in a row.
PIECES = [
    *" ,\t\r\v\f\"'#.+-eE/",
    *["  ", ", ", " ,", '""'],
    *["a.jpg", "b.PNG", "a b.jpg", "x.tif", "scan_12", "dir/7", "0001", "c.jpg ", "d.jpg,"],
    *["0", "7", "42", "-1", "+5", "1.5", ".5", "2.", "1e5", "1e-5", "-1.5E-07", "1e39", "3e+2", "1e", "e-5"],
    *["1.2.3", "--1", "nan", "inf", "-Infinity", "12in", "1_0", "0x1f", "1" * 18, "1" * 19],
    *["9223372036854775807", "9223372036854775808", "-9223372036854775809"],
    *["cat", "dog", "n01440764", "golden_retriever", "a label of words in it that is rather long", "\xe9"],
    *["x" * 31, "x" * 32, "x" * 33, "y" * 70],
]  # fmt: skip
LINES = st.lists(st.sampled_from(PIECES), min_size=0, max_size=8).map("".join)


def check(dialect: Dialect, lines: list[bytes]) -> None:
    """Compare what the quick check says of `lines`, in a block, with what parsing each of them says."""
    checked = BlockCheck(dialect)(b"".join(line + b"\n" for line in lines))
    assert checked.n_lines == len(lines)
    rows = [row for row, line in enumerate(lines) if is_sample(line)]
    assert checked.rows.tolist() == rows
    doubtful = set(checked.doubtful.tolist())
    starts = list(accumulate((len(line) + 1 for line in lines), initial=0))
    any_fraction, labels = False, set()
    for sample, row in enumerate(rows):
        line = lines[row]
        assert starts[row] == checked.starts[sample]
        assert checked.ends[sample] == checked.starts[sample] + len(line)
        if sample in doubtful:
            continue
        _, fields = parse_line(dialect, line)  # raises if the check was sure of a bad line
        if dialect.label_kind == "number":
            fractions = [check_number(field) for field in fields]  # each of them must be good
            any_fraction |= any(fractions)
        else:
            labels |= set(fields)
    assert checked.any_fraction == any_fraction
    assert checked.labels == (labels if dialect.label_kind == "class" else set())


@pytest.mark.parametrize("name", DIALECTS)
@settings(max_examples=80, deadline=None)
@given(lines=st.lists(LINES, min_size=1, max_size=12))
@example(lines=["a.jpg 1", "", "# 3", "a.jpg 0.5 1 2", "a.jpg,1", "a.jpg,1,x,3"])
def test_what_is_sure_parses_and_has_the_labels_that_were_taken_in(name: str, lines: list[str]) -> None:
    """Any mixture of fields, quotes, white space, numbers and near-numbers, in every dialect."""
    check(DIALECTS[name], [line.encode("latin-1") for line in lines])


GOOD = {
    "one number": ["a.jpg 3", "a b.jpg -12", "d/x.tif 7", "0001 5", "a.jpg\t1.5 ", "a.jpg 1e-05\r"],
    "one number, given": ["a 12 3", "7 7"],
    "three numbers": ["a.jpg 1 2 3", "a b.jpg .5  -1.25 2."],
    "two numbers, given": ["a 12 3 5.5"],
    "class": ["a.jpg cat", "a b.jpg dog\r", "x n01440764", "y golden_retriever  "],
    "no label": ["a.jpg", "b\r"],
    "no label, given": ["a b c", "a 1"],
    "csv": ["a.jpg,3", "a b.jpg, 12 ", "a,7.5\r"],
    "csv, label first": ["3,a.jpg", "-1,b c"],
    "csv, classes": ["a.jpg,cat", "a.jpg, a big dog \r"],
    "csv, two of four": ["1,a.jpg,x,2", "1.5 ,b c,, 7"],
    "csv, paths": ["a.jpg", "b c "],
    "tsv, classes in the middle": ["1\tcat\ta.jpg", "2\t dog \tb c.jpg"],
}


@pytest.mark.parametrize("name", DIALECTS)
def test_ordinary_lines_are_not_in_doubt(name: str) -> None:
    """Else a long manifest takes its time: the usual ways to write each kind pass, and labels are taken in once."""
    random.seed(1)
    lines = [line.encode() for line in random.choices(GOOD[name], k=3000)]
    check(DIALECTS[name], lines)
    block_check = BlockCheck(DIALECTS[name])
    block = b"".join(line + b"\n" for line in lines)
    assert len(block_check(block).doubtful) == 0
    assert len(block_check(block[:-1] + b"\n").labels) <= 1  # the block's first label may be looked at each time


def test_more_labels_than_the_table_holds_are_all_taken_in() -> None:
    """Labels that share a place in the table of known ones take turns."""
    lines = [b"a.jpg class_number_%d" % (number * 7919 % 50_000) for number in range(100_000)]
    check = BlockCheck(Dialect("text", "class", 1))
    labels = set()
    for start in range(0, len(lines), 10_000):
        labels |= check(b"".join(line + b"\n" for line in lines[start : start + 10_000])).labels
    assert labels == {line.split()[1] for line in lines}


def test_a_bad_line_is_in_doubt_wherever_it_stands() -> None:
    """The first line of a block, where a look backwards leaves the block, and the last."""
    for bad in (b"5", b"a.jpg", b"a.jpg 1 2", b"a.jpg x"):
        dialect = DIALECTS["one number"]
        with pytest.raises(BadLine):
            parse_line(dialect, bad)
        for lines in ([bad], [bad, b"a.jpg 1"], [b"a.jpg 1", bad], [b"1 1", bad, b"1 1"]):
            checked = BlockCheck(dialect)(b"\n".join(lines) + b"\n")
            assert checked.doubtful.tolist() == [lines.index(bad)]
