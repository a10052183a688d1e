"""What was downloaded, kept on disk: found whole or not at all, within its limit."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prefetchd.config.validate import make_config
from prefetchd.data.files import write_all
from prefetchd.data.stores.keep import KeptRanges, entry_name
from prefetchd.data.stores.next_use import NextUses
from prefetchd.errors import ConfigError
from prefetchd.sampling.order import Order

CONTENT = memoryview(bytes(range(256)) * 4)
NAME = entry_name("s3://b/k", [4096, "tag"], 0, len(CONTENT))


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.glob("??/*") if path.is_file()]


def test_an_entry_comes_back_in_another_process_too(tmp_path: Path) -> None:
    kept = KeptRanges(tmp_path / "kept", None)
    assert kept.find(NAME, len(CONTENT)) is None
    kept.store(NAME, CONTENT)
    assert bytes(KeptRanges(tmp_path / "kept", None).find(NAME, len(CONTENT))) == bytes(CONTENT)
    assert kept.find(NAME, len(CONTENT) - 1) is None


def test_names_follow_url_identity_and_range_and_hold_no_secrets() -> None:
    others = {
        entry_name(url, identity, start, n_bytes)
        for url in ("s3://b/k", "s3://b/l")
        for identity in ([9, "a"], [9, "b"], [8, "a"])
        for start in (0, 1)
        for n_bytes in (5, 6)
    }
    assert len(others) == 24
    assert entry_name("https://h/k?sig=1", [9, "a"], 0, 5) == entry_name("https://h/k?sig=2", [9, "a"], 0, 5)
    assert entry_name("https://h/k?id=1", [9, "a"], 0, 5) != entry_name("https://h/k?id=2", [9, "a"], 0, 5)


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "longer"])
def test_damaged_entries_are_dropped_and_kept_again(tmp_path: Path, damage: str) -> None:
    kept = KeptRanges(tmp_path, 1 << 20)
    kept.store(NAME, CONTENT)
    (path,) = entries(tmp_path)
    raw = bytearray(path.read_bytes())
    changed = {"bit": raw[:-1] + bytes([raw[-1] ^ 1]), "cut": raw[:-1], "empty": b"", "longer": raw + b"x"}
    path.write_bytes(changed[damage])
    assert kept.find(NAME, len(CONTENT)) is None
    assert entries(tmp_path) == []
    kept.store(NAME, CONTENT)
    assert kept.find(NAME, len(CONTENT)) == CONTENT


def name_of(number: int) -> str:
    return entry_name("s3://b/k", [9, "tag"], number, len(CONTENT))


def store_many(kept: KeptRanges, count: int, first: int = 0, needed_s: float | None = None) -> None:
    for number in range(first, first + count):
        kept.store(name_of(number), CONTENT, needed_s)


def on_disk(folder: Path) -> int:
    found = {}  # a file has two names for a moment
    for path in folder.glob("??/*"):
        with contextlib.suppress(FileNotFoundError):
            stat = path.lstat()
            found[stat.st_ino] = stat.st_blocks * 512
    return sum(found.values())


def foreign_files(folder: Path) -> dict[Path, bytes]:
    """Files of a user's, some with names as entries have them, all long untouched."""
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / ("c" * 30)).write_bytes(b"linked")
    files = {folder / "CACHEDIR.TAG": b"mine", folder / "notes.txt": b"mine", folder / "ab" / "notes.txt": b"mine"}
    files |= {folder / f"{number:02x}" / f"{number:030x}": b"weights" * 500 for number in range(256)}
    files |= {folder / "ab" / "tmp.0123456789abcdef": b"mine", folder / "abc" / ("a" * 30): b"pfkeep1\nmine"}
    files[folder / NAME[:2] / NAME[2:]] = b"by chance the name of an entry"
    for path, content in files.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (1, 1))
    (folder / "ab" / ("e" * 30)).symlink_to(outside / ("c" * 30))
    return files


def test_files_of_the_user_stay_whatever_they_are_called(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    files = foreign_files(folder)
    kept = KeptRanges(folder, 2 << 20, started_s=0)
    kept.store(NAME, CONTENT)
    assert kept.find(NAME, len(CONTENT)) is None
    for number in range(600):
        kept.store(name_of(number), CONTENT, time.time() + 1000 - number)
    ours = [path for path in entries(folder) if path not in files and not path.is_symlink()]
    assert 0 < len(ours) < 512
    assert {path: path.read_bytes() for path in files} == files
    assert (tmp_path / "outside" / ("c" * 30)).read_bytes() == b"linked"
    assert (folder / "ab" / ("e" * 30)).is_symlink()


@pytest.mark.parametrize(
    ("name", "is_tagged"),
    [("", True), ("prefetchd-keep.size", True), ("ab/x", True), ("thesis.txt", False), ("a/x", False)],
)
def test_backups_leave_out_no_folder_that_has_files_of_the_user(tmp_path: Path, name: str, is_tagged: bool) -> None:
    folder = tmp_path / "kept"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    if name:
        (folder / name).touch()
    KeptRanges(folder, 1 << 20).store(NAME, CONTENT)
    assert (folder / "CACHEDIR.TAG").exists() == is_tagged
    assert KeptRanges(folder, 1 << 20).find(NAME, len(CONTENT)) == CONTENT


def test_a_count_that_is_not_prefetchds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prefetchd-keep.size").write_bytes(b"a user's")
    with pytest.raises(ConfigError, match="it is not prefetchd's; give another folder"):
        KeptRanges(tmp_path, 1 << 20)
    assert (tmp_path / "prefetchd-keep.size").read_bytes() == b"a user's"


def test_the_limit_is_of_blocks_on_the_disk_and_holds_for_all_who_share_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limit = 256 << 10
    most = 0

    def written(fd: int, content: memoryview | bytes) -> None:
        nonlocal most
        write_all(fd, content)
        most = max(most, on_disk(tmp_path))

    monkeypatch.setattr("prefetchd.data.stores.keep_files.write_all", written)
    parties = [KeptRanges(tmp_path, limit) for _ in range(3)]
    now = time.time() + 10_000
    with caplog.at_level(logging.WARNING, "prefetchd"):
        for number in range(300):
            parties[number % 3].store(name_of(number), CONTENT, now - number)
    assert limit / 2 < on_disk(tmp_path) <= most <= limit
    (message,) = [record.message for record in caplog.records]
    assert "is full (keep_size=256 KiB)" in message


def test_processes_that_write_at_once_stay_within_the_limit(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from prefetchd.data.stores.keep import KeptRanges, entry_name; "
        "kept = KeptRanges(Path(sys.argv[1]), 512 << 10); content = memoryview(bytes(1000)); now = time.time() + 1e4\n"
        "for n in range(300): kept.store(entry_name('s3://b/k', [9, 'tag'], n * 4 + int(sys.argv[2]), 1000), content, "
        "now - n)"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(number)]) for number in range(3)]
    assert [run.wait(timeout=100) for run in runs] == [0, 0, 0]
    assert 256 << 10 < on_disk(tmp_path) <= 512 << 10


def test_what_is_needed_last_goes_first_and_nothing_goes_for_what_is_needed_later(tmp_path: Path) -> None:
    kept = KeptRanges(tmp_path, 64 << 10)
    now = time.time()
    for number in range(40):  # 16 fit
        kept.store(name_of(number), CONTENT, now + 1000 - number)
    assert {n for n in range(40) if kept.find(name_of(n), len(CONTENT), now + 1000 - n)} == set(range(24, 40))
    store_many(kept, 5, first=100, needed_s=now + 5000)
    assert {n for n in range(200) if kept.find(name_of(n), len(CONTENT))} == set(range(24, 40))


def test_what_was_not_read_in_its_time_goes_before_all_others(tmp_path: Path) -> None:
    now = time.time()
    old = KeptRanges(tmp_path, 64 << 10)
    for number in range(16):
        old.store(name_of(number), CONTENT, now - 100_000 + number)
    fresh = KeptRanges(tmp_path, 64 << 10)  # this run may need them yet
    store_many(fresh, 1, first=100, needed_s=now + 10)
    assert not fresh.find(name_of(100), len(CONTENT))
    later = KeptRanges(tmp_path, 64 << 10, started_s=now - 90_000)
    store_many(later, 3, first=200, needed_s=now + 10)
    assert [n for n in range(16) if not later.find(name_of(n), len(CONTENT))] == [0, 1, 2]


def test_keeping_by_need_finds_as_much_as_fits(tmp_path: Path) -> None:
    """Half of the ranges fit. Each epoch reads all of them, in another order: no rule finds more than half."""
    order = Order(64, 1, drop_last=False, shuffle=True, seed=3)
    clock = [0.0]
    kept = KeptRanges(tmp_path, 32 * 4096)
    uses = NextUses(order, lambda: clock[0])
    found = 0
    for epoch in range(8):
        for batch in range(64):
            clock[0] = 2e9 + (epoch * 64 + batch) * 60
            (number,) = order.sample_ids(epoch, batch, 0, 1).tolist()
            again_s = uses.times(epoch, batch, [number])[number]
            if kept.find(name_of(number), len(CONTENT), again_s) is not None:
                found += epoch > 1
            else:
                kept.store(name_of(number), CONTENT, again_s)
    assert found / (6 * 64) > 0.45


def test_entries_that_are_gone_and_writers_that_were_killed_leave_room_again(tmp_path: Path) -> None:
    kept = KeptRanges(tmp_path, 64 << 10)
    store_many(kept, 16, needed_s=time.time() + 10)
    for path in entries(tmp_path):
        path.unlink()
    size = tmp_path / "prefetchd-keep.size"
    size.write_bytes(size.read_bytes()[:24] + bytes(8))  # counted long ago
    store_many(kept, 17, first=100, needed_s=time.time() + 20)
    assert len(entries(tmp_path)) == 16
    torn = tmp_path / "ab" / "tmp.0123456789abcdef"
    torn.parent.mkdir(exist_ok=True)
    torn.write_bytes(b"pfkeep1\n")
    os.utime(torn, (1, 1))
    kept = KeptRanges(tmp_path, 64 << 10)
    store_many(kept, 1, first=200, needed_s=time.time() + 30)
    assert not torn.exists()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_takes_nothing_is_done_without_with_one_warning(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(fd: int, content: object) -> None:
        raise OSError(error, os.strerror(error))

    kept = KeptRanges(tmp_path, 1 << 20)
    store_many(kept, 1, first=100)
    monkeypatch.setattr("prefetchd.data.stores.keep_files.write_all", fails)
    with caplog.at_level(logging.WARNING, "prefetchd"):
        store_many(kept, 3)
    assert len(entries(tmp_path)) == 1
    assert kept.find(name_of(100), len(CONTENT)) == CONTENT
    (message,) = [record.message for record in caplog.records]
    assert message.startswith(f"no more objects are kept in {tmp_path}: it cannot be written to ({os.strerror(error)})")


def test_a_folder_that_is_removed_in_mid_run_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "kept"
    kept = KeptRanges(folder, 1 << 20)
    store_many(kept, 3)
    shutil.rmtree(folder)
    store_many(kept, 3)
    assert kept.find(name_of(0), len(CONTENT)) is None
    assert not folder.exists()


def test_a_pipe_and_a_link_are_no_entries(tmp_path: Path) -> None:
    kept = KeptRanges(tmp_path, None)
    kept.store(NAME, CONTENT)
    (path,) = entries(tmp_path)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert kept.find(NAME, len(CONTENT)) is None
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert kept.find(NAME, len(CONTENT)) is None


def test_folders_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="give another folder: keep="):
        KeptRanges(tmp_path / "file", None)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ConfigError, match="of your own"):
        KeptRanges(tmp_path / "open", None)
    with pytest.raises(ConfigError, match="'much'"):
        make_config(source="x", keep="d", keep_size="much")
