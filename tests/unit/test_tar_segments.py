"""Archives that are walked over in segments, many at once, have the members of one walk."""

from __future__ import annotations

import os
import tarfile
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefetchd.data.in_parallel import in_parallel
from prefetchd.data.tar import segments
from prefetchd.data.tar.headers import Member, TarHeaders
from prefetchd.data.tar.segments import Archive, joined
from prefetchd.errors import ManifestError
from tests.records import write_tar

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def archive(content: bytes, name: str = "a.tar") -> Archive:
    return Archive(lambda offset, n_bytes: content[offset : offset + n_bytes], len(content), name)


def plain(content: bytes) -> tuple[list[Member], bool]:
    headers = TarHeaders(archive(content).read_at, len(content), "a.tar")
    return list(headers), headers.has_end_mark


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_LEAST_SEGMENT_BYTES", 2048)
    monkeypatch.setattr(segments, "_MOST_SEGMENT_BYTES", 2048)
    monkeypatch.setattr(segments, "_SEARCHED_BYTES", 1024)
    monkeypatch.setattr(segments, "_JUDGED_READS", 2)


def inner_tar(folder: Path) -> bytes:
    """An archive that will be a member: its headers look like those of the one around it."""
    return Path(write_tar(folder / "inner.tar", [(f"{n}.cls", "x" * 700) for n in range(5)])).read_bytes()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 511, 512, 513, 3000, 9000, -1]), max_size=12),
    format=st.sampled_from(FORMATS),
    long_names=st.booleans(),
)
def test_the_members_are_those_of_one_walk(
    small_segments: None, tmp_path: Path, sizes: list[int], format: int, long_names: bool
) -> None:
    inner = inner_tar(tmp_path)
    contents = [inner if size < 0 else os.urandom(size) for size in sizes]
    folder = "folder/" * 30 if long_names else ""
    members = [(f"{folder}{n:04d}.{('jpg', 'cls')[n % 2]}", content) for n, content in enumerate(contents)]
    whole = Path(write_tar(tmp_path / "a.tar", members, format)).read_bytes()
    last = plain(whole)[0][-1:]
    end = sum(member.data_at + -(-member.n_bytes // 512) * 512 for member in last)
    for content in (whole, whole[:end]):
        expected, has_end_mark = plain(content)
        archives = joined([archive(content)])
        found = next(archives)
        taken = []
        for member in found:
            taken.append(member)
            if member.kind == b"0":
                assert found.read(member.data_at, member.n_bytes) == content[member.data_at :][: member.n_bytes]
        assert taken == expected
        assert found.has_end_mark == has_end_mark


def test_an_archive_that_is_cut_short_is_refused_as_in_one_walk(small_segments: None, tmp_path: Path) -> None:
    whole = Path(write_tar(tmp_path / "a.tar", [(f"{n}.jpg", bytes(3000)) for n in range(9)])).read_bytes()
    for n_bytes in range(600, len(whole) - 10_000, 1111):
        with pytest.raises(ManifestError) as expected:
            plain(whole[:n_bytes])
        archives = joined([archive(whole[:n_bytes])])
        with pytest.raises(ManifestError) as found:
            list(next(archives))
        assert str(found.value) == str(expected.value)


def test_several_archives_come_in_order_and_many_reads_wait_at_once(small_segments: None, tmp_path: Path) -> None:
    whole = Path(write_tar(tmp_path / "a.tar", [(f"{n}.jpg", bytes(3000)) for n in range(40)])).read_bytes()
    together = threading.Barrier(16, timeout=30)
    waited = [0]

    def read_at(offset: int, n_bytes: int) -> bytes:
        if waited[0] < 16:
            waited[0] += 1
            together.wait()
        return whole[offset : offset + n_bytes]

    archives = [Archive(read_at, len(whole), "a.tar"), archive(whole, "b.tar")]
    assert [list(members) for members in joined(archives)] == [plain(whole)[0]] * 2
    assert not together.broken


def test_dense_samples_are_read_in_large_pieces(tmp_path: Path) -> None:
    whole = Path(write_tar(tmp_path / "a.tar", [(f"{n}.jpg", bytes(2000)) for n in range(2000)])).read_bytes()
    reads = []

    def read_at(offset: int, n_bytes: int) -> bytes:
        reads.append(offset)
        return whole[offset : offset + n_bytes]

    archives = joined([Archive(read_at, len(whole), "a.tar")])
    assert list(next(archives)) == plain(whole)[0]
    assert len(reads) < 20


def test_results_come_in_order_and_errors_in_their_turn() -> None:
    def halved(number: int) -> int:
        if number == 70:
            raise ValueError(number)
        return number // 2

    results = in_parallel(halved, range(100), 8)
    assert [next(results) for _ in range(70)] == [number // 2 for number in range(70)]
    with pytest.raises(ValueError, match="70"):
        next(results)
    before = threading.active_count()
    assert list(in_parallel(halved, range(3))) == [0, 0, 1]
    assert threading.active_count() <= before + 3


def test_an_archive_of_any_size_is_not_cut_up_ahead() -> None:
    def read_at(offset: int, n_bytes: int) -> bytes:
        raise ManifestError(f"cannot read byte {offset}: the server said more than there is; check it")

    archives = joined([Archive(read_at, 1 << 62, "a.tar")])
    with pytest.raises(ManifestError, match="the server said more"):
        list(next(archives))
