"""The walk over a tar's headers, held together with the standard library's."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefetchd.data.tar.headers import Member, TarHeaders, file_bytes
from prefetchd.errors import ManifestError
from tests.records import write_tar

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def walk(path: str | Path) -> list[Member]:
    fd = os.open(path, os.O_RDONLY)
    try:
        name = os.path.basename(path)
        return list(TarHeaders(file_bytes(fd, name), os.path.getsize(path), name))
    finally:
        os.close(fd)


def agrees(path: str | Path) -> None:
    """Names, sizes, places and types are those that `tarfile` finds."""
    with tarfile.open(path, "r:") as tar:
        expected = tar.getmembers()
    found = walk(path)
    assert [member.name.rstrip(b"/") for member in found] == [
        info.name.encode("utf-8", "surrogateescape") for info in expected
    ]
    for member, info in zip(found, expected, strict=True):
        assert (member.header_at, member.data_at) == (info.offset, info.offset_data)
        assert (member.kind == b"0") == (info.isreg() and not info.issparse())
        if member.kind == b"0":
            assert member.n_bytes == info.size


NAMES = st.lists(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=120)
    .map(lambda name: name.strip("/") or "x")
    .filter(lambda name: not any(part in ("", ".", "..") for part in name.split("/"))),
    min_size=1,
    max_size=8,
)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=NAMES, sizes=st.lists(st.integers(0, 3000), min_size=8, max_size=8))
def test_any_names_and_sizes_are_found_as_the_standard_library_finds_them(tmp_path: Path, format, names, sizes) -> None:
    """Long names, and names beyond ASCII, by GNU's and by pax's extensions."""
    agrees(write_tar(tmp_path / "a.tar", [(n, b"x" * s) for n, s in zip(names, sizes, strict=False)], format))


@pytest.mark.parametrize("format", FORMATS)
def test_links_directories_and_devices_are_passed_over_at_their_size(tmp_path: Path, format: int) -> None:
    """Whatever stands between the files, the files are found."""
    special = []
    for number, kind in enumerate((tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)):
        info = tarfile.TarInfo()
        info.type, info.linkname = kind, "target" * 30 if format != tarfile.USTAR_FORMAT else "target"
        special += [(f"s{number}", info), (f"f{number}.jpg", b"y" * 700)]
    agrees(write_tar(tmp_path / "a.tar", special, format))


def test_a_name_of_two_parts_in_ustar(tmp_path: Path) -> None:
    """ustar's prefix is put before the name."""
    agrees(write_tar(tmp_path / "a.tar", [("d" * 120 + "/" + "n" * 80, b"x")], tarfile.USTAR_FORMAT))


def test_what_gnu_tar_writes_is_read(tmp_path: Path) -> None:
    """In each of its formats, a sparse file among them."""
    (tmp_path / ("long" * 40)).write_bytes(b"x" * 1000)
    with (tmp_path / "hole.jpg").open("wb") as file:
        for place in range(1, 60):
            file.seek(place << 16)
            file.write(b"y" * 9000)
    for format in ("gnu", "pax", "oldgnu"):
        path = tmp_path / f"{format}.tar"
        names = ["hole.jpg", "long" * 40]
        subprocess.run(
            ["tar", "--sparse", f"--format={format}", "-cf", path, "-C", tmp_path, *names], check=True, timeout=30
        )
        sparse, long = walk(path)
        assert (sparse.kind, long.kind, long.name) == (b"S", b"0", names[1].encode())
        with path.open("rb") as file:
            file.seek(long.data_at)
            assert file.read(long.n_bytes) == b"x" * 1000


def test_a_size_in_base_256_is_read(tmp_path: Path) -> None:
    """As GNU writes sizes of 8 GiB and more."""
    path = tmp_path / "a.tar"
    info = tarfile.TarInfo("big.jpg")
    info.size = 9 << 30
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    os.truncate(path, 512 + (9 << 30) + 1024)
    assert [member.n_bytes for member in walk(path)] == [9 << 30]


def test_an_archive_may_end_without_its_end_mark_but_not_in_a_member(tmp_path: Path) -> None:
    """The error names the place of a cut in data, in a header or in an extension."""
    path = Path(write_tar(tmp_path / "a.tar", [("a.jpg", b"x" * 1000), ("b.jpg", b"y" * 510)]))
    whole = path.read_bytes()
    last = walk(path)[1]
    path.write_bytes(whole[: last.data_at + 512])
    assert len(walk(path)) == 2
    for n_bytes in (
        last.data_at + 511,
        last.data_at + 509,
        last.data_at - 1,
        last.header_at + 600,
        last.header_at + 10,
        100,
    ):
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(ManifestError, match=r"cut short.*at byte \d+ of \d+"):
            walk(path)


def test_an_empty_archive_has_no_members(tmp_path: Path) -> None:
    """With and without the end mark."""
    assert walk(write_tar(tmp_path / "a.tar", [])) == []
    (tmp_path / "b.tar").write_bytes(b"")
    assert walk(tmp_path / "b.tar") == []


def test_what_is_no_archive_is_refused_and_a_compressed_one_with_what_to_do(tmp_path: Path) -> None:
    """By the content: the name may lie."""
    path = tmp_path / "a.tar"
    path.write_bytes(b"hello" * 1000)
    with pytest.raises(ManifestError, match="no tar header"):
        walk(path)
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x"))
    path.write_bytes(path.read_bytes() + bytes(600))
    with pytest.raises(ManifestError, match=r"compressed \(gzip\).*gzip -d"):
        walk(path)


def test_a_damaged_header_in_the_middle_is_told_with_its_place(tmp_path: Path) -> None:
    """The checksum tells."""
    path = Path(write_tar(tmp_path / "a.tar", [("a.jpg", b"x"), ("b.jpg", b"y")]))
    at = walk(path)[1].data_at - 512
    content = bytearray(path.read_bytes())
    content[at + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=f"no tar header .at byte {at} of"):
        walk(path)


def test_an_archive_behind_the_archive_is_refused(tmp_path: Path) -> None:
    """`cat a.tar b.tar` would lose all of b in silence."""
    one = Path(write_tar(tmp_path / "a.tar", [("a.jpg", b"x")]))
    joined = tmp_path / "c.tar"
    joined.write_bytes(one.read_bytes() * 2)
    with pytest.raises(ManifestError, match="another archive follows"):
        walk(joined)


def with_extension(path: Path, records: bytes, *, times: int = 1) -> Path:
    """Write an archive of one empty file, with `records` in each of its pax headers."""
    info = tarfile.TarInfo("./PaxHeaders/a")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    extension = info.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)
    path.write_bytes(extension * times + tarfile.TarInfo("a.jpg").tobuf(tarfile.USTAR_FORMAT) + bytes(1024))
    return path


@pytest.mark.parametrize(
    "records",
    [
        pytest.param(b"0 path=x\n", id="zero"),
        pytest.param(b"1 path=x\n", id="ends in its own length"),
        pytest.param(b"2 \n", id="no text"),
        pytest.param(b"-9 path=x\n", id="negative"),
        pytest.param(b"+9 path=x\n", id="signed"),
        pytest.param(b" 9 path=x\n", id="no number"),
        pytest.param(b"99 path=x\n", id="beyond its end"),
        pytest.param(b"9" * 600, id="no space"),
        pytest.param(b"8 a=bcd\n9path=xy\n", id="no space in the second"),
        pytest.param(b"9" * 5009 + b" path=x\n", id="more digits than Python converts"),
        pytest.param(b"5020 size=" + b"9" * 5009 + b"\n", id="a size of as many"),
        pytest.param(b"10 size=x\n", id="a size in letters"),
        pytest.param(b"11 size=-1\n", id="a negative size"),
        pytest.param(b"28 size=9223372036854775807\n", id="a size beyond the archive"),
    ],
)
def test_lengths_that_make_no_progress_are_refused(tmp_path: Path, records: bytes) -> None:
    """None may repeat a record for ever, or end in anything but an error in words."""
    with pytest.raises(ManifestError, match=r"cannot use .*(extended header|cut short)"):
        walk(with_extension(tmp_path / "a.tar", records))


def test_a_chain_of_extended_headers_ends(tmp_path: Path) -> None:
    """An index has 24 bits for the blocks before a member's data."""
    records = b"%d comment=" % (1 << 20) + b"y" * ((1 << 20) - 17) + b"\n"
    assert [member.name for member in walk(with_extension(tmp_path / "a.tar", records, times=3))] == [b"a.jpg"]
    with pytest.raises(ManifestError, match="headers of one member are longer"):
        walk(with_extension(tmp_path / "b.tar", records, times=17))


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.sampled_from([*"01789 =\n\0", "size", "path"]), max_size=24))
def test_any_extended_header_ends(tmp_path: Path, parts: list[str]) -> None:
    """In members, or in an error: never in the same record again."""
    try:
        walk(with_extension(tmp_path / "a.tar", "".join(parts).encode()))
    except ManifestError:
        pass
