"""Indexes that lie: no member is taken that is not the one whose place the index gives."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefetchd.config.validate import make_config
from prefetchd.data.files import FileBuffer
from prefetchd.data.registry import open_source
from prefetchd.data.tar.headers import Member
from prefetchd.data.tar.index_writer import IndexFile
from prefetchd.data.tar.members import scan_shards
from prefetchd.errors import ManifestError
from tests.records import Content, write_tar
from tests.unit.test_tar_index import dali_index, index, samples_of

COUNT = 40
Change = Callable[[Member, dict[bytes, Member]], Member]
FIELDS = {"data": "bytes(column=jpg, max_bytes=600)", "label": "label(column=cls)"}


def write_shard(folder: Path) -> str:
    """A shard whose images have one size: more members than an index's first look compares."""
    members: list[tuple[str, Content]] = []
    for number in range(COUNT):
        members += [(f"{number:03d}.jpg", bytes([number]) * 600), (f"{number:03d}.cls", str(number))]
    return write_tar(folder / "a.tar", members)


def lying_dali(source: str, lie: str) -> None:
    """Change what the index says of the image 21, which the first look does not compare."""
    text = dali_index(Path(source)).splitlines()
    if lie == "shorter":
        text[22] = text[22].replace(" 600 ", " 599 ")
    else:
        text[22] = text[22].replace("021.", "02x.")
    Path(source).with_suffix(".idx").write_text("\n".join(text) + "\n")


@pytest.mark.parametrize("lie", ["shorter", "renamed"])
@pytest.mark.parametrize("options", [{"label_columns": 0}, {"fields": FIELDS}])
def test_an_index_of_dali_that_lies_is_found_out_at_the_read(tmp_path: Path, lie: str, options: dict) -> None:
    source = write_shard(tmp_path)
    lying_dali(source, lie)
    if "fields" in options and lie == "renamed":  # a label is compared at once
        with pytest.raises(ManifestError, match="the archive has another one there"):
            open_source(make_config(source=source, **options))
        return
    records = open_source(make_config(source=source, **options)).records
    buffer = FileBuffer()
    try:
        for number in range(COUNT):
            (sample,) = records.samples([number])
            if number == 21:
                with pytest.raises(ManifestError, match=r"its index says that a member of .* is there; write"):
                    records.read(sample, buffer, lambda _: None)
            else:
                assert bytes(records.read(sample, buffer, lambda _: None)) == bytes([number]) * 600
    finally:
        records.close()


def lying_kept(source: str, path: Path, change: Change) -> None:
    """Write an index of prefetchd whose members `change` changes, by name."""
    for shard in scan_shards([source]):
        members = list(shard.members)
    by_name = {member.name: member for member in members}
    lied = [change(member, by_name) for member in members]

    class Lying:
        has_end_mark = True
        is_listed = False

        def __iter__(self) -> Iterator[Member]:
            return iter(lied)

        def read(self, offset: int, n_bytes: int) -> bytes:
            with open(source, "rb") as file:
                file.seek(offset)
                return file.read(n_bytes)

    with IndexFile(str(path)) as file:
        file.add(type(shard)(shard.path, shard.name, shard.identity, shard.n_bytes, shard.state, Lying()))


def swapped(member: Member, by_name: dict[bytes, Member]) -> Member:
    other = {b"020.jpg": b"022.jpg", b"022.jpg": b"020.jpg"}.get(member.name)
    return member if other is None else by_name[other]._replace(name=member.name)


def shifted(member: Member, _: object) -> Member:
    if member.name != b"020.jpg":
        return member
    return member._replace(data_at=member.data_at + 512, n_bytes=88)


@pytest.mark.parametrize("change", [swapped, shifted])
@pytest.mark.parametrize("options", [{"y_column": "cls"}, {"fields": FIELDS}])
def test_an_index_of_prefetchd_that_lies_is_found_out_at_the_read(
    tmp_path: Path, change: Change, options: dict
) -> None:
    source = write_shard(tmp_path)
    lying_kept(source, tmp_path / "t.idx", change)
    records = open_source(make_config(source=source, index=str(tmp_path / "t.idx"), **options)).records
    buffer = FileBuffer()
    try:
        for number in range(COUNT):
            (sample,) = records.samples([number])
            if number == 20 or (number == 22 and change is swapped):
                with pytest.raises(ManifestError, match=r"its index says that a member of .* is there; write"):
                    records.read(sample, buffer, lambda _: None)
            else:
                assert bytes(records.read(sample, buffer, lambda _: None)) == bytes([number]) * 600
    finally:
        records.close()


@pytest.mark.parametrize(("header_at", "data_at"), [(0, 1 << 30), (0, 700), (-512, 512), (512, 512)])
def test_headers_that_cannot_be_are_refused(tmp_path: Path, header_at: int, data_at: int) -> None:
    source = write_shard(tmp_path)

    def change(member: Member, _: object) -> Member:
        return member._replace(header_at=header_at, data_at=data_at, n_bytes=5)

    lying_kept(source, tmp_path / "t.idx", change)
    with pytest.raises(ManifestError, match="it is no index of prefetchd, or is damaged"):
        open_source(make_config(source=source, index=str(tmp_path / "t.idx"), label_columns=0))


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_members_that_an_index_lists_are_those_of_the_headers(tmp_path: Path, form: int) -> None:
    names = ["a", "deep/" * 15 + "n", *(["ünï", "long" * 60] if form != tarfile.USTAR_FORMAT else [])]
    members: list[tuple[str, Content]] = []
    for name in names:
        members += [(f"{name}.jpg", name.encode() * 3), (f"{name}.cls", "1")]
    source = write_tar(tmp_path / "a.tar", members, format=form)
    expected = samples_of(source)
    assert samples_of(source, index=index(source, tmp_path / "t.idx")) == expected
