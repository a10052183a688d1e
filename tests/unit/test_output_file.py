"""Files that a command was told to make."""

from __future__ import annotations

import os
import resource
import stat
from pathlib import Path

import pytest

from prefetchd.cli.output_file import write_whole


def test_a_full_disk_leaves_the_older_file_or_none(tmp_path: Path) -> None:
    """A limit of the size of files has the place of it."""
    (tmp_path / "old.png").write_bytes(b"older")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        for name in ("old.png", "new.png"):
            with pytest.raises(OSError, match="File too large"):
                write_whole(str(tmp_path / name), bytes(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["old.png"]
    assert (tmp_path / "old.png").read_bytes() == b"older"


def test_links_stay_links_and_the_mode_is_that_of_new_files(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(b"older")
    (tmp_path / "link.png").symlink_to("real.png")
    write_whole(str(tmp_path / "link.png"), b"newer")
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "real.png").read_bytes() == b"newer"
    (tmp_path / "plain").write_bytes(b"")
    assert stat.S_IMODE((tmp_path / "real.png").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
