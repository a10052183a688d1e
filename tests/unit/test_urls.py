"""URLs as text, what errors show of them, and the identities of a list's objects."""

from __future__ import annotations

import os

import pytest

from prefetchd.data.kinds import expand
from prefetchd.data.stores.pins import Pins, make_pins, word_of
from prefetchd.data.stores.urls import (
    file_name,
    has_wildcard,
    is_url,
    join,
    lasting,
    parent,
    shown,
    split,
    split_user,
    with_suffix,
)
from prefetchd.errors import ManifestError, one_line


@pytest.mark.parametrize(
    "text", ["s3://b/k", "S3://b", "gs://b/k", "az://c/k", "abfs://c@a.host/k", "https://h/a", "http://h"]
)
def test_urls_are_told_from_paths(text: str) -> None:
    assert is_url(text)


@pytest.mark.parametrize("text", ["/a/b", "a.jpg", "C:/a", "hdfs://h/a", "see https://h/a", "s3:/b"])
def test_paths_are_no_urls(text: str) -> None:
    assert not is_url(text)


@pytest.mark.parametrize(
    ("url", "home", "key"),
    [
        ("s3://b/a?b#c d%20e//f.jpg", "s3://b", "a?b#c d%20e//f.jpg"),
        ("s3://b", "s3://b", ""),
        ("abfs://c@account.host/k", "abfs://c@account.host", "k"),
        ("https://h/two%20cats.jpg#top", "https://h", "two cats.jpg"),
        ("https://h/a.jpg?sig=1", "https://h/a.jpg?sig=1", ""),
        ("https://h/a//b.jpg", "https://h/a//b.jpg", ""),
        ("https://h/a%2Fb.jpg", "https://h/a%2Fb.jpg", ""),
        ("https://h/%E9t%E9.jpg", "https://h/%E9t%E9.jpg", ""),
        ("https://h/%C3%A9t%C3%A9.jpg", "https://h", "\u00e9t\u00e9.jpg"),
    ],
)
def test_a_url_has_a_store_and_a_key(url: str, home: str, key: str) -> None:
    assert split(url) == (home, key)


@pytest.mark.parametrize(
    ("root", "path", "joined"),
    [
        ("s3://b/p", "a b.jpg", "s3://b/p/a b.jpg"),
        ("s3://b/p/", "../x/./a.jpg", "s3://b/x/a.jpg"),
        ("s3://b/p", "../../../a.jpg", "s3://b/a.jpg"),
        ("s3://b/p", "..a/b..jpg", "s3://b/p/..a/b..jpg"),
        ("s3://b/p", "https://h/a.jpg", "https://h/a.jpg"),
        ("s3://b/p", "/a.jpg", "/a.jpg"),
    ],
)
def test_lines_start_from_the_root(root: str, path: str, joined: str) -> None:
    assert join(root, path) == joined


def test_names_of_lists_leave_the_query_out() -> None:
    assert parent("https://h/lists/a.csv?sig=/x.txt") == "https://h/lists"
    assert parent("https://user:word@h/lists/a.csv#/x") == "https://user:word@h/lists"
    assert parent("s3://b/lists?/a#b.csv") == "s3://b/lists?"
    assert file_name("https://h/lists/a.csv?sig=/x.txt") == "a.csv"
    assert file_name("s3://b/a?b.csv") == "a?b.csv"
    assert file_name("/data/a?b#c.csv") == "a?b#c.csv"
    assert shown("https://user:word@h/a.csv?sig=x#y") == "https://h/a.csv"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://h/a.jpg", "https://h/a.jpg"),
        ("https://h/a?id=7&size=2", "https://h/a?id=7&size=2"),
        ("https://user:word@h/a?id=7&X-Amz-Signature=1&x-amz-date=2#top", "https://h/a?id=7"),
        ("https://h/a?sv=2024-11-04&se=2026&sr=b&sp=r&sig=1%2F", "https://h/a"),
        ("https://h/a?AWSAccessKeyId=A&Signature=1&Expires=2", "https://h/a"),
        ("https://h/a?GoogleAccessId=A&Signature=1&Expires=2", "https://h/a"),
        ("https://h/a?st=7&expires=2", "https://h/a?st=7&expires=2"),
        ("https://h/a?SV=7&SIG=2&snapshot=1", "https://h/a?snapshot=1"),
        ("https://h/a?", "https://h/a"),
        ("s3://b/a?sig=1", "s3://b/a?sig=1"),
    ],
)
def test_what_is_kept_is_named_without_signatures_and_with_the_rest_of_the_query(url: str, name: str) -> None:
    assert lasting(url) == name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cannot open https://h/a?sig=1;2,3: no; check it", "cannot open https://h/a?...: no; check it"),
        ("'https://user:word@h/a.jpg?sig=1,3': bad", "'https://h/a.jpg?...': bad"),
        ("https://h/a?sig=1", "https://h/a?..."),
        ("cannot open https://h/a#sig=1; check it", "cannot open https://h/a#...; check it"),
        ("https://user:word@h/a?sig=1#top", "https://h/a?..."),
        ("https://h/a?...sig=1", "https://h/a?..."),
        ("s3://b/what?.jpg and a@b", "s3://b/what?.jpg and a@b"),
    ],
)
def test_errors_say_no_secret_of_a_url(text: str, said: str) -> None:
    assert one_line(text) == said
    assert one_line(said) == said
    assert str(ManifestError(text)) == said


def test_the_first_read_says_what_an_object_is() -> None:
    fd = make_pins(3, [word_of([5, '"known"']), 0, 0])
    pins, others = Pins(fd), Pins(os.dup(fd))
    try:
        assert pins.note(0, [5, '"known"'])
        assert not pins.note(0, [5, '"another"'])
        assert pins.word(1) == 0
        assert others.note(1, [7, ""])
        assert not pins.note(1, [8, ""])
        assert pins.note(1, [7, ""])
        assert not pins.was_read(1)
        assert pins.note(1, [7, ""], is_read=True)
        assert pins.note(1, [7, ""])
        assert others.was_read(1)
        assert not others.note(1, [8, ""], is_read=True)
        assert pins.word(1) == word_of([7, ""])
        assert pins.word(2) == 0
    finally:
        pins.close()
        others.close()


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("/data/a.b/c.tar", "/data/a.b/c.idx"),
        ("s3://b/a?c.tar", "s3://b/a?c.idx"),
        ("https://h/a.tar?sig=x.y#z", "https://h/a.idx?sig=x.y#z"),
    ],
)
def test_what_lies_beside_has_the_same_query(name: str, other: str) -> None:
    assert with_suffix(name, ".idx") == other


def test_the_user_of_a_url_is_told_from_its_address() -> None:
    assert split_user("https://a%40b:p%2F@h/k@1?x=@") == ("https://h/k@1?x=@", "a@b:p/")
    assert split_user("HTTP://token@h") == ("HTTP://h", "token")
    assert split_user("https://h/k?x=@") == ("https://h/k?x=@", "")
    assert split_user("abfs://c@account.host/k") == ("abfs://c@account.host/k", "")


def test_a_query_is_no_pattern() -> None:
    source = "https://h/train-{0..1}.tar?sv=1&sig=a*b[c]"
    assert not has_wildcard(source)
    assert has_wildcard("https://h/*.tar?sig=a")
    assert has_wildcard("s3://b/a?.tar")
    assert expand(source, "tar", "it") == [source.replace("{0..1}", number) for number in "01"]
