"""Arrays as a source: what is served as it is, what is refused with how to convert it, and what no map may hide."""

from __future__ import annotations

import faulthandler
import gc
import itertools
import os
import signal
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from prefetchd.config.options import OPTIONS
from prefetchd.config.validate import make_config
from prefetchd.data.arrays import mapped_rows
from prefetchd.data.kinds import (
    ARRAY_OPTIONS,
    COLUMN_OPTIONS,
    IMAGE_OPTIONS,
    LIST_OPTIONS,
    SEQUENCE_OPTIONS,
)
from prefetchd.data.registry import Source, attach_source, open_source
from prefetchd.errors import ConfigError, ManifestError
from prefetchd.ring.layout import DTYPES, BatchLayout

_open_sources: list[Any] = []


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    """Whatever was refused or has failed: `close` gives all back."""
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    while _open_sources:
        _open_sources.pop().close()
    gc.collect()
    assert sorted(os.listdir("/proc/self/fd")) == before


RNG = np.random.default_rng(7)


def attached(config: Any) -> tuple[Source, Source]:
    """Return the source as the daemon has it and as a reader has it."""
    opened = opens(config)
    handle, fds = opened.handle()
    reader = attach_source(config, handle, [os.dup(fd) for fd in fds])
    _open_sources.append(reader)
    return opened, reader


def opens(config: Any) -> Source:
    """Open a source, to be closed after the test."""
    source = open_source(config)
    _open_sources.append(source)
    return source


def served(source: object, ids: list[int] | None = None, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of the samples `ids` (all of them) as a reader fills them into a slot."""
    opened, reader = attached(make_config(source=source, **options))
    ids = list(range(opened.facts.n_samples)) if ids is None else ids
    layout = BatchLayout(len(ids) + 2, opened.facts.fields)
    root = np.full(layout.slot_bytes, 0xAA, np.uint8)
    x, y = layout.arrays(root, len(ids) + 2)
    assert reader.fill(0, ids, range(1, 1 + len(ids)), (x, y), lambda _: None) == []
    untouched = np.full(1, 0xAA, np.uint8)
    for array in (x, y):
        for row in (array[:1], array[-1:]):
            assert (np.ascontiguousarray(row).reshape(-1).view(np.uint8) == untouched).all()
    return x[1:-1], y[1:-1]


def saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def some(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return RNG.integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8).view(dtype).reshape(shape)


def same(left: np.ndarray, right: np.ndarray) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


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


def shards(folder: Path, *arrays: np.ndarray) -> Path:
    folder.mkdir()
    for number, array in enumerate(arrays):
        np.save(folder / f"{number:03d}.npy", array)
    return folder


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


# --- what is refused, and how to convert it


def structured() -> np.ndarray:
    return np.zeros(3, [("a", "i4"), ("b", "f4")])


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array([[1], [2, 3]], object), r"Python objects.*never loaded.*np\.stack"),
        (structured(), r"named fields \(a, b\).*array\['a'\]"),
        (np.array(["a", "bc"]), r"cannot hold str.*astype"),
        (np.array([1, 2], "M8[s]"), r"cannot hold datetime64\[s\]"),
        (np.asfortranarray(np.ones((3, 2))), "Fortran order.*ascontiguousarray"),
        (np.array(3.0), "no rows"),
        (np.ones((0, 3)), "no samples"),
    ],
)
def test_what_cannot_be_served_is_refused_with_how_to_convert_it(tmp_path, array, words):
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(ManifestError, match=words) as caught:
        open_source(make_config(source=tmp_path / "x.npy"))
    assert "\n" not in str(caught.value)


def test_pickle_is_not_loaded(tmp_path):
    """The header is enough to refuse it."""

    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "boom"),)

    np.save(tmp_path / "x.npy", np.array([Bomb()], object), allow_pickle=True)
    with pytest.raises(ManifestError, match="Python objects"):
        open_source(make_config(source=tmp_path / "x.npy"))
    assert not (tmp_path / "boom").exists()


def damaged(kind: str, whole: bytes) -> bytes:
    return {
        "cut short": whole[:-1],
        "in its header": whole[:20],
        "empty": b"",
        "no magic": b"x" * 200,
        "version 9": whole[:6] + b"\x09" + whole[7:],
        "huge": whole.replace(b"(10, 3)", b"(9999999999999, 3)".ljust(7)),
        "negative": whole.replace(b"(10, 3), ", b"(-10, 3),"),
        "no dictionary": whole.replace(b"{", b"["),
        "huge and empty": whole.replace(b"(10, 3), }" + b" " * 22, b"(10, 0, 4611686018427387904), }".ljust(32)),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "cut short", "in its header", "empty", "no magic", "version 9", "huge", "negative", "no dictionary",
        "huge and empty",
    ],
)  # fmt: skip
def test_damaged_file_is_refused_at_start(tmp_path, kind):
    """In one line, before memory is taken for what the header claims."""
    path = saved(tmp_path / "x.npy", some((10, 3), "int32"))
    path.write_bytes(damaged(kind, path.read_bytes()))
    with pytest.raises(ManifestError, match=r"cannot (read|serve) .*x\.npy.*;") as caught:
        open_source(make_config(source=path))
    assert "\n" not in str(caught.value)


def test_missing_file_and_what_is_no_file_are_refused(tmp_path):
    with pytest.raises(ManifestError, match="No such file"):
        open_source(make_config(source=tmp_path / "x.npy"))
    os.mkfifo(tmp_path / "f.npy")
    with pytest.raises(ManifestError, match="it is a FIFO"):
        open_source(make_config(source=tmp_path / "f.npy"))


def test_labels_of_another_length_are_refused(tmp_path):
    x, y = saved(tmp_path / "x.npy", some((6, 2), "int32")), saved(tmp_path / "y.npy", np.arange(5))
    with pytest.raises(ManifestError, match=r"has 6 samples and .* has 5 labels"):
        open_source(make_config(source=x, labels=y))


def test_odd_shard_is_named(tmp_path):
    for number, odd in enumerate((some((2, 3), "int64"), some((2, 4), "int32"), some((2, 3), ">i4"))):
        folder = shards(tmp_path / str(number), some((2, 3), "int32"), odd)
        with pytest.raises(ManifestError, match=r"001\.npy has rows of .* shards must agree"):
            open_source(make_config(source=folder))


def test_npz_that_cannot_be_read_in_place_is_refused(tmp_path):
    """Compressed members, members that are not there, archives that are none."""
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=np.arange(9))
    with pytest.raises(ManifestError, match=r"compressed.*np\.savez"):
        open_source(make_config(source=path))
    np.savez(path, a=np.arange(9), b=np.arange(9))
    with pytest.raises(ManifestError, match=r"it holds a, b.*x_column"):
        open_source(make_config(source=path))
    with pytest.raises(ManifestError, match=r"cannot find c in .*it holds a, b"):
        open_source(make_config(source=path, x_column="a", y_column="c"))
    with pytest.raises(ConfigError, match="give one of them"):
        open_source(make_config(source=path, x_column="a", y_column="b", labels=tmp_path / "y.npy"))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ManifestError, match="not a zip file"):
        open_source(make_config(source=path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(ManifestError, match=r"no \.npy member"):
        open_source(make_config(source=path))


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": 32},
        {"dtype": "float32"},
        {"color": "gray"},
        {"root": "/"},
        {"padding": "post"},
        {"x_column": "a"},
    ],
)
def test_option_that_means_nothing_for_arrays_is_refused(tmp_path, options):
    path = saved(tmp_path / "x.npy", some((6, 2), "int32"))
    with pytest.raises(ConfigError, match=r"concerns .* only; leave it out"):
        open_source(make_config(source=path, **options))


@pytest.mark.parametrize("options", [{"labels": "y.npy"}, {"max_length": 3}, {"lengths": "x"}])
def test_option_of_arrays_is_refused_for_images(tmp_path, options):
    (tmp_path / "train.txt").write_text("a.jpg 1\n")
    with pytest.raises(ConfigError, match=r"concerns .* only; leave it out"):
        open_source(make_config(source=tmp_path / "train.txt", **options))


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


def test_every_option_that_a_source_refuses_exists():
    for names in (IMAGE_OPTIONS, LIST_OPTIONS, COLUMN_OPTIONS, ARRAY_OPTIONS, SEQUENCE_OPTIONS):
        assert set(names) <= set(OPTIONS)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_damaged_headers_are_refused_in_one_line(tmp_path: Path, suffix: str) -> None:
    """Any byte of them: none is a traceback, and none is read beyond the file."""
    path = tmp_path / f"x{suffix}"
    array = np.arange(6, dtype=np.int32).reshape(3, 2)
    np.save(path, array) if suffix == ".npy" else np.savez(path, x=array)
    whole = path.read_bytes()
    n_refused = 0
    for place in range(len(whole)):
        for mask in (0x01, 0x80, 0xFF):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
            try:
                open_source(make_config(source=str(path))).close()
            except (ConfigError, ManifestError) as error:
                n_refused += 1
                message = str(error)
                assert message.startswith("cannot "), message
                assert "\n" not in message
                assert len(message) < 2000
    assert n_refused > 100


def test_offsets_and_sizes_beyond_any_file_are_refused(tmp_path: Path) -> None:
    """A member that starts at 2^64 - 1, and a side of thousands of digits."""
    path = tmp_path / "x.npz"
    np.savez(path, x=np.arange(6))
    whole = path.read_bytes()
    entry = whole.index(b"PK\x01\x02")
    name_bytes, extra_bytes = struct.unpack_from("<HH", whole, entry + 28)
    extra = struct.pack("<HHQ", 1, 8, (1 << 64) - 1)  # zip64: where the member starts
    changed = bytearray(whole[: entry + 46 + name_bytes])
    struct.pack_into("<H", changed, entry + 30, len(extra))
    struct.pack_into("<I", changed, entry + 42, 0xFFFFFFFF)
    end = bytearray(whole[whole.index(b"PK\x05\x06") :])
    struct.pack_into("<I", end, 12, struct.unpack_from("<I", end, 12)[0] + len(extra) - extra_bytes)
    path.write_bytes(changed + extra + end)
    with pytest.raises(ManifestError, match="the archive is damaged there"):
        open_source(make_config(source=str(path)))
    header = b"{'descr': '<i4', 'fortran_order': False, 'shape': (" + b"9" * 4000 + b",), }\n"
    npy = tmp_path / "x.npy"
    npy.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    with pytest.raises(ManifestError, match="shape is damaged"):
        open_source(make_config(source=str(npy)))
