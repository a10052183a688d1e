"""Arrays as a source: what is served as it is, and what no map may hide."""

from __future__ import annotations

import faulthandler
import itertools
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from prefetchd.config.validate import make_config
from prefetchd.data.arrays import mapped_rows
from prefetchd.data.registry import attach_source, open_source
from prefetchd.errors import ManifestError
from prefetchd.ring.layout import DTYPES, BatchLayout
from tests.array_sources import attached, no_descriptor_is_left, opens, same, saved, served, shards, some  # noqa: F401

# --- what is served


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row_shape", [(), (3,), (2, 3, 1), (0,)])
def test_rows_are_those_of_the_array(tmp_path, dtype, row_shape):
    """Any dtype that a slot can hold and any row shape; together, and each alone."""
    array = np.arange(5 * int(np.prod(row_shape))).reshape(5, *row_shape).astype(dtype)
    path = saved(tmp_path / "x.npy", array)
    ids = [3, 0, 4, 4]
    x, y = served(path, ids)
    assert same(x, array[ids])
    assert same(y, np.array(ids))
    assert same(served(path, [3])[0], array[[3]])


@pytest.mark.parametrize("dtype", [">i4", ">f8", ">c8", ">u2"])
def test_big_endian_is_delivered_in_the_machines_order(tmp_path, dtype):
    """A tensor cannot have another byte order."""
    array = np.arange(12).reshape(4, 3).astype(dtype)
    path = saved(tmp_path / "x.npy", array)
    native = array.astype(array.dtype.newbyteorder("="))
    labels = saved(tmp_path / "y.npy", array[:, 0])
    x, y = served(path, [2, 1, 0], labels=labels)
    assert same(x, native[[2, 1, 0]])
    assert same(y, native[[2, 1, 0], 0])
    x, y = served(path, [2], labels=labels)
    assert same(x, native[[2]])
    assert same(y, native[[2], 0])


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_all_header_versions_are_read(tmp_path, version):
    """What old and new numpy write."""
    array = some((4, 3), "int16")
    with open(tmp_path / "x.npy", "wb") as file:
        np.lib.format.write_array(file, array, version)
    assert same(served(tmp_path / "x.npy")[0], array)


@pytest.mark.parametrize("name", ["with spaces.npy", os.fsdecode(b"bytes \xff.npy"), "UPPER.NPY", "new\nline.npy"])
def test_any_path_will_do(tmp_path, name):
    """Spaces, other encodings, capitals."""
    array = some((3, 2), "uint8")
    path = os.path.join(tmp_path, name)
    with open(path, "wb") as file:
        np.save(file, array)
    assert same(served(path)[0], array)


def test_one_row_is_enough(tmp_path):
    assert same(served(saved(tmp_path / "x.npy", np.array([[7, 8]])))[0], np.array([[7, 8]]))


def test_labels_have_a_dtype_and_a_shape_of_their_own(tmp_path):
    x, y = some((6, 2), "float32"), some((6, 3, 2), "uint8")
    found = served(saved(tmp_path / "x.npy", x), labels=saved(tmp_path / "y.npy", y))
    assert same(found[0], x)
    assert same(found[1], y)


# --- .npz and shards


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (("x", "y"), {}),
        (("arr_0", "arr_1"), {}),
        (("x_train", "y_train", "x"), {"x_column": "x_train", "y_column": "y_train"}),
    ],
)
def test_npz_is_read_in_place(tmp_path, names, options):
    """Members are found by their usual names, or by those that are given; they begin at any byte."""
    arrays = dict(zip(names, (some((5, 3), "float64"), some((5,), "int16"), some((1,), "uint8")), strict=False))
    np.savez(tmp_path / "d.npz", odd=some((3,), "uint8"), **arrays)
    x, y = served(tmp_path / "d.npz", [4, 0, 2], **options)
    assert same(x, arrays[names[0]][[4, 0, 2]])
    assert same(y, arrays[names[1]][[4, 0, 2]])


def test_npz_of_one_array_has_no_labels_unless_given(tmp_path):
    array = some((4, 2), "int32")
    np.savez(tmp_path / "d.npz", tokens=array)
    assert same(served(tmp_path / "d.npz")[1], np.arange(4))
    assert same(served(tmp_path / "d.npz", labels=saved(tmp_path / "y.npy", array))[1], array)


@pytest.mark.parametrize("row_items", [3, 200_000])
def test_shards_are_one_array_end_to_end(tmp_path, row_items):
    """Also empty ones, small rows by way of a copy and large ones without."""
    whole = np.arange(9 * row_items, dtype=np.int64).reshape(9, row_items)
    x = shards(tmp_path / "x", whole[:4], whole[:0], whole[4:5], whole[5:])
    y = shards(tmp_path / "y", np.arange(4), np.arange(4, 9))
    for ids in ([8, 0, 4, 3, 5, 0], [5, 7], [4], [0, 1, 2, 3, 4, 5, 6, 7, 8]):
        found = served(x, ids, labels=y)
        assert same(found[0], whole[ids])
        assert same(found[1], np.array(ids))
    assert opens(make_config(source=x)).where(5) == f"{x}/003.npy row 0"


def test_directory_with_images_or_folders_is_no_array(tmp_path):
    """A stray .npy among class folders does not turn a data set of images into one of arrays."""
    folder = shards(tmp_path / "x", some((2, 2), "uint8"))
    (folder / "cat").mkdir()
    with pytest.raises(ManifestError, match="image"):
        open_source(make_config(source=folder))


# --- identity


def test_digest_follows_the_content_and_not_the_place(tmp_path):
    """So that resuming refuses other data, and takes a copy of the same."""
    array = some((500, 100), "int32")
    other = array.copy()
    other[-1, -1] += 1
    paths = [saved(tmp_path / f"{n}.npy", a) for n, a in enumerate((array, array, other, array[:-1]))]
    digests = [opens(make_config(source=path)).facts.digest for path in paths]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    labelled = [opens(make_config(source=paths[0], labels=path)).facts.digest for path in paths[:3]]
    assert labelled[0] == labelled[1] != labelled[2]
    assert labelled[0] not in digests


def change(path: Path, how: str) -> None:
    if how == "truncated":
        os.truncate(path, path.stat().st_size - 4096)
    elif how == "written to":
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x01")
        os.utime(path, ns=(1, 1))
    elif how == "replaced":
        other = path.with_suffix(".new")
        other.write_bytes(path.read_bytes())
        other.replace(path)
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["truncated", "written to", "replaced", "removed"])
@pytest.mark.parametrize("ids", [[0, 1, 2], [1]])
def test_change_of_the_file_ends_the_reading(tmp_path, how, ids):
    """In the daemon and in a reader that has it mapped already, together and alone: never other data, never zeros."""
    path = saved(tmp_path / "x.npy", some((5000, 10), "int32"))
    config = make_config(source=path)
    opened, reader = attached(config)
    layout = BatchLayout(3, opened.facts.fields)
    x, y = layout.arrays(np.zeros(layout.slot_bytes, np.uint8), 3)
    rows = range(len(ids))
    assert reader.fill(0, ids, rows, (x, y), lambda _: None) == []
    reader.confirm()
    opened.check_unchanged()
    change(path, how)
    with pytest.raises(ManifestError, match="cannot go on with"):
        opened.check_unchanged()
    with pytest.raises(ManifestError, match=r"written to, or replaced.*; start again"):
        reader.fill(0, ids, rows, (x, y), lambda _: None)
    handle, fds = opened.handle()
    with pytest.raises(ManifestError, match="cannot"):
        attach_source(config, handle, fds)  # which fails before it owns them


def test_truncation_within_a_gather_kills_the_reader_and_a_row_alone_is_an_error(tmp_path, monkeypatch):
    """Past the look at the file's size a map is a SIGBUS; the row alone, done again, makes no use of the map."""
    path = saved(tmp_path / "x.npy", some((50000, 10), "int32"))
    reader = attached(make_config(source=path))[1]
    y = np.zeros(2, np.int64)
    prepare, preadv = mapped_rows.MappedRows.prepare, os.preadv

    def truncate_after_prepare(self: mapped_rows.MappedRows, firsts: Any, counts: Any = None) -> None:
        prepare(self, firsts, counts)
        os.truncate(path, 4096)

    def truncate_before_preadv(*arguments: Any) -> int:
        os.truncate(path, 4096)
        return preadv(*arguments)

    monkeypatch.setattr(mapped_rows.MappedRows, "prepare", truncate_after_prepare)
    if (pid := os.fork()) == 0:
        faulthandler.disable()
        reader.fill(0, [49000, 49001], range(2), (np.zeros((2, 10), np.int32), y), lambda _: None)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGBUS

    path = saved(tmp_path / "again.npy", some((50000, 10), "int32"))
    reader = attached(make_config(source=path))[1]
    monkeypatch.setattr(mapped_rows.os, "preadv", truncate_before_preadv)
    with pytest.raises(ManifestError, match="from 2000128 to 4096 bytes"):
        reader.fill(0, [49000], range(1), (np.zeros((2, 10), np.int32), y), lambda _: None)


def test_data_read_while_the_file_shrinks_is_not_delivered(tmp_path, monkeypatch):
    """Within its last page a shrunk file reads as zeros without a fault: the second look finds that out."""
    path = saved(tmp_path / "x.npy", np.ones((100, 2), np.uint8))
    opened, reader = attached(make_config(source=path))
    layout = BatchLayout(2, opened.facts.fields)
    x, y = layout.arrays(np.zeros(layout.slot_bytes, np.uint8), 2)
    prepare = mapped_rows.MappedRows.prepare

    def truncate_after(self: mapped_rows.MappedRows, firsts: Any, counts: Any = None) -> None:
        prepare(self, firsts, counts)
        os.truncate(path, 200)

    monkeypatch.setattr(mapped_rows.MappedRows, "prepare", truncate_after)
    reader.fill(0, [98, 99], range(2), (x, y), lambda _: None)
    with pytest.raises(ManifestError, match="from 328 to 200 bytes"):
        reader.confirm()


@pytest.mark.parametrize("from_disk", [True, False])
def test_rows_that_come_slowly_from_a_disk_are_asked_for_beforehand(tmp_path, monkeypatch, from_disk):
    """Together is much faster than one after another, unless it was another process that made them slow; what is
    delivered is the same."""
    asked: list[tuple[int, int]] = []
    faults = itertools.count() if from_disk else itertools.repeat(0)
    monkeypatch.setattr(mapped_rows.resource, "getrusage", lambda _: SimpleNamespace(ru_majflt=next(faults)))
    monkeypatch.setattr(mapped_rows.os, "posix_fadvise", lambda fd, start, n, _: asked.append((start, n)))
    monkeypatch.setattr(mapped_rows, "_SLOW_ROW_S", -1.0)
    array = some((100, 5), "int32")
    path = saved(tmp_path / "x.npy", array)
    opened, reader = attached(make_config(source=path))
    layout = BatchLayout(2, opened.facts.fields)
    x, y = layout.arrays(np.zeros(layout.slot_bytes, np.uint8), 2)
    for _ in range(2):
        reader.fill(0, [98, 3], range(2), (x, y), lambda _: None)
    assert asked == ([(128 + 98 * 20, 20), (128 + 3 * 20, 20)] if from_disk else [])
    assert same(x, array[[98, 3]])
