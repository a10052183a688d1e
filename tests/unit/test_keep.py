"""What was downloaded, kept on disk: found whole or not at all, within its limit."""

from __future__ import annotations

import errno
import logging
import os
import time
from pathlib import Path

import pytest

from prefetchd.config.validate import make_config
from prefetchd.data.stores.keep import KeptRanges, entry_name
from prefetchd.errors import ConfigError

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


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "longer", "head"])
def test_damaged_entries_are_dropped(tmp_path: Path, damage: str) -> None:
    kept = KeptRanges(tmp_path, None)
    kept.store(NAME, CONTENT)
    (path,) = entries(tmp_path)
    raw = bytearray(path.read_bytes())
    changed = {
        "bit": raw[:-1] + bytes([raw[-1] ^ 1]), "cut": raw[:-1], "empty": b"", "longer": raw + b"x",
        "head": b"x" + raw[1:],
    }  # fmt: skip
    path.write_bytes(changed[damage])
    assert kept.find(NAME, len(CONTENT)) is None
    assert entries(tmp_path) == []


def store_many(kept: KeptRanges, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        kept.store(entry_name("s3://b/k", [9, "tag"], number, len(CONTENT)), CONTENT)


def test_the_limit_holds_and_what_is_in_use_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    limit = 256 << 10
    kept = KeptRanges(tmp_path, limit)
    with caplog.at_level(logging.WARNING, "prefetchd"):
        store_many(kept, 400)
        before = {path.name for path in entries(tmp_path)}
        store_many(kept, 20, first=1000)
        store_many(KeptRanges(tmp_path, limit), 20, first=2000)
    assert limit / 2 < sum(path.stat().st_size for path in entries(tmp_path)) <= limit
    assert {path.name for path in entries(tmp_path)} >= before
    assert [record.message for record in caplog.records if "no more objects are kept" in record.message][1:] == []
    assert "keep_size=256 KiB" in caplog.text


def test_what_nobody_has_read_for_a_day_makes_room_the_longest_unread_first(tmp_path: Path) -> None:
    limit = 1 << 20
    store_many(KeptRanges(tmp_path, limit), 1200)
    old = entries(tmp_path)
    now = time.time()
    for number, path in enumerate(old):
        os.utime(path, (now, now - 86_400 * 2 - number))
    recent = old[-1]
    os.utime(recent)
    kept = KeptRanges(tmp_path, limit)
    store_many(kept, 1, first=5000)
    left = set(entries(tmp_path))
    assert recent in left
    assert old[0] in left
    assert old[-2] not in left
    assert len(left - set(old)) == 1


def test_a_disk_that_is_full_is_done_without_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(fd: int, content: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    kept = KeptRanges(tmp_path, None)
    monkeypatch.setattr("prefetchd.data.stores.keep.write_all", full)
    with caplog.at_level(logging.WARNING, "prefetchd"):
        store_many(kept, 3)
    assert entries(tmp_path) == []
    (message,) = [record.message for record in caplog.records]
    assert message.startswith(
        f"no more objects are kept in {tmp_path}: it cannot be written to (No space left on device)"
    )


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
    with pytest.raises(ConfigError, match="give another folder as keep"):
        KeptRanges(tmp_path / "file", None)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ConfigError, match="of your own"):
        KeptRanges(tmp_path / "open", None)
    with pytest.raises(ConfigError, match="'much'"):
        make_config(source="x", keep="d", keep_size="much")
