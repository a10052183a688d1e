"""Labels and hashed paths of whole lists: the same as line by line, however a line is written."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefetchd.config.validate import make_config
from prefetchd.data.manifest import values
from prefetchd.data.manifest.line import parse_line
from prefetchd.data.manifest.records import Manifest
from prefetchd.sampling.hashes import hash_keys, hash_spans

PATHS = st.sampled_from(
    ["a.jpg", "b/c d.jpg", "e  f.jpg", "7.jpg", "1", "x 7.png", "ü/é.jpg", "-3.jpg", "minus -", "long" * 30 + ".jpg"]
)
LABELS = st.integers(-(2**63), 2**63 - 1) | st.integers(-20, 20)


@st.composite
def lines(draw: st.DrawFn) -> str:
    path, label = draw(PATHS), draw(LABELS)
    gap, end = draw(st.sampled_from([" ", "\t", "   ", " \t "])), draw(st.sampled_from(["", "", " ", "\r"]))
    quoted = f'"{path}"' if draw(st.booleans()) else path
    comment = draw(st.sampled_from(["", "", "", "# a comment 3\n", "\n"]))
    return f"{comment}{quoted}{gap}{draw(st.sampled_from(['', '', '+'])) if label >= 0 else ''}{label}{end}"


def slowly(manifest: Manifest) -> tuple[list[object], list[int]]:
    """Return the labels and the hashes of the paths, taken line by line."""
    labels = [sample.label for sample in manifest.samples(range(len(manifest)))]
    keys = [parse_line(manifest._dialect, raw)[0] for raw in manifest._lines()]
    return labels, [int(hash_spans(key, np.array([0]), np.array([len(key)]))[0]) for key in keys]


@given(text=st.lists(lines(), min_size=1, max_size=30), last=st.sampled_from(["\n", ""]), block=st.integers(1, 400))
@settings(max_examples=150)
def test_a_list_is_taken_apart_as_line_by_line(tmp_path_factory, text, last, block):
    path = tmp_path_factory.getbasetemp() / "list.txt"
    path.write_text("\n".join(text) + last, newline="")
    with (
        pytest.MonkeyPatch.context() as patch,
        Manifest.open(make_config(source=str(path), label_columns=1)) as manifest,
    ):
        patch.setattr(values, "_BLOCK_BYTES", block)
        labels, hashes = slowly(manifest)
        found = manifest.label_values()
        assert found is not None
        assert found.tolist() == labels
        assert np.concatenate(list(manifest.path_hashes())).tolist() == hashes


@pytest.mark.parametrize("written", ["a.jpg cat\nb.jpg dog\n", "a.jpg 1.5\nb.jpg 2\n", "a.jpg 1 2\nb.jpg 3 4\n"])
def test_other_labels_are_taken_line_by_line(tmp_path: Path, written: str):
    (tmp_path / "list.txt").write_text(written)
    with Manifest.open(make_config(source=str(tmp_path / "list.txt"))) as manifest:
        labels, hashes = slowly(manifest)
        found = manifest.label_values()
        assert found is not None
        assert [tuple(label) if isinstance(label, list) else label for label in found.tolist()] == labels
        assert np.concatenate(list(manifest.path_hashes())).tolist() == hashes


def test_a_directory_is_taken_apart_as_line_by_line(tmp_path: Path):
    for name in ("a/1.jpg", "a/back\\slash.jpg", "b b/tab\t.jpg", "b b/new\nline.jpg", "c/7 8.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with Manifest.open(make_config(source=str(tmp_path))) as manifest:
        labels, hashes = slowly(manifest)
        found = manifest.label_values()
        assert found is not None
        assert found.tolist() == labels == [0, 0, 1, 1, 2]
        assert np.concatenate(list(manifest.path_hashes())).tolist() == hashes


@given(st.lists(st.binary(max_size=40), max_size=60, unique=True))
def test_distinct_keys_have_distinct_hashes_wherever_they_lie(keys):
    found = [int(h) for part in hash_keys(keys) for h in part]
    alone = [int(next(hash_keys([key]))[0]) for key in keys]
    assert found == alone
    assert len(set(found)) == len(keys)


def test_hashes_are_those_of_earlier_versions():
    """A split by them must not change."""
    found = np.concatenate(list(hash_keys([b"", b"a", b"train/x.jpg", b"\0"])))
    assert found.tolist() == [0, 17508005127702757215, 2389839433928627429, 6238072747940578789]
    long = [b"x" * 70_000, b"y" * 65_536, b"z"]  # over several pieces that are hashed one after another
    keys = [f"train/{i:06}.jpg".encode() * (i % 7) for i in range(5000)] + long
    found = np.concatenate(list(hash_keys(keys)))
    assert blake2b(found.astype("<u8").tobytes(), digest_size=8).hexdigest() == "b1743eea05375542"


def test_bits_of_hashes_are_even():
    names = [f"train/n{i % 100:04}/img_{i:08}.jpg".encode() for i in range(50_000)]
    found = np.concatenate(list(hash_keys(names)))
    ones = np.array([int(((found >> np.uint64(bit)) & np.uint64(1)).sum()) for bit in range(64)])
    assert abs(ones - 25_000).max() < 5 * (50_000 / 4) ** 0.5
    counts = np.bincount((found >> np.uint64(54)).astype(int), minlength=1024)
    statistic = float(((counts - 50_000 / 1024) ** 2 / (50_000 / 1024)).sum())
    assert abs(statistic - 1023) < 5 * (2 * 1023) ** 0.5
