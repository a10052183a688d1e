"""Tar shards as records: shards in, samples or clear errors out."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from prefetchd.config.validate import make_config
from prefetchd.data.faults import UnreadableFile
from prefetchd.data.files import FileBuffer
from prefetchd.data.kinds import kind_of
from prefetchd.data.tar.records import TarShards
from prefetchd.errors import ManifestError
from tests.records import Content, write_tar


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) <= before  # what an earlier test left may have closed


def opened(source: object, **options: object) -> TarShards:
    return TarShards.open(make_config(source=str(source), **options))


def count(source: object, **options: object) -> int:
    with opened(source, **options) as shards:
        return len(shards)


def contents(shards: TarShards) -> list[tuple[bytes, object]]:
    """(bytes, label) of every sample."""
    buffer = FileBuffer()
    return [
        (bytes(shards.read(sample, buffer, lambda _: None)), sample.label)
        for sample in shards.samples(range(len(shards)))
    ]


def read(source: object, **options: object) -> list[tuple[bytes, object]]:
    with opened(source, **options) as shards:
        return contents(shards)


def refusal(source: object, **options: object) -> str:
    with pytest.raises(ManifestError) as caught:
        opened(source, **options).close()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("cannot ")
    assert ";" in message
    return message


def one(folder: Path, *members: tuple[str, Content], name: str = "a.tar") -> str:
    return write_tar(folder / name, members)


@pytest.mark.parametrize(
    ("members", "options", "expected"),
    [
        ([("a.jpg", b"A"), ("a.cls", "3"), ("b.cls", "4\n"), ("b.png", b"B")], {}, [(b"A", 3), (b"B", 4)]),
        ([("a.jpg", b"A"), ("b.JPG", b"B")], {}, [(b"A", None), (b"B", None)]),
        ([("a.jpg", b"A"), ("a.cls", "3")], {"label_columns": 0}, [(b"A", None)]),
        ([("x.y/a.1/0.jpg", b"A"), ("x.y/a.1/0.cls", "1")], {}, [(b"A", 1)]),
        ([("x/a.jpg", b"A"), ("x/a.cls", "1"), ("y/a.jpg", b"B"), ("y/a.cls", "2")], {}, [(b"A", 1), (b"B", 2)]),
        ([("a.jpg", b"A"), ("a.json", '{"label": 5, "w": 1}')], {}, [(b"A", 5)]),
        ([("a.jpg", b"A"), ("a.json", '{"b": {"c": [1, 2.5]}}')], {"y_column": "json:b.c"}, [(b"A", (1.0, 2.5))]),
        ([("a.jpg", b"A"), ("a.json", '{"w": 2}'), ("a.cls", "1")], {"y_column": "cls,json:w"}, [(b"A", (1, 2))]),
        ([("a.jpg", b"A"), ("a.json", '{"w": 2}')], {"label_columns": 0}, [(b"A", None)]),
        ([("a.jpg", b"A"), ("a.json", "{}")], {}, [(b"A", None)]),
        ([("a.jpg", b"A"), ("a.seg.png", b"B")], {}, [(b"A", None)]),
        ([("2.0 (Clean).jpg", b"A"), ("2.0 (Clean).cls", "7")], {"y_column": "0 (Clean).cls"}, [(b"A", 7)]),
        ([("a.jpg", b"A"), ("a.txt", "dog"), ("b.jpg", b"B"), ("b.txt", "a cat")], {"y_column": "txt"},
         [(b"A", 1), (b"B", 0)]),
        ([("a.jpg", b"A"), ("a.txt", "a caption")], {"label_columns": 0}, [(b"A", None)]),
        ([("a.jpg", b"A"), ("a.png", b"B")], {"x_column": "png"}, [(b"B", None)]),
        ([("a.jpg", b"A"), ("b.png", b"B")], {"x_column": "jpg;png"}, [(b"A", None), (b"B", None)]),
        ([("a.input.jpg", b"A"), ("a.seg.png", b"B")], {"x_column": "input.jpg"}, [(b"A", None)]),
        ([("a.input.jpg", b"A"), ("a.cls", "1")], {}, [(b"A", 1)]),
        ([("a.raw", b"A")], {"x_column": ".RAW"}, [(b"A", None)]),
        ([("a.jpg", b"A"), ("a.cls", "1"), ("b.jpg", b"B"), ("b.cls", "2.5")], {}, [(b"A", 1.0), (b"B", 2.5)]),
        ([("a.jpg", b"A"), ("a.cls", "1 2"), ("b.jpg", b"B"), ("b.cls", "2 -3")], {},
         [(b"A", (1, 2)), (b"B", (2, -3))]),
        ([("README", "x"), (".hidden.jpg", b"x"), ("__meta__.json", "{}"), ("a.jpg", b"A")], {}, [(b"A", None)]),
        ([("n" * 300 + ".jpg", b"A"), ("n" * 300 + ".cls", "9")], {}, [(b"A", 9)]),
    ],
)  # fmt: skip
def test_consecutive_members_with_one_key_are_a_sample(tmp_path: Path, members, options, expected) -> None:
    """Keys end at the first dot; the image by its extension; labels of .cls, .json, .txt; what is no sample's."""
    assert read(one(tmp_path, *members), **options) == expected


def test_directories_and_other_members_are_passed_over(tmp_path: Path) -> None:
    """Archives of a folder have them."""
    folder = tarfile.TarInfo()
    folder.type = tarfile.DIRTYPE
    assert read(one(tmp_path, ("x.d", folder), ("x.d/a.jpg", b"A"))) == [(b"A", None)]


@pytest.mark.parametrize(
    ("members", "options", "what"),
    [
        ([("b.cls", "1")], {}, r"a.tar sample b: it has no image among its members \(.cls\)"),
        ([("b.jpg", b"B")], {}, r"a.tar sample b: it has no label .cls \(.jpg\)"),
        ([("b.jpg", b"B"), ("b.png", b"C"), ("b.cls", "1")], {},
         r"sample b: it has 2 images \(.jpg, .png\); give x_column"),
        ([("b.jpg", b"B"), ("b.jpg", b"C"), ("b.cls", "1")], {}, "sample b: it has 2 members b.jpg"),
        ([("b.jpg", b"B"), ("b.cls", "cat")], {}, "sample b: its label is text .'cat'., and not a number"),
        ([("b.jpg", b"B"), ("b.cls", "")], {}, "sample b: its label b.cls is empty"),
        ([("b.jpg", b"B"), ("b.cls", b"\xff")], {}, "sample b: its label b.cls is not text"),
        ([("b.jpg", b"B"), ("b.cls", "1 2")], {}, "sample b: its label has 2 numbers, and the first has 1"),
        ([("b.jpg", b"B"), ("b.cls", "nan")], {}, "sample b: its label nan is not finite"),
        ([("b.jpg", b"B"), ("b.cls", str(2**63))], {}, "64 bits"),
        ([("b.jpg", b"B"), ("b.cls", "1")], {"x_column": "webp"}, "sample a: it has no .webp among its members"),
        ([], {"y_column": "json"}, "sample a: it has no label .json"),
        ([], {"label_columns": 2}, "label_columns=2"),
    ],
)  # fmt: skip
def test_a_sample_that_does_not_fit_is_refused_by_shard_and_key(tmp_path: Path, members, options, what) -> None:
    """The sample before it is good."""
    import re

    message = refusal(one(tmp_path, ("a.jpg", b"A"), ("a.cls", "0"), *members), **options)
    assert re.search(what, message), message


def test_the_first_bad_sample_is_named_and_the_others_counted(tmp_path: Path) -> None:
    """As for a manifest's lines."""
    members = [(f"{i}.jpg", b"x") for i in range(5)]
    message = refusal(one(tmp_path, ("a.jpg", b"A"), ("a.cls", "0"), *members))
    assert "sample 0:" in message
    assert "4 more bad samples" in message


def test_a_label_that_only_later_samples_have_is_not_lost(tmp_path: Path) -> None:
    """Found out from the first, the labels would be none."""
    assert "sample b: it has a label" in refusal(one(tmp_path, ("a.jpg", b"A"), ("b.jpg", b"B"), ("b.cls", "1")))


def test_a_json_label_that_only_later_samples_have_is_not_lost(tmp_path: Path) -> None:
    """Nor one of a first sample whose JSON is damaged."""
    members = ("a.jpg", b"A"), ("a.json", "{}"), ("b.jpg", b"B"), ("b.json", '{"label": 1}')
    assert "sample b: it has a label (.json:label), and the first sample has none" in refusal(one(tmp_path, *members))
    assert count(one(tmp_path, *members), label_columns=0) == 2
    damaged = one(tmp_path, ("a.jpg", b"A"), ("a.json", "{"), ("b.jpg", b"B"), ("b.json", '{"label": 1}'))
    assert "sample a: its a.json: it is not JSON" in refusal(damaged)
    assert count(damaged, label_columns=0) == 2
    late = one(tmp_path, ("a.jpg", b"A"), ("b.jpg", b"B"), ("b.label", "1"))
    assert "sample b: it has a label (.label)" in refusal(late)


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ([("a.label", "1")], r"are \.label; give y_column='label', or label_columns=0"),
        ([("a.txt", "a caption"), ("a.json", '{"breed": "pug", "width": 3}')],
         r"are \.txt, \.json:breed, \.json:width; give y_column='txt', or label_columns=0"),
        ([("a.json", "[1]")], r"are \.json; .*label_columns=0"),
        ([("a.npy", b"1")], r"are \.npy; give y_column='npy', or"),
    ],
)  # fmt: skip
def test_a_label_under_an_unknown_name_is_refused(tmp_path: Path, members, what) -> None:
    """It would be left out in silence, and y be the sample's number."""
    import re

    source = one(tmp_path, ("a.jpg", b"A"), *members)
    message = refusal(source)
    assert message.startswith("cannot tell which member of a.tar sample a has the label"), message
    assert re.search(what, message), message
    assert read(source, label_columns=0) == [(b"A", None)]


def test_a_dot_in_a_sample_s_name_does_not_lose_its_label(tmp_path: Path) -> None:
    """WebDataset's key ends at the first dot, so `2.0 (Clean).cls` is no `.cls`."""
    message = refusal(one(tmp_path, ("2.0 (Clean).jpg", b"A"), ("2.0 (Clean).cls", "7")))
    assert "ends at its first dot" in message
    assert "y_column='0 (clean).cls'" in message


def test_json_labels_that_are_bad_are_named(tmp_path: Path) -> None:
    """Null, no JSON, no key."""
    for content, what in [('{"label": null}', "null"), ("{", "not JSON"), ("{}", "no key 'label'"), ("7", "no object")]:
        assert what in refusal(one(tmp_path, ("a.jpg", b"A"), ("a.json", content)), y_column="json:label")
    assert "give its key" in refusal(one(tmp_path, ("a.jpg", b"A"), ("a.json", "{}")), y_column="json")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_in_a_sample_are_refused(tmp_path: Path, kind: bytes) -> None:
    """Their content is elsewhere."""
    link = tarfile.TarInfo()
    link.type, link.linkname = kind, "a.jpg"
    assert "link, and not a regular file" in refusal(one(tmp_path, ("a.jpg", b"A"), ("b.jpg", link)))


def test_the_order_is_that_of_the_shards_and_keys_may_come_again(tmp_path: Path) -> None:
    """A directory and a glob in sorted order, braces as written; one key in two shards is two samples."""
    for number in range(12):
        label = ("0.cls", str(number))
        one(tmp_path, ("0.jpg", b"%d" % number), label, name=f"shard-{number:02d}.tar")
    expected = [(b"%d" % number, number) for number in range(12)]
    assert read(tmp_path) == expected
    assert read(tmp_path / "shard-*.tar") == expected
    assert read(tmp_path / "shard-{00..11}.tar") == expected
    assert read(tmp_path / "shard-{03..01}.tar") == [expected[3], expected[2], expected[1]]
    assert read(tmp_path / "shard-{07,04}.tar") == [expected[7], expected[4]]
    assert read(tmp_path / "shard-0{1..2}.tar") == [expected[1], expected[2]]
    assert "shard-12.tar" in refusal(tmp_path / "shard-{00..12}.tar")
    assert "no file" in refusal(tmp_path / "x-*.tar")


def test_what_a_source_is_follows_its_name_or_what_a_folder_holds(tmp_path: Path) -> None:
    """A folder with class folders or images is no folder of shards, whatever lies beside them."""
    shard = one(tmp_path, ("a.jpg", b"A"))
    assert [kind_of(name) for name in (shard, str(tmp_path), "s-{0..9}.tar", "*.TAR", "x.tar.gz")] == ["tar"] * 5
    assert [kind_of(name) for name in ("a.txt", "a.jsonl", "none", "")] == ["manifest"] * 4
    assert [kind_of(name) for name in ("a.parquet", "data/*.parquet")] == ["parquet"] * 2
    (tmp_path / "cat").mkdir()
    assert kind_of(str(tmp_path)) == "manifest"


def test_no_samples_and_compressed_shards_are_refused(tmp_path: Path) -> None:
    """With what to do."""
    assert "no samples" in refusal(one(tmp_path))
    (tmp_path / "b.tar.gz").write_bytes(b"x")
    assert "gzip -d" in refusal(tmp_path / "b.tar.gz")
    assert "gzip -d" in refusal(tmp_path)
    assert "No such file" in refusal(tmp_path / "none.tar")
    os.mkfifo(tmp_path / "fifo.tar")
    assert "it is a FIFO" in refusal(tmp_path / "fifo.tar")


def test_a_reader_attaches_and_reads_any_sample(tmp_path: Path) -> None:
    """The handle crosses a socket; labels, classes, names and bytes are the same."""
    names = ("dog", "cat", "ant")
    for shard in range(3):
        members: list[tuple[str, Content]] = []
        for i in range(50):
            members += [(f"k{i}.jpg", b"%d-%d" % (shard, i)), (f"k{i}.json", json.dumps({"label": names[i % 3]}))]
        one(tmp_path, *members, name=f"{shard}.tar")
    shards = opened(tmp_path, shuffle=True)
    assert shards.classes == ("ant", "cat", "dog")
    facts, fds = shards.handle()
    attached = TarShards.attach(msgspec.msgpack.decode(msgspec.msgpack.encode(facts)), [os.dup(fd) for fd in fds])
    expected = contents(shards)
    shards.close()
    assert contents(attached) == expected
    assert expected[51] == (b"1-1", 1)
    (sample,) = attached.samples([51])
    assert attached.where(sample) == "1.tar sample k1: k1.jpg"
    assert attached.shared_bytes < 150 * 40 + 4096
    for outside in (-1, 150):
        with pytest.raises(IndexError):
            attached.samples([outside])
    attached.close()


def test_many_samples_with_a_late_fraction_or_name_keep_their_labels(tmp_path: Path) -> None:
    """Labels that were written before the first fraction came are changed afterwards, exactly."""
    n = 9000
    members: list[tuple[str, Content]] = []
    for i in range(n):
        members += [(f"{i}.jpg", b""), (f"{i}.cls", "0.5" if i == n - 1 else str(i))]
    with opened(one(tmp_path, *members)) as shards:
        assert shards.label_dtype == "float32"
        assert [sample.label for sample in shards.samples([0, 4095, 4096, n - 1])] == [0.0, 4095.0, 4096.0, 0.5]
        (sample,) = shards.samples([0])
        with pytest.raises(UnreadableFile, match="empty"):
            shards.read(sample, FileBuffer(), lambda _: None)


def test_the_digest_follows_the_samples_and_not_where_they_lie(tmp_path: Path) -> None:
    """Names, sizes, labels and order count."""
    base: list[tuple[str, Content]] = [("a.jpg", b"A"), ("a.cls", "1"), ("b.jpg", b"B"), ("b.cls", "2")]

    def digest(name: str, members: list[tuple[str, Content]], **options: object) -> str:
        with opened(one(tmp_path, *members, name=name), **options) as shards:
            return shards.digest

    same = digest("a.tar", base)
    assert digest("b.tar", base) == same
    others = [
        digest("c.tar", [*base[2:], *base[:2]]),
        digest("d.tar", [("a.jpg", b"AA"), *base[1:]]),
        digest("e.tar", [base[0], ("a.cls", "2"), *base[2:]]),
        digest("f.tar", base, label_columns=0),
    ]
    assert len({same, *others}) == 5


def test_names_that_are_not_utf8_are_fine(tmp_path: Path) -> None:
    """And are shown escaped."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        tar.addfile(tarfile.TarInfo("gr\xfcn.jpg"))
    with opened(path) as shards:
        assert shards.where(shards.samples([0])[0]) == "a.tar sample gr\\udcfcn: gr\\udcfcn.jpg"


@pytest.mark.parametrize("how", ["append", "replace", "truncate", "remove"])
def test_a_shard_that_changes_is_noticed_by_daemon_and_readers(tmp_path: Path, how: str) -> None:
    """Opened before or not, by descriptor and by path; never other bytes, never a crash."""
    path = Path(one(tmp_path, ("a.jpg", b"A" * 5000), ("b.jpg", b"B")))
    with opened(path) as warm, opened(path) as cold:
        samples = warm.samples([0, 1])
        warm.read(samples[0], FileBuffer(), lambda _: None)
        warm.check_unchanged()
        if how == "append":
            with tarfile.open(path, "a") as tar:
                tar.addfile(tarfile.TarInfo("c.jpg"))
        elif how == "replace":
            new = Path(one(tmp_path, ("a.jpg", b"C" * 5000), ("b.jpg", b"B"), name="new"))
            new.rename(path)
        elif how == "truncate":
            os.truncate(path, 1000)
        else:
            path.unlink()
        for shards in (warm, cold):
            with pytest.raises(ManifestError, match=r"a\.tar"):
                shards.read(samples[0], FileBuffer(), lambda _: None)
            with pytest.raises(ManifestError, match="start again"):
                shards.check_unchanged()
            shards.where(samples[0])


def test_only_a_few_shards_are_open_at_a_time(tmp_path: Path) -> None:
    """However many there are, a reader has descriptors of some."""
    for number in range(40):
        one(tmp_path, ("0.jpg", b"%d" % number), name=f"{number:02d}.tar")
    with opened(tmp_path) as shards:
        before = len(os.listdir("/proc/self/fd"))
        assert contents(shards) == [(b"%d" % number, None) for number in range(40)]
        assert len(os.listdir("/proc/self/fd")) <= before + 16
        shards.check_unchanged()


def test_memory_for_a_large_image_is_asked_for_first(tmp_path: Path) -> None:
    """Before the buffer grows."""
    asked: list[int] = []
    with opened(one(tmp_path, ("a.jpg", b"A" * 500_000))) as shards:
        shards.read(shards.samples([0])[0], FileBuffer(1000), asked.append)
    assert asked == [500_000]


@pytest.mark.parametrize("complete", [True, False])
def test_an_archive_without_its_end_mark_is_warned_of(
    tmp_path: Path, complete: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut between two members it looks whole, and samples would be missing in silence."""
    path = one(tmp_path, ("a.jpg", b"A"), ("b.jpg", b"B"))
    if not complete:
        with tarfile.open(path) as tar:
            os.truncate(path, tar.getmembers()[1].offset)
    with opened(path) as shards:
        assert len(shards) == (2 if complete else 1)
    assert ("has no end mark" in caplog.text) == (not complete)


def test_folders_of_samples_without_labels_may_be_classes(tmp_path: Path) -> None:
    """The label would be the sample's number; one folder around all is no class."""
    source = write_tar(tmp_path / "a.tar", [("cat/1.jpg", b"x"), ("cat/2.jpg", b"y")])
    assert [label for _, label in read(source)] == [None, None]
    source = write_tar(tmp_path / "b.tar", [("cat/1.jpg", b"x"), ("dog/1.jpg", b"y")])
    message = refusal(source)
    assert "(cat, dog, ...)" in message
    assert "label_columns=0" in message
    assert [label for _, label in read(source, label_columns=0)] == [None, None]
    source = write_tar(
        tmp_path / "c.tar", [("cat/1.jpg", b"x"), ("cat/1.cls", b"4"), ("dog/1.jpg", b"y"), ("dog/1.cls", b"5")]
    )
    assert [label for _, label in read(source)] == [4, 5]
