"""Arrays that are refused at the start: of other kinds, damaged, of other lengths, with options that mean nothing."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefetchd.config.options import OPTIONS
from prefetchd.config.validate import make_config
from prefetchd.data.kinds import (
    ARRAY_OPTIONS,
    COLUMN_OPTIONS,
    IMAGE_OPTIONS,
    LIST_OPTIONS,
    SEQUENCE_OPTIONS,
)
from prefetchd.data.registry import open_source
from prefetchd.errors import ConfigError, ManifestError
from tests.array_sources import no_descriptor_is_left, saved, shards, some  # noqa: F401


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
