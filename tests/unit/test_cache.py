"""The cache: what may be cached under which key, and what daemon and readers do with it together."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import numpy as np
import pytest

from prefetchd.config.validate import make_config
from prefetchd.daemon.memory.limits import CgroupMemory
from prefetchd.daemon.memory.pressure import CachePages
from prefetchd.data.cache import keys, segment
from prefetchd.data.cache.daemon_side import CacheInDaemon
from prefetchd.data.cache.keys import check_cache
from prefetchd.data.cache.reader_side import CacheInReader
from prefetchd.data.files import CLOCK_STEP_NS
from prefetchd.data.images.kept_jpeg import JpegRows
from prefetchd.data.records import Sample
from prefetchd.errors import ConfigError

CHANNELS = 3
PIPELINE = keys.pipeline_of(make_config(source="x", image_size=8), "decoder 1")


def pixels(seed: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, CHANNELS), np.uint8)


def key(number: int) -> bytes:
    return number.to_bytes(8, "little") + bytes(8)


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
        {"cache_format": "jpeg", "cache_image_size": 224},
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
        ({"cache_format": "jpeg"}, "give cache_image_size=(352, 352)"),
        ({"cache_format": "jpeg", "cache_image_size": 256, "target": "mask"}, "masks"),
        ({"cache_format": "jpeg", "cache_image_size": 256, "dtype": "uint16"}, "JPEG has 8 bits"),
        ({"cache_format": "jpeg", "cache_image_size": 256, "channels": 3}, "exact channels"),
        ({"cache_quality": 80}, 'give cache_format="jpeg"'),
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


def test_the_quality_of_jpeg_rows_is_content_and_the_default_changes_no_digest() -> None:
    plain = make_config(source="x", cache_image_size=64)
    assert "cache_format" not in keys.pipeline_of(plain, "d")
    jpeg, low = (
        make_config(source="x", cache_image_size=64, cache_format="jpeg", cache_quality=quality) for quality in (90, 50)
    )
    assert len({config.digest() for config in (plain, jpeg, low)}) == 3
    assert keys.pipeline_of(jpeg, "d") != keys.pipeline_of(low, "d")


# --- rows of JPEG


@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (40, 61), (192, 256)])
def test_jpeg_rows_come_back_as_nearly_the_same_pixels(color: str, height: int, width: int) -> None:
    ramp = np.linspace(0, 255, height * width).reshape(height, width)
    image = np.ascontiguousarray(np.stack([ramp, ramp[::-1], ramp * 0 + 60], -1).astype(np.uint8))
    image = image[..., 0].copy() if color == "gray" else image
    before = image.copy()
    rows = JpegRows(color, 95)
    row = rows.encode(image)
    assert (row.ndim, row.dtype, bytes(row[:2])) == (1, np.uint8, b"\xff\xd8")
    found = rows.decode(row)
    assert found.shape == image.shape
    assert np.abs(found.astype(int) - image).mean() < 4
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(rows.encode(image), row)


def test_jpeg_rows_that_are_damaged_give_nothing() -> None:
    assert JpegRows("rgb", 90).decode(np.zeros(100, np.uint8)) is None


@pytest.mark.parametrize("n_bytes", [1, 65_535, 65_536, 200_001])
def test_an_encoded_row_of_any_length_comes_back(tmp_path: Path, n_bytes: int) -> None:
    row = np.random.default_rng(n_bytes).integers(0, 256, n_bytes, np.uint8)
    writer = segment.SegmentWriter(tmp_path, "run-0")
    offset, number = writer.append(key(1), row)
    assert (offset, number) == (0, 0)
    record = segment.unpack((tmp_path / "run-0.index").read_bytes())
    np.testing.assert_array_equal(segment.read_row(writer.fd, record, 0), row)
    with open(tmp_path / "run-0.rows", "r+b") as file:
        file.write(bytes([row[0] ^ 1]))
    assert segment.read_row(writer.fd, record, 0) is None
    writer.close()


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


def test_rows_of_an_earlier_run_go_straight_into_a_batch_once_they_are_checked(
    tmp_path: Path, samples: list[Sample]
) -> None:
    cache = tmp_path / "cache"
    daemon, reader = open_both(cache)
    store_all(reader, samples)
    reader.close()
    daemon.close()
    (rows,) = cache.glob("*/*.rows")
    with rows.open("r+b") as file:
        file.seek(192 + 7)
        file.write(b"damage")
    Path(samples[3].path).write_bytes(b"another file")

    daemon, reader = open_both(cache)
    x, y = np.zeros((5, 8, 8, 3), np.uint8), np.zeros(5, np.int64)
    left = reader.find_rows(np.arange(4), [1, 2, 3, 4], samples, x, y, (8, 8))
    assert left == [1, 3]
    np.testing.assert_array_equal(x[[1, 3]], [pixels(0), pixels(2)])
    assert y[[1, 3]].tolist() == [10, 12]
    assert reader.known(np.arange(4)) == [True, False, True, False]
    for place in left:
        assert reader.find(samples[place], place) is None
        reader.store(samples[place], place, pixels(place), 0)
    report = daemon.report()
    assert (report["hits"], report["misses"], report["rows"]) == (2, 2, 6)
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
