"""Indexes of tar shards, prefetchd's own and DALI's: the same samples, labels and digest as without, or words."""

from __future__ import annotations

import logging
import os
import resource
from pathlib import Path

import pytest

from prefetchd.cli.main import main
from prefetchd.config.validate import make_config
from prefetchd.data.files import FileBuffer
from prefetchd.data.tar import index_writer
from prefetchd.data.tar.headers import TarHeaders, file_bytes
from prefetchd.data.tar.records import TarShards
from prefetchd.errors import ConfigError, ManifestError, PrefetchdError
from tests.records import Content, jpeg, write_tar


def samples_of(source: object, **options: object) -> tuple[str, list[tuple[bytes, object, str]]]:
    """The digest, and bytes, label and origin of each sample."""
    buffer = FileBuffer()
    with TarShards.open(make_config(source=str(source), **options)) as shards:
        found = shards.samples(range(len(shards)))
        return shards.digest, [
            (bytes(shards.read(sample, buffer, lambda _: None)), sample.label, shards.where(sample)) for sample in found
        ]


def write_shards(folder: Path, label: Content = "7", *, count: int = 3) -> str:
    """Shards with four samples each, of a JPEG, a label and a JSON."""
    for shard in range(count):
        members: list[tuple[str, Content]] = []
        for number in range(4):
            key = f"{shard}/{number:03d}"
            members += [(f"{key}.jpg", jpeg(number)), (f"{key}.cls", f"{shard}{number}")]
            members += [(f"{key}.json", f'{{"label": {number}}}')]
        write_tar(folder / f"s-{shard}.tar", members)
    return str(folder / f"s-{{0..{count - 1}}}.tar")


def dali_index(path: Path) -> str:
    """What `wds2idx` writes for a shard."""
    fd = os.open(path, os.O_RDONLY)
    try:
        members = list(TarHeaders(file_bytes(fd, path.name), path.stat().st_size, path.name))
    finally:
        os.close(fd)
    lines: dict[str, list[str]] = {}
    for member in members:
        name = member.name.decode()
        stem, _, extension = name.partition(".")
        lines.setdefault(stem, []).append(f"{extension} {member.data_at} {member.n_bytes} {name}")
    text = "".join(" ".join(words) + "\n" for words in lines.values())
    return f"v1.2 {len(lines)}\n{text}"


def index(source: str, path: Path) -> str:
    assert main(["index", source, "-o", str(path)]) == 0
    return str(path)


@pytest.mark.parametrize("options", [{}, {"y_column": "json:label"}, {"y_column": "cls"}, {"label_columns": 0}])
def test_an_index_gives_the_same_samples_with_any_options(
    tmp_path: Path, options: dict[str, object], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_writer, "_BLOCK_MEMBERS", 5)  # samples lie across blocks
    source = write_shards(tmp_path)
    path = index(source, tmp_path / "train.idx")
    assert "3 shards, 36 members" in capsys.readouterr().err

    def refuse(*_: object) -> None:
        raise AssertionError("headers were read")

    expected = samples_of(source, **options)
    with monkeypatch.context() as patch:
        patch.setattr(TarHeaders, "__iter__", refuse)
        assert samples_of(source, index=path, **options) == expected
    assert oct(Path(path).stat().st_mode & 0o777) == oct(0o666 & ~current_umask())
    assert sorted(os.listdir(tmp_path)) == ["s-0.tar", "s-1.tar", "s-2.tar", "train.idx"]


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_an_index_serves_fields_too(tmp_path: Path) -> None:
    from prefetchd.data.registry import open_source

    source = write_shards(tmp_path)
    path = index(source, tmp_path / "train.idx")
    fields = {"picture": "image(column=jpg)", "label": "label(column=cls)", "code": "array(column='json:label')"}
    digests = []
    for given in (None, path):
        opened = open_source(make_config(source=source, fields=fields, index=given))
        digests.append(opened.facts.digest)
        opened.records.close()
    assert digests[0] == digests[1]


def test_large_members_are_read_from_the_shard(tmp_path: Path) -> None:
    text = '{"label": 3, "note": "' + "x" * 100_000 + '"}'
    source = write_tar(tmp_path / "a.tar", [("a.jpg", jpeg(1)), ("a.json", text)])
    path = index(source, tmp_path / "a.index")
    assert Path(path).stat().st_size < 1000
    assert samples_of(source, index=path) == samples_of(source)
    assert samples_of(source, index=path)[1][0][1] == 3


def refusal(source: str, **options: object) -> str:
    with pytest.raises(PrefetchdError) as caught:
        samples_of(source, **options)
    message = str(caught.value)
    assert message.startswith("cannot ")
    assert "\n" not in message
    assert "; " in message
    return message


def test_an_index_of_other_shards_is_refused(tmp_path: Path) -> None:
    source = write_shards(tmp_path)
    path = index(source, tmp_path / "train.idx")
    assert "it has 3 shards and the source has 1" in refusal(str(tmp_path / "s-0.tar"), index=path)
    swapped = refusal(str(tmp_path / "s-{1,0,2}.tar"), index=path)
    assert "shard 0 is s-1.tar, and there s-0.tar" in swapped
    os.utime(tmp_path / "s-1.tar", ns=(1, 1))
    assert "s-1.tar is not what was indexed" in refusal(source, index=path)


@pytest.mark.parametrize("damage", ["cut", "head", "middle", "empty", "none"])
def test_a_damaged_index_is_refused(tmp_path: Path, damage: str) -> None:
    source = write_shards(tmp_path)
    path = Path(index(source, tmp_path / "train.idx"))
    content = path.read_bytes()
    damaged = {
        "cut": content[:-9],
        "head": b"v1.2 3\n" + content[7:],
        "middle": content[:40] + b"\0\0\0\0" + content[44:],
        "empty": b"",
        "none": None,
    }[damage]
    path.unlink() if damaged is None else path.write_bytes(damaged)
    message = refusal(source, index=str(path))
    assert ("cannot open" if damaged is None else "it is no index of prefetchd, or is damaged") in message


def test_only_tar_shards_have_an_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from prefetchd.data.registry import open_source

    (tmp_path / "list.txt").write_text("a.jpg 1\n")
    assert main(["index", str(tmp_path / "list.txt"), "-o", str(tmp_path / "x")]) == 1
    assert "neither .tar files nor a folder of them" in capsys.readouterr().err
    with pytest.raises(PrefetchdError, match="it concerns tar shards only"):
        open_source(make_config(source=str(tmp_path / "list.txt"), index="x"))
    source = write_shards(tmp_path)
    assert main(["index", source, "-o", str(tmp_path / "no" / "x")]) == 1
    assert "cannot write" in capsys.readouterr().err
    Path(tmp_path / "s-1.tar").write_bytes(b"no tar" * 200)
    assert main(["index", source, "-o", str(tmp_path / "x")]) == 1
    assert "there is no tar header" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


# --- DALI's


@pytest.mark.parametrize("options", [{}, {"y_column": "json:label"}, {"label_columns": 0}])
def test_indexes_of_dali_are_taken_where_they_lie_beside(
    tmp_path: Path, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_shards(tmp_path)
    expected = samples_of(source, **options)
    for number in (0, 1, 2):
        (tmp_path / f"s-{number}.idx").write_text(dali_index(tmp_path / f"s-{number}.tar"))
    walked: list[object] = []
    plain = TarHeaders.__iter__
    monkeypatch.setattr(TarHeaders, "__iter__", lambda self: walked.append(self) or plain(self))
    assert samples_of(source, **options) == expected
    assert not walked


def test_names_longer_than_a_header_are_those_of_the_index(tmp_path: Path) -> None:
    folder = "deep/" * 40
    source = write_tar(tmp_path / "a.tar", [(f"{folder}{n}.{end}", "1") for n in range(3) for end in ("jpg", "cls")])
    expected = samples_of(source)
    (tmp_path / "a.idx").write_text(dali_index(Path(source)))
    digest, found = samples_of(source)
    assert (digest, [each[:2] for each in found]) == (expected[0], [each[:2] for each in expected[1]])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: text.replace("v1.2", "v1.1"), "not of version 1.2"),
        (lambda text: text.replace("v1.2 4", "v1.2 5"), "has 4 samples"),
        (lambda text: text.replace("/000.jpg", "/0 00.jpg"), "names in it have spaces"),
        (lambda text: text.replace("/000.jpg", "/00\\303.jpg"), "names in it are escaped"),
        (lambda text: text.replace("/000.jpg", "/0x0.jpg"), "of another archive"),
        (lambda text: "v1.2 3\n" + "\n".join(text.splitlines()[1:-1]) + "\n", "goes on behind its last member"),
        (lambda text: text.replace("jpg 1", "jpg x1"), "it is damaged"),
        (lambda text: "v1.2 0\n", "it has no samples"),
    ],
)
def test_an_index_of_dali_that_does_not_fit_is_left_alone(
    tmp_path: Path, change: object, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_shards(tmp_path, count=1)
    expected = samples_of(source)
    (tmp_path / "s-0.idx").write_text(change(dali_index(tmp_path / "s-0.tar")))  # type: ignore[operator]
    with caplog.at_level(logging.WARNING, "prefetchd"):
        assert samples_of(source) == expected
    assert why in caplog.text


def test_another_file_with_that_suffix_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_shards(tmp_path, count=1)
    expected = samples_of(source)
    (tmp_path / "s-0.idx").write_bytes(b"\0\0\x08\x03")
    assert samples_of(source) == expected
    assert not caplog.text


def test_a_label_that_is_not_where_the_index_says_is_refused(tmp_path: Path) -> None:
    """More members than are compared at the start: the wrong one is found when its label is read."""
    members: list[tuple[str, Content]] = []
    for number in range(40):
        members += [(f"{number:03d}.jpg", b"J" * 600), (f"{number:03d}.cls", "12"), (f"{number:03d}.ids", "345")]
    source = write_tar(tmp_path / "a.tar", members)
    text = dali_index(Path(source)).splitlines()
    words = text[18].split()
    assert words[::4] == ["jpg", "cls", "ids"]
    words[5], words[9] = words[9], words[5]  # the label's place is that of the next member
    words[4:8], words[8:12] = words[8:12], words[4:8]
    text[18] = " ".join(words)
    (tmp_path / "a.idx").write_text("\n".join(text) + "\n")
    with pytest.raises(ManifestError, match="the archive has another one there"):
        samples_of(source, y_column="cls")


def test_a_full_disk_leaves_no_part_of_an_index(tmp_path: Path) -> None:
    """A limit of the size of files has the place of it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, limits[1]))
    try:
        with (
            pytest.raises(ConfigError, match=r"cannot write .*/s.idx: File too large; check the folder"),
            index_writer.IndexFile(str(tmp_path / "s.idx")),
        ):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []
