"""The files of a cache: rows, records, table, state, and the limit of their size."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from prefetchd.data.cache import directory, run_state, segment
from prefetchd.data.cache.allowance import WriteAllowance
from prefetchd.data.cache.run_state import RunState, StateShape, make_state
from tests.unit.test_cache import CHANNELS, key, pixels


def test_a_record_is_what_was_packed_and_any_flipped_bit_is_found() -> None:
    record = segment.Record(key(3), 1 << 40, 192, 8, 8, 0xDEADBEEF)
    raw = record.pack()
    assert len(raw) == segment.RECORD_BYTES
    assert segment.unpack(raw) == record
    for bit in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        assert segment.unpack(bytes(damaged)) is None
    assert segment.unpack(raw[:-1]) is None


def test_rows_are_read_as_written_and_damaged_or_cut_ones_are_not(tmp_path: Path) -> None:
    writer = segment.SegmentWriter(tmp_path, "0-0")
    rows = [pixels(seed, 4 + seed, 5) for seed in range(3)]
    places = [writer.append(key(seed), row) for seed, row in enumerate(rows)]
    offsets = [offset for offset, _ in places]
    assert [number for _, number in places] == [0, 1, 2]
    raw = (tmp_path / "0-0.index").read_bytes()
    records = [segment.unpack(raw[at : at + segment.RECORD_BYTES]) for at in range(0, len(raw), segment.RECORD_BYTES)]
    assert [record.offset for record in records if record] == offsets
    for record, row in zip(records, rows, strict=True):
        assert record is not None
        np.testing.assert_array_equal(segment.read_row(writer.fd, record, CHANNELS), row)
        assert segment.read_row(writer.fd, record, 1) is None
    os.pwrite(writer.fd, b"\0\1\2\3", offsets[1])
    os.truncate(tmp_path / "0-0.rows", offsets[2] + 7)
    assert records[0] is not None
    assert segment.read_row(writer.fd, records[0], CHANNELS) is not None
    assert [segment.read_row(writer.fd, record, CHANNELS) for record in records[1:] if record] == [None, None]
    writer.close()


def test_a_segment_is_made_once(tmp_path: Path) -> None:
    segment.SegmentWriter(tmp_path, "0-0").close()
    with pytest.raises(FileExistsError):
        segment.SegmentWriter(tmp_path, "0-0")


def write_index(path: Path, numbers: list[int], tail: bytes = b"") -> None:
    path.write_bytes(b"".join(segment.Record(key(n), n, 192, 8, 8, 0).pack() for n in numbers) + tail)


def test_the_table_leads_to_every_record_of_every_segment(tmp_path: Path) -> None:
    """Also with keys that collide, keys in two segments, and a record that was torn at the end."""
    many = [n * 64 for n in range(5000)]  # all collide in the low bits
    write_index(tmp_path / "aaaaaaaaaaaaaaaa-0.index", many, b"torn")
    write_index(tmp_path / "bbbbbbbbbbbbbbbb-12.index", [64, 1, 2])
    names = directory.segment_names(tmp_path)
    fd, n_slots = run_state.build_table(tmp_path, names)
    table = run_state.Lookup(fd, n_slots)
    assert [table.segment_name(number) for number in range(table.n_segments)] == names
    for position, number in enumerate(many):
        assert (0, position) in set(table.places(key(number)))
    assert {(0, 1), (1, 0)} <= set(table.places(key(64)))
    assert (1, 2) in set(table.places(key(2)))
    assert sum(1 for _ in table.places(key(n_slots - 1))) < n_slots
    table.close()
    assert sorted(os.listdir(tmp_path)) == [f"{name}.index" for name in names]


def test_what_a_reader_adds_others_find_until_the_table_is_crowded(tmp_path: Path) -> None:
    fd, n_slots = run_state.build_table(tmp_path, [], 10)
    one, other = run_state.Lookup(os.dup(fd), n_slots), run_state.Lookup(fd, n_slots)
    for number in range(2 * n_slots):
        one.add(key(5), 3, number)
    found = list(other.places(key(5)))
    assert found == [(3, number) for number in range(32)]
    assert list(other.places(key(4))) == []
    one.close()
    other.close()


def test_the_table_of_nothing_finds_nothing(tmp_path: Path) -> None:
    table = run_state.Lookup(*run_state.build_table(tmp_path, []))
    assert list(table.places(key(0))) == []
    assert table.n_segments == 0
    table.close()


@pytest.mark.parametrize(("label_shape", "dtype"), [((), "int64"), ((3,), "float32")])
def test_what_one_maps_others_see(tmp_path: Path, label_shape: tuple[int, ...], dtype: str) -> None:
    shape = StateShape(7, True, label_shape, dtype)
    fd = make_state(tmp_path, shape)
    one, other = RunState(fd, shape), RunState(os.dup(fd), shape)
    one.claim_line()
    label = np.full(label_shape, 5, dtype)
    one.set_row(6, label, 30, 40, 2, 12345)
    one.count(hits=3, misses=2, rows=1, n_bytes=10)
    np.testing.assert_array_equal(other.labels[6], label)
    assert int(other.shapes[6]) == 30 << 16 | 40
    assert int(other.words[6]) == 3 << 48 | 12345
    assert not other.words[:6].any()
    assert (other.counts().hits, other.counts().misses, other.counts().rows, other.counts().n_bytes) == (3, 2, 1, 10)
    one.stop_filling(28)
    assert other.stopped == 28
    other.close()
    one.close()
    assert os.listdir(tmp_path) == []


def test_writers_of_one_cache_never_exceed_its_limit(tmp_path: Path) -> None:
    folder, fd = directory.open_folder(tmp_path, "0" * 16, {})
    os.close(fd)
    limit, row = 100_000, 100
    allowances = [WriteAllowance(tmp_path, limit) for _ in range(8)]
    files = [(folder / f"{'0' * 16}-{number}.rows").open("wb", buffering=0) for number in range(8)]
    open_allowances = set(range(8))
    while open_allowances:
        for number in sorted(open_allowances):
            if allowances[number].take(row):
                files[number].write(bytes(row))
            else:
                open_allowances.discard(number)
    for file in files:
        file.close()
    assert 0.9 * limit < directory.used_bytes(tmp_path) <= limit


def test_a_record_that_claims_more_than_its_file_has_takes_no_memory(tmp_path: Path) -> None:
    writer = segment.SegmentWriter(tmp_path, "0-0")
    writer.append(key(1), pixels(1))
    side = (1 << 16) - 1
    claim = segment.Record(key(1), 0, side * side * CHANNELS, side, side, 0)
    assert segment.read_row(writer.fd, claim, CHANNELS) is None
    writer.close()


def test_a_damaged_index_makes_no_table_of_its_size(tmp_path: Path) -> None:
    """One of many equal records does not take for ever, nor one that claims to be larger than any cache."""
    write_index(tmp_path / "aaaaaaaaaaaaaaaa-0.index", [7] * 20_000)
    write_index(tmp_path / "bbbbbbbbbbbbbbbb-0.index", [8])
    with open(tmp_path / "cccccccccccccccc-0.index", "wb") as file:
        os.truncate(file.fileno(), 1 << 42)
    fd, n_slots = run_state.build_table(tmp_path, directory.segment_names(tmp_path))
    table = run_state.Lookup(fd, n_slots)
    assert n_slots < 1 << 17
    assert (1, 0) in set(table.places(key(8)))
    table.close()


def test_signal_while_the_table_is_built_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "1-0.index").write_bytes(bytes(run_state.RECORD_BYTES))
    monkeypatch.setattr(run_state, "_insert", interrupt)
    n_open = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KeyboardInterrupt):
        run_state.build_table(tmp_path, ["1-0"])
    assert len(os.listdir("/proc/self/fd")) == n_open
