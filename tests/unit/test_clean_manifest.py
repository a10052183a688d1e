"""The manifest without its bad lines: every other byte as it was."""

from __future__ import annotations

import os

import pytest

from prefetchd.cli.commands.verify import check_target, write_clean
from prefetchd.errors import ConfigError, ManifestError

ODD = b"\xef\xbb\xbf# note\r\na b.jpg 1\r\n\n\xff\xfe.jpg 2\n c.jpg\t3 \r\nd.jpg 4\x0ce\nlast.jpg 5"


def test_other_lines_keep_every_byte(tmp_path):
    source, target = tmp_path / "odd.txt", tmp_path / "clean.txt"
    source.write_bytes(ODD)
    assert write_clean(str(source), str(target), {4}) == (6, 1)
    assert target.read_bytes() == ODD.replace(b"\xff\xfe.jpg 2\n", b"")


def test_the_file_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(ManifestError, match="cannot write"):
        write_clean(str(tmp_path / "gone.txt"), str(tmp_path / "clean.txt"), set())
    assert os.listdir(tmp_path) == []


def test_permissions_are_those_of_any_new_file(tmp_path):
    source, target = tmp_path / "m.txt", tmp_path / "clean.txt"
    source.write_bytes(ODD)
    write_clean(str(source), str(target), set())
    assert target.stat().st_mode == source.stat().st_mode


def test_what_is_no_file_is_not_replaced_and_a_link_stays_one(tmp_path):
    source, pipe, link = tmp_path / "m.txt", tmp_path / "pipe", tmp_path / "link"
    source.write_bytes(ODD)
    os.mkfifo(pipe)
    for target in (pipe, tmp_path):
        with pytest.raises(ConfigError, match="not a regular file"):
            check_target(str(source), str(target))
    (tmp_path / "elsewhere").mkdir()
    link.symlink_to(tmp_path / "elsewhere" / "clean.txt")
    for _ in range(2):  # while it leads nowhere, and then to a file
        check_target(str(source), str(link))
        write_clean(str(source), str(link), set())
        assert link.is_symlink()
        assert link.read_bytes() == ODD


def test_a_target_that_cannot_be_is_refused_before_the_work(tmp_path):
    source = tmp_path / "m.txt"
    source.write_bytes(ODD)
    for target in (source, tmp_path / "no" / "clean.txt"):
        with pytest.raises(ConfigError):
            check_target(str(source), str(target))
    with pytest.raises(ConfigError, match="not a list file"):
        check_target(str(tmp_path), str(tmp_path / "clean.txt"))
    check_target(str(source), str(tmp_path / "clean.txt"))
