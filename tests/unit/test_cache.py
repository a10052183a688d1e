"""The cache's parts: rows, records, table, state and size limit; what may be cached, and what may be removed."""

from __future__ import annotations

import errno
import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from prefetchd.config.validate import make_config
from prefetchd.daemon.memory.limits import CgroupMemory
from prefetchd.daemon.memory.pressure import CachePages
from prefetchd.data.cache import directory, keys, lookup, segment
from prefetchd.data.cache.daemon_side import CacheInDaemon
from prefetchd.data.cache.directory import CacheError
from prefetchd.data.cache.keys import check_cache
from prefetchd.data.cache.reader_side import CacheInReader, WriteAllowance
from prefetchd.data.cache.run_state import RunState, StateShape, make_state
from prefetchd.data.files import CLOCK_STEP_NS
from prefetchd.data.records import Sample
from prefetchd.errors import ConfigError

CHANNELS = 3
PIPELINE = keys.pipeline_of(make_config(source="x", image_size=8), "decoder 1")


def pixels(seed: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, CHANNELS), np.uint8)


def key(number: int) -> bytes:
    return number.to_bytes(8, "little") + bytes(8)


# --- records and rows


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


# --- the table


def write_index(path: Path, numbers: list[int], tail: bytes = b"") -> None:
    path.write_bytes(b"".join(segment.Record(key(n), n, 192, 8, 8, 0).pack() for n in numbers) + tail)


def test_the_table_leads_to_every_record_of_every_segment(tmp_path: Path) -> None:
    """Also with keys that collide, keys in two segments, and a record that was torn at the end."""
    many = [n * 64 for n in range(5000)]  # all collide in the low bits
    write_index(tmp_path / "aaaaaaaaaaaaaaaa-0.index", many, b"torn")
    write_index(tmp_path / "bbbbbbbbbbbbbbbb-12.index", [64, 1, 2])
    names = directory.segment_names(tmp_path)
    fd, n_slots = lookup.build(tmp_path, names)
    table = lookup.Lookup(fd, n_slots)
    assert [table.segment_name(number) for number in range(table.n_segments)] == names
    for position, number in enumerate(many):
        assert (0, position) in set(table.places(key(number)))
    assert {(0, 1), (1, 0)} <= set(table.places(key(64)))
    assert (1, 2) in set(table.places(key(2)))
    assert sum(1 for _ in table.places(key(n_slots - 1))) < n_slots
    table.close()
    assert sorted(os.listdir(tmp_path)) == [f"{name}.index" for name in names]


def test_what_a_reader_adds_others_find_until_the_table_is_crowded(tmp_path: Path) -> None:
    fd, n_slots = lookup.build(tmp_path, [], 10)
    one, other = lookup.Lookup(os.dup(fd), n_slots), lookup.Lookup(fd, n_slots)
    for number in range(2 * n_slots):
        one.add(key(5), 3, number)
    found = list(other.places(key(5)))
    assert found == [(3, number) for number in range(32)]
    assert list(other.places(key(4))) == []
    one.close()
    other.close()


def test_the_table_of_nothing_finds_nothing(tmp_path: Path) -> None:
    table = lookup.Lookup(*lookup.build(tmp_path, []))
    assert list(table.places(key(0))) == []
    assert table.n_segments == 0
    table.close()


# --- the state


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


# --- keys


def test_a_key_follows_everything_that_may_tell_another_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    before = os.stat(path)
    known = {keys.key_of(str(path), (), before), keys.key_of(str(path), (1,), before), keys.key_of("/b", (), before)}
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    known.add(keys.key_of(str(path), (), os.stat(path)))
    replacement = tmp_path / "b"
    replacement.write_bytes(b"two")
    replacement.replace(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as `cp --preserve` and `rsync -t` do
    assert os.stat(path).st_mtime_ns == before.st_mtime_ns
    known.add(keys.key_of(str(path), (), os.stat(path)))
    assert len(known) == 5


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": 64},
        {"color": "gray"},
        {"interpolation": "area"},
        {"resize": "pad"},
        {"shrink_on_load": False},
        {"cache_image_size": 224},
        {"dtype": "uint16"},
        {"channels": 3},
        {"channels": 4},
        {"channels": 3, "dtype": "float32"},
    ],
)
def test_pipelines_that_keep_other_pixels_have_other_folders(options: dict) -> None:
    plain = keys.pipeline_digest(keys.pipeline_of(make_config(source="x"), "decoder 1"))
    assert keys.pipeline_digest(keys.pipeline_of(make_config(source="x", **options), "decoder 1")) != plain
    assert keys.pipeline_digest(keys.pipeline_of(make_config(source="x"), "decoder 2")) != plain
    later = make_config(source="x", batch_size=7, dtype="float32", scale=2, layout="nchw", augment="hflip", seed=3)
    assert keys.pipeline_digest(keys.pipeline_of(later, "decoder 1")) == plain


def test_with_a_size_of_its_own_the_target_decides_nothing() -> None:
    small = make_config(source="x", cache_image_size=256, image_size=32)
    large = make_config(source="x", cache_image_size="256x256", image_size=64, resize="crop")
    assert keys.pipeline_of(small, "d") == keys.pipeline_of(large, "d")


# --- what can be cached


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"augment": "random_resized_crop"}, "give the size at which images are kept, such as cache_image_size=(352, "),
        ({"augment": "rotate(degrees=10)"}, "augment='rotate'"),
        ({"augment": "hflip, trivial_augment_wide"}, "augment='trivial_augment_wide'"),
        ({"target": "mask"}, "masks"),
    ],
)
def test_what_cannot_be_cached_is_refused_with_what_to_set(options: dict, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_cache(make_config(source="x", cache="/c", **options))
    assert says in str(caught.value)


def test_a_size_without_a_cache_is_refused() -> None:
    with pytest.raises(ConfigError, match="cache_size without a cache"):
        check_cache(make_config(source="x", cache_size="1GiB"))
    with pytest.raises(ConfigError):
        make_config(source="x", cache="/c", cache_size="much")


def test_augmentation_after_the_resize_can_be_cached() -> None:
    check_cache(
        make_config(
            source="x", cache="/c", augment="hflip, vflip, color_jitter, equalize, random_erasing", transform="m:f"
        )
    )
    check_cache(make_config(source="x", cache="/c", augment="random_resized_crop", cache_image_size=256))


# --- the room


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


# --- the folders


def fill_folder(cache: Path, digest: str = "0123456789abcdef") -> Path:
    folder, fd = directory.open_folder(cache, digest, {"image_size": [8, 8]})
    os.close(fd)
    writer = segment.SegmentWriter(folder, "0" * 16 + "-0")
    writer.append(key(1), pixels(1))
    writer.close()
    return folder


def test_a_cache_is_listed_and_removed_whole(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    fill_folder(cache)
    fill_folder(cache, "f" * 16)
    kept = directory.list_cache(cache)
    assert {each.folder.name for each in kept} == {"0123456789abcdef", "f" * 16}
    assert [each.rows for each in kept] == [1, 1]
    assert not any(each.in_use for each in kept)
    for each in kept:
        assert 0 < directory.remove(each) < each.n_bytes
    directory.remove_empty(cache)
    assert not cache.exists()


def test_nothing_but_ours_is_removed(tmp_path: Path) -> None:
    """A file of the user's in a folder of ours, folders that only look like ours, and links."""
    cache = tmp_path / "cache"
    folder = fill_folder(cache)
    (folder / "notes.rows").write_text("mine")
    other = cache / ("a" * 16)
    other.mkdir()
    (other / f"{'0' * 16}-0.rows").write_text("not described")
    (cache / ("b" * 16)).symlink_to(tmp_path)
    foreign = cache / ("c" * 16)
    foreign.mkdir()
    (foreign / "pipeline.json").write_text(json.dumps({"made_by": "somebody", "pipeline": {}}))
    kept = directory.list_cache(cache)
    assert [each.folder for each in kept] == [folder]
    directory.remove(kept[0])
    directory.remove_empty(cache)
    assert sorted(os.listdir(folder)) == ["notes.rows"]
    assert (other / f"{'0' * 16}-0.rows").exists()
    assert (foreign / "pipeline.json").exists()
    with pytest.raises(CacheError, match="no cache of prefetchd"):
        directory.list_cache(tmp_path)


def test_files_of_others_in_a_pipelines_folder_are_no_segments(tmp_path: Path, samples: list[Sample]) -> None:
    """Names that are too long for the table, or no text, and a folder that is named like an index."""
    folder = fill_folder(tmp_path / "cache", keys.pipeline_digest(PIPELINE))
    (folder / f"{'notes' * 9}.index").write_text("mine")
    (folder / os.fsdecode(b"\xff.index")).write_text("mine")
    (folder / f"{'a' * 16}-7.index").mkdir()
    assert directory.segment_names(folder) == [f"{'0' * 16}-0", f"{'a' * 16}-7"]
    daemon, reader = open_both(tmp_path / "cache")
    assert daemon.report()["rows"] == 1
    store_all(reader, samples)
    reader.close()
    daemon.close()


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path, samples: list[Sample]) -> None:
    daemon, reader = open_both(tmp_path / "cache")
    store_all(reader, samples)
    reader.close()
    daemon.close()
    for path in [*(tmp_path / "cache").glob("*/*"), tmp_path / "cache" / "CACHEDIR.TAG"]:
        path.unlink()
        os.mkfifo(path)
    daemon, reader = open_both(tmp_path / "cache")
    store_all(reader, samples)
    np.testing.assert_array_equal(reader.row(1), pixels(1))
    daemon.drop_pages()
    assert daemon.report()["rows_written"] == 4
    with pytest.raises(CacheError, match="no cache of prefetchd"):
        directory.list_cache(tmp_path / "cache")
    reader.close()
    daemon.close()


def test_a_link_that_appears_in_mid_run_is_not_followed(tmp_path: Path, samples: list[Sample]) -> None:
    """Reading a device may never end; the samples are decoded again."""
    daemon, reader = open_both(tmp_path / "cache")
    store_all(reader, samples)
    reader.close()
    for path in (tmp_path / "cache").glob("*/*"):
        path.unlink()
        path.symlink_to("/dev/zero")
    facts, fds = daemon.handle()
    reader = CacheInReader(facts, [os.dup(fd) for fd in fds], (8, 8), CHANNELS)
    assert reader.row(1) is None
    assert reader.find(samples[1], 1) is None
    daemon.drop_pages()
    reader.close()
    daemon.close()


@pytest.mark.parametrize("name", ["CACHEDIR.TAG", "pipeline", "rows", "description"])
def test_a_cache_with_a_link_in_it_is_refused(tmp_path: Path, samples: list[Sample], name: str) -> None:
    """Its pixels would come from elsewhere; a path that leads over a link to the cache is the user's own."""
    cache = tmp_path / "cache"
    daemon, reader = open_both(cache)
    store_all(reader, samples)
    reader.close()
    daemon.close()
    (folder,) = (each for each in cache.iterdir() if each.is_dir())
    found = {"CACHEDIR.TAG": cache / name, "pipeline": folder, "description": folder / "pipeline.json"}
    path = found.get(name) or next(folder.glob("*.rows"))
    (tmp_path / "way").symlink_to(cache)
    for each in open_both(tmp_path / "way"):
        each.close()
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheError, match=f"cannot use the cache .*{path.name} is a symbolic link; "):
        open_both(cache)


@pytest.mark.parametrize("name", ["", "pipeline", "rows"])
def test_a_cache_of_another_user_is_refused(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Pixels go into batches as they are. The administrator's may be used if no other user can write to it."""
    cache = tmp_path / "cache"
    daemon, reader = open_both(cache)
    store_all(reader, samples)
    reader.close()
    daemon.close()
    (folder,) = (each for each in cache.iterdir() if each.is_dir())
    theirs = {"": cache, "pipeline": folder}.get(name) or next(folder.glob("*.rows"))
    stat = os.stat
    owner = [12345]

    def of_another(path: object, **options: object) -> os.stat_result:
        found = stat(path, **options)  # type: ignore[arg-type]
        if os.fspath(path) == os.fspath(theirs):  # type: ignore[arg-type]
            found = os.stat_result((*found[:4], owner[0], *found[5:]))
        return found

    monkeypatch.setattr(os, "stat", of_another)
    with pytest.raises(
        CacheError, match=r"cannot use the cache .* belongs to the user 12345.*; give a folder of your own"
    ):
        open_both(cache)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    owner[0] = 0
    theirs.chmod(0o755)
    assert directory._is_trusted(of_another(theirs))
    theirs.chmod(0o777)
    assert not directory._is_trusted(of_another(theirs))


@pytest.mark.parametrize("name", ["", "pipeline"])
def test_a_folder_to_which_others_may_write_is_refused(tmp_path: Path, name: str) -> None:
    """They could replace what is in it, unless it is sticky; the group may be the user's own."""
    cache = tmp_path / "cache"
    before = os.umask(0)  # the folders that the cache makes are right without one
    try:
        for end in open_both(cache):
            end.close()
        for end in open_both(cache):
            end.close()
    finally:
        os.umask(before)
    (folder,) = (each for each in cache.iterdir() if each.is_dir())
    opened = folder if name else cache
    for mode in (0o775, 0o1777):
        opened.chmod(mode)
        for end in open_both(cache):
            end.close()
    opened.chmod(0o777)
    with pytest.raises(CacheError, match=r"others may write to it \(its mode is 0777\)"):
        open_both(cache)


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
    fd, n_slots = lookup.build(tmp_path, directory.segment_names(tmp_path))
    table = lookup.Lookup(fd, n_slots)
    assert n_slots < 1 << 17
    assert (1, 0) in set(table.places(key(8)))
    table.close()


@pytest.mark.parametrize("left", [b"", b'{"made_by": "pre'])
def test_a_description_that_was_torn_is_written_again(tmp_path: Path, left: bytes) -> None:
    """Without one nobody would know the rows for ours, and they could not be cleared."""
    folder = fill_folder(tmp_path / "cache")
    (folder / "pipeline.json").write_bytes(left)
    _, fd = directory.open_folder(tmp_path / "cache", folder.name, {"image_size": [8, 8]})
    os.close(fd)
    (kept,) = directory.list_cache(tmp_path / "cache")
    assert (kept.rows, kept.pipeline) == (1, {"image_size": [8, 8]})


def test_on_a_full_disk_nothing_is_made_nor_left_and_nothing_is_refused(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, text: str) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_text", full)
    daemon, reader = open_both(tmp_path / "cache")
    store_all(reader, samples)
    assert reader.row(1) is None
    assert os.listdir(tmp_path / "cache") == []
    daemon.tick()
    daemon.tick()
    assert caplog.text.count("its disk is full (No space left on device)") == 1
    assert daemon.report()["rows"] == 0
    reader.close()
    daemon.close()


def test_a_cache_that_cannot_be_written_to_is_read(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    daemon, reader = open_both(tmp_path / "cache")
    store_all(reader, samples[:2])
    reader.close()
    daemon.close()

    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(segment, "SegmentWriter", refuse)
    daemon, reader = open_both(tmp_path / "cache")
    np.testing.assert_array_equal(reader.find(samples[0], 0), pixels(0))
    assert reader.find(samples[3], 3) is None
    reader.store(samples[3], 3, pixels(3), 0)
    np.testing.assert_array_equal(reader.row(0), pixels(0))
    assert reader.row(3) is None
    daemon.tick()
    assert "it cannot be written to (Read-only file system); what is in it is used" in caplog.text
    assert daemon.report()["hits"] == 2
    reader.close()
    daemon.close()


def test_what_may_not_be_removed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_folder(tmp_path / "cache")
    (kept,) = directory.list_cache(tmp_path / "cache")

    def refuse(path: Path, **_: bool) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refuse)
        with pytest.raises(CacheError, match=r"cannot clear .*Operation not permitted"):
            directory.remove(kept)
    assert directory.remove(kept) > 0
    assert directory.remove(kept) == 0  # somebody else was faster


def test_what_a_daemon_uses_is_not_removed(tmp_path: Path) -> None:
    folder = fill_folder(tmp_path / "cache")
    _, fd = directory.open_folder(tmp_path / "cache", folder.name, {})
    (kept,) = directory.list_cache(tmp_path / "cache")
    assert kept.in_use
    with pytest.raises(CacheError, match="stop the daemon"):
        directory.remove(kept)
    os.close(fd)
    assert directory.remove(kept) > 0


# --- daemon and reader


def open_both(cache: Path, n_samples: int = 4, **options: object) -> tuple[CacheInDaemon, CacheInReader]:
    config = make_config(source="x", cache=str(cache), image_size=8, **options)
    daemon = CacheInDaemon(config, "decoder 1", n_samples, (), "int64")
    facts, fds = daemon.handle()
    return daemon, CacheInReader(facts, [os.dup(fd) for fd in fds], config.image_size, config.n_channels)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    made = []
    for number in range(4):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(bytes([number]))
        os.utime(path, ns=(0, 0))
        made.append(Sample(str(path), 10 + number))
    return made


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of these tests are as good as old."""
    monkeypatch.setattr("prefetchd.data.cache.reader_side.is_settled", lambda found, now_ns: True)


def store_all(reader: CacheInReader, samples: list[Sample]) -> None:
    for number, sample in enumerate(samples):
        assert reader.find(sample, number) is None
        reader.store(sample, number, pixels(number), 0)


def test_rows_go_from_run_to_run(tmp_path: Path, samples: list[Sample]) -> None:
    cache = tmp_path / "cache"
    daemon, reader = open_both(cache)
    store_all(reader, samples)
    x, y = np.zeros((5, 8, 8, 3), np.uint8), np.zeros(5, np.int64)
    assert reader.fill_rows(np.array([2, 0]), 3, x, y) == []
    np.testing.assert_array_equal(x[3:], [pixels(2), pixels(0)])
    assert y.tolist() == [0, 0, 0, 12, 10]
    assert not x[:3].any()
    reader.close()
    daemon.close()

    daemon, reader = open_both(cache)
    assert reader.known(np.arange(4)) == [False] * 4
    for number, sample in enumerate(samples):
        np.testing.assert_array_equal(reader.find(sample, number), pixels(number))
    assert reader.known(np.arange(4)) == [True] * 4
    np.testing.assert_array_equal(reader.row(3), pixels(3))
    report = daemon.report()
    assert (report["hits"], report["misses"], report["rows"], report["stopped"]) == (5, 0, 4, None)
    reader.close()
    daemon.close()


def test_a_file_that_is_named_twice_is_kept_once(tmp_path: Path, samples: list[Sample]) -> None:
    daemon, reader = open_both(tmp_path / "cache")
    store_all(reader, samples[:2])
    again = Sample(samples[1].path, 77)
    np.testing.assert_array_equal(reader.find(again, 3), pixels(1))
    assert (int(reader.label(1)), int(reader.label(3))) == (11, 77)
    assert daemon.report()["rows"] == 2
    reader.close()
    daemon.close()


def test_what_was_cut_short_or_cleared_in_mid_run_is_decoded_again(tmp_path: Path, samples: list[Sample]) -> None:
    daemon, reader = open_both(tmp_path / "cache")
    store_all(reader, samples)
    x, y = np.zeros((4, 8, 8, 3), np.uint8), np.zeros(4, np.int64)
    (rows,) = (tmp_path / "cache").glob("*/*.rows")
    os.truncate(rows, 2 * 192 + 5)
    assert reader.fill_rows(np.arange(4), 0, x, y) == [2, 3]
    assert reader.known(np.arange(4)) == [True, True, False, False]
    assert reader.row(2) is None
    reader.close()
    daemon.close()


def test_a_file_that_changes_while_it_is_decoded_is_not_kept(tmp_path: Path, samples: list[Sample]) -> None:
    daemon, reader = open_both(tmp_path / "cache")
    assert reader.find(samples[0], 0) is None
    Path(samples[0].path).write_bytes(b"another")
    reader.store(samples[0], 0, pixels(0), 0)
    assert reader.known(np.array([0])) == [False]
    assert daemon.report()["rows"] == 0
    reader.close()
    daemon.close()


def test_a_file_that_was_read_before_it_was_replaced_is_not_kept(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was read ahead of the look at its state, however long ago that is now."""
    monkeypatch.setattr("prefetchd.data.cache.reader_side.is_settled", keys.is_settled)
    daemon, reader = open_both(tmp_path / "cache")
    changed_ns = os.stat(samples[0].path).st_ctime_ns
    for read_ns, is_kept in ((changed_ns - 1, False), (changed_ns + CLOCK_STEP_NS + 1, True)):
        assert reader.find(samples[0], 0) is None
        reader.store(samples[0], 0, pixels(0), read_ns)
        assert reader.known(np.array([0])) == [is_kept]
    reader.close()
    daemon.close()


def test_a_modification_time_in_the_future_keeps_no_file_from_the_cache(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive may have been made by a clock that was ahead: the change time says when a file was written here."""
    monkeypatch.setattr("prefetchd.data.cache.reader_side.is_settled", keys.is_settled)
    os.utime(samples[0].path, (4e9, 4e9))
    daemon, reader = open_both(tmp_path / "cache")
    assert reader.find(samples[0], 0) is None
    reader.store(samples[0], 0, pixels(0), os.stat(samples[0].path).st_ctime_ns + CLOCK_STEP_NS + 1)
    assert reader.known(np.array([0])) == [True]
    reader.close()
    daemon.close()


def test_a_cache_that_is_removed_while_it_is_used_stops_filling(
    tmp_path: Path, samples: list[Sample], caplog: pytest.LogCaptureFixture
) -> None:
    daemon, reader = open_both(tmp_path / "cache")
    for path in sorted((tmp_path / "cache").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "cache").rmdir()
    found = [reader.find(sample, number) for number, sample in enumerate(samples)]
    assert found == [None] * 4
    reader.store(samples[3], 3, pixels(3), 0)
    daemon.drop_pages()
    daemon.tick()
    assert "cannot be written to (No such file or directory)" in caplog.text
    assert daemon.report()["rows"] == 0
    reader.close()
    daemon.close()


def test_a_reader_with_few_descriptors_keeps_some_for_images(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in samples:  # a segment for each
        daemon, reader = open_both(tmp_path / "cache")
        missing = [number for number, sample in enumerate(samples) if reader.find(sample, number) is None]
        reader.find(samples[missing[0]], missing[0])
        reader.store(samples[missing[0]], missing[0], pixels(missing[0]), 0)
        reader.close()
        daemon.close()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr("prefetchd.data.cache.reader_side.resource.getrlimit", lambda _: (8, limits[1]))
    daemon, reader = open_both(tmp_path / "cache")
    for number, sample in enumerate(samples):
        np.testing.assert_array_equal(reader.find(sample, number), pixels(number))
        assert len(reader._rows_fds) <= 2
    reader.close()
    daemon.close()


def test_filling_stops_at_the_limit_and_says_so_once(
    tmp_path: Path, samples: list[Sample], caplog: pytest.LogCaptureFixture
) -> None:
    daemon, reader = open_both(tmp_path / "cache", cache_size="1KiB")
    reader.find(samples[0], 0)
    reader.store(samples[0], 0, pixels(0), 0)
    reader.find(samples[1], 1)
    reader.store(samples[1], 1, pixels(1), 0)
    daemon.tick()
    daemon.tick()
    assert [record.getMessage() for record in caplog.records if "not filled any further" in record.getMessage()] == [
        f"the cache {tmp_path / 'cache'} is not filled any further: its size limit of 1.0 KiB is reached; raise "
        "cache_size for more; what is in it is used"
    ]
    assert daemon.report()["rows"] == 0
    assert daemon.report()["misses"] == 2
    reader.close()
    daemon.close()


def test_pages_are_dropped_only_where_memory_is_short(tmp_path: Path, samples: list[Sample]) -> None:
    daemon, reader = open_both(tmp_path / "cache")
    store_all(reader, samples)
    dropped: list[float] = []
    now_s = [100.0]
    readings: list[CgroupMemory] = []
    pages = CachePages([daemon], lambda: readings, lambda: now_s[0])
    drop = daemon.drop_pages
    daemon.drop_pages = lambda: (dropped.append(now_s[0]), drop())  # type: ignore[method-assign, assignment]
    pages.tick()
    readings[:] = [CgroupMemory(1000, 850, ""), CgroupMemory(1 << 40, 5, "")]
    pages.tick()
    assert dropped == []
    readings[:] = [CgroupMemory(1 << 40, 5, ""), CgroupMemory(1000, 950, "")]
    pages.tick()
    now_s[0] += 1
    pages.tick()
    assert dropped == [100.0]
    now_s[0] += 5
    pages.tick()
    assert dropped == [100.0, 106.0]
    np.testing.assert_array_equal(reader.row(1), pixels(1))
    reader.close()
    daemon.close()
