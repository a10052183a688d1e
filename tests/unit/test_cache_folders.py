"""The folders of a cache: which are used and removed, and what is done about links, other users and full disks."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from prefetchd.data.cache import directory, keys, segment
from prefetchd.data.cache.directory import CacheError
from prefetchd.data.cache.reader_side import CacheInReader
from prefetchd.data.records import Sample
from tests.unit import test_cache
from tests.unit.test_cache import CHANNELS, PIPELINE, key, open_both, pixels, store_all

samples, settled = test_cache.samples, test_cache.settled  # its fixtures


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


@pytest.mark.parametrize(("name", "is_tagged"), [("sizes.bin", True), ("thesis.txt", False)])
def test_backups_leave_out_no_folder_that_has_files_of_the_user(tmp_path: Path, name: str, is_tagged: bool) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / name).touch()
    fill_folder(cache)
    fill_folder(cache, "f" * 16)
    assert (cache / "CACHEDIR.TAG").exists() == is_tagged
    for each in directory.list_cache(cache):
        directory.remove(each)
    directory.remove_empty(cache)
    assert cache.exists() != is_tagged


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
    assert directory.is_trusted(of_another(theirs))
    theirs.chmod(0o777)
    assert not directory.is_trusted(of_another(theirs))


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
