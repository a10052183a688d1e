"""The header pass: sizes of images by child processes, kept in a file, and done again where one dies."""

from __future__ import annotations

import logging
import os
import resource
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prefetchd.config.validate import make_config
from prefetchd.data.images import header_pass, sizes
from prefetchd.data.images.source import ImageSource
from prefetchd.data.registry import open_source
from prefetchd.errors import ConfigError, PrefetchdError
from tests.images import exif, photograph, write_jpeg


def table_of(source: Path, **options: Any) -> np.ndarray:
    config = make_config(source=source, image_size="48x48,36x64", **options)
    opened = open_source(config)
    assert isinstance(opened, ImageSource)
    return header_pass.HeaderPass(config, *opened.handle(), opened.facts.n_samples, -1).run()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A list of images of known sizes, and of what is none."""
    lines = []
    for number in range(5):
        lines.append(write_jpeg(tmp_path / f"{number}.jpg", (20 + number, 30), number).name)
    long_header = Image.fromarray(photograph(40, 50))
    long_header.save(tmp_path / "comment.jpg", comment=b"x" * 65000, icc_profile=b"y" * 200_000, exif=exif(8))
    Image.fromarray(photograph(41, 50)).save(tmp_path / "a.webp", exif=exif(6))
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff no image")
    (tmp_path / "list.txt").write_text("\n".join([*lines, "comment.jpg", "a.webp", "bad.jpg", "missing.jpg"]))
    time.sleep(0.05)  # a file that was just written may be written to again in the same step of the clock
    return tmp_path / "list.txt"


def test_sizes_are_upright_and_zero_where_no_header_can_be_read(images):
    table = table_of(images)
    expected = [(20 + number, 30) for number in range(5)] + [(50, 40), (50, 41), (0, 0), (0, 0)]
    assert [(int(row["height"]), int(row["width"])) for row in table] == expected
    assert (table["high"][:7] != 0).all()


def test_kept_sizes_are_taken_while_the_file_is_as_it_was(images, caplog):
    caplog.set_level(logging.INFO)
    kept = images.parent / "kept"
    first = table_of(images, bucket_file=kept)
    assert "read the headers of 9 of 9 images" in caplog.text
    second = table_of(images, bucket_file=kept)
    assert "read the headers of 2 of 9 images" in caplog.text, "what cannot be read is tried again"
    np.testing.assert_array_equal(first, second)
    rows = sizes.load(kept)
    assert len(rows) == 7
    assert (np.diff(rows["high"].astype(object)) > 0).all()
    write_jpeg(images.parent / "2.jpg", (77, 30))
    assert table_of(images, bucket_file=kept)[2]["height"] == 77


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "link"])
def test_a_damaged_file_is_read_anew(images, caplog, damage):
    kept = images.parent / "kept"
    whole = table_of(images, bucket_file=kept)
    content = bytearray(kept.read_bytes())
    content[50] ^= 1
    kept.write_bytes({"cut": kept.read_bytes()[:-20], "bit": content, "empty": b"", "link": b""}[damage])
    if damage == "link":
        kept.unlink()
        kept.symlink_to(images)
    assert not len(sizes.load(kept))
    np.testing.assert_array_equal(table_of(images, bucket_file=kept), whole)


def test_a_folder_that_cannot_be_written_changes_nothing(images, caplog):
    (images.parent / "file").write_text("")
    table = table_of(images, bucket_file=images.parent / "file" / "kept")
    assert len(table) == 9
    assert "the sizes of images cannot be kept" in caplog.text


def test_a_child_that_dies_is_replaced(images, monkeypatch):
    started: list[Any] = []

    class Dies(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            started.append(self)
            if len(started) <= 2:
                self.kill()

    monkeypatch.setattr(header_pass.subprocess, "Popen", Dies)
    assert table_of(images)["height"].tolist() == [20, 21, 22, 23, 24, 50, 50, 0, 0]
    assert len(started) == 3
    assert all(process.returncode is not None for process in started)


def test_children_that_always_die_are_an_error_in_words(images, monkeypatch):
    class Dies(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            self.kill()

    monkeypatch.setattr(header_pass.subprocess, "Popen", Dies)
    with pytest.raises(PrefetchdError, match=r"4 processes that did so ended \(killed by SIGKILL"):
        table_of(images)


def test_sizes_of_other_sets_stay(tmp_path):
    def rows(*keys: int) -> np.ndarray:
        made = np.zeros(len(keys), sizes.ROW)
        made["high"], made["low"], made["height"], made["width"] = keys, 1, 5, 6
        return made

    sizes.save(tmp_path / "kept", rows(), rows(5, 3))
    sizes.save(tmp_path / "kept", sizes.load(tmp_path / "kept"), rows(9, 3, 0))
    kept = sizes.load(tmp_path / "kept")
    assert kept["high"].tolist() == [3, 5, 9]
    asked = rows(9, 4, 0)
    asked["height"] = 0
    assert sizes.look_up(kept, asked).tolist() == [True, False, False]
    assert asked["height"].tolist() == [5, 0, 0]
    other = rows(9)
    other["low"] = 2  # the first half alone is the same
    assert sizes.look_up(kept, other).tolist() == [False]
    assert os.listdir(tmp_path) == ["kept"]


@pytest.fixture
def many_descriptors():
    """Have the descriptors that are opened from now on be numbered above 1023, where `select` ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("this user may not open as many files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2048, hard))
    opened = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)]
    while opened[-1] < 1024:
        opened.append(os.dup(opened[0]))
    yield
    for fd in opened:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_daemon_with_many_files_open_reads_headers(images, many_descriptors):
    assert table_of(images)["height"].tolist() == [20, 21, 22, 23, 24, 50, 50, 0, 0]


def test_a_daemon_with_many_files_open_tries_functions(images, many_descriptors):
    config = make_config(source=images, image_size="32x32", transform="numpy:fliplr", on_error="skip")
    with pytest.raises(ConfigError, match="fliplr"):  # it takes no rng, which the dry run tells
        open_source(config)
