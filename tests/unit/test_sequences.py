"""Ragged sequences: cut and padded as Keras' `pad_sequences` does, with lengths where they are asked for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefetchd.config.validate import make_config
from prefetchd.data.registry import open_source
from prefetchd.errors import ConfigError, ManifestError
from prefetchd.ring.layout import BatchLayout
from tests.array_sources import attached, no_descriptor_is_left, same, saved, served  # noqa: F401

ENDS = ("pre", "post")


def reference(sequences: Sequence[np.ndarray], length: int, padding: str, truncating: str, value: float) -> np.ndarray:
    """What `pad_sequences` is documented to do, one sequence after another."""
    first = sequences[0]
    out = np.full((len(sequences), length, *first.shape[1:]), value, first.dtype)
    for row, sequence in zip(out, sequences, strict=True):
        kept = sequence[-length:] if truncating == "pre" else sequence[:length]
        if len(kept):
            if padding == "pre":
                row[-len(kept) :] = kept
            else:
                row[: len(kept)] = kept
    return out


def ragged(
    folder: Path, lengths: Sequence[int], dtype: str = "int32", feature: tuple[int, ...] = (), before: int = 0
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Save sequences of these lengths, the first after `before` other tokens; return them and the options."""
    rng = np.random.default_rng(sum(lengths))
    tokens = rng.integers(1, 100, (before + sum(lengths) + 3, *feature)).astype(dtype)
    offsets = before + np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    sequences = [tokens[start:end] for start, end in itertools.pairwise(offsets)]
    options = {
        "source": saved(folder / "tokens.npy", tokens),
        "offsets": saved(folder / "offsets.npy", offsets),
    }
    return [sequence.astype(sequence.dtype.newbyteorder("=")) for sequence in sequences], options


def drawn(n: int, longest: int) -> list[int]:
    """Lengths with 0, the exact one and longer ones among them."""
    return [0, 0, 1, longest, 8, 7, 9, *np.random.default_rng(n).integers(0, longest, n).tolist(), 0]


@pytest.mark.parametrize("padding", ENDS)
@pytest.mark.parametrize("truncating", ENDS)
@pytest.mark.parametrize(
    ("max_length", "dtype", "feature", "value"),
    [(8, "int32", (), 0), (8, ">i2", (), -7), (5, "float32", (3,), 0.5), (150, "uint8", (), 3), (140, ">f8", (2,), 1)],
)
def test_sequences_are_padded_and_truncated(tmp_path, padding, truncating, max_length, dtype, feature, value):
    """Short rows and long ones, numbers and frames of features; together and alone."""
    sequences, options = ragged(tmp_path, drawn(60, 2 * max_length), dtype, feature, before=5)
    ids = [4, 0, len(sequences) - 1, *range(len(sequences))]
    more = {"max_length": max_length, "padding": padding, "truncating": truncating, "pad_value": value}
    wanted = reference([sequences[i] for i in ids], max_length, padding, truncating, value)
    x, y = served(options.pop("source"), ids, **options, **more)
    assert same(x, wanted)
    assert same(y, np.array(ids))
    for row in (0, 1, 3, 6):
        assert same(served(tmp_path / "tokens.npy", [ids[row]], **options, **more)[0], wanted[row : row + 1])


def test_defaults_are_those_of_keras(tmp_path):
    """As long as the longest, zeros in front."""
    tokens, offsets = saved(tmp_path / "t.npy", np.arange(1, 7)), saved(tmp_path / "o.npy", np.array([0, 3, 4, 6]))
    x, _ = served(tokens, offsets=offsets)
    assert x.tolist() == [[1, 2, 3], [0, 0, 4], [0, 5, 6]]


def test_no_tokens_at_all_are_all_padding(tmp_path):
    tokens, offsets = saved(tmp_path / "t.npy", np.zeros(0, "i4")), saved(tmp_path / "o.npy", np.zeros(4, "i8"))
    assert served(tokens, offsets=offsets, max_length=2, pad_value=9)[0].tolist() == [[9, 9]] * 3
    assert served(tokens, [1], offsets=offsets, max_length=2, pad_value=9)[0].tolist() == [[9, 9]]


@pytest.mark.parametrize("dtype", ["uint32", ">i8", "int16"])
def test_offsets_may_be_of_any_whole_dtype(tmp_path, dtype):
    tokens = saved(tmp_path / "t.npy", np.arange(6))
    offsets = saved(tmp_path / "o.npy", np.array([0, 3, 6], dtype))
    assert served(tokens, offsets=offsets)[0].tolist() == [[0, 1, 2], [3, 4, 5]]


# --- lengths


@pytest.mark.parametrize("ids", [[0, 1, 2, 3], [2]])
def test_lengths_in_x_are_its_first_column(tmp_path, ids):
    """The number of tokens that are there, after truncation."""
    sequences, options = ragged(tmp_path, [2, 0, 5, 3], "int16")
    wanted = reference([sequences[i] for i in ids], 3, "pre", "pre", 0)
    x, y = served(options.pop("source"), ids, **options, max_length=3, lengths="x")
    assert x.shape == (len(ids), 4)
    assert x.dtype == np.int16
    np.testing.assert_array_equal(x[:, 0], np.array([2, 0, 3, 3])[ids])
    np.testing.assert_array_equal(x[:, 1:], wanted)
    np.testing.assert_array_equal(y, ids)


@pytest.mark.parametrize("ids", [[0, 1, 2, 3], [2]])
@pytest.mark.parametrize(
    ("labels", "dtype"),
    [
        (None, "int64"),
        (np.array([9, 8, 7, 6], "uint8"), "int64"),
        (np.array([0.5, 1, 2, 3], "float32"), "float32"),
        (np.arange(8.0).reshape(4, 2), "float64"),
    ],
)
def test_lengths_in_y_are_its_last_column(tmp_path, ids, labels, dtype):
    """Behind the label or labels, or the sample's number."""
    _, options = ragged(tmp_path, [2, 0, 5, 3])
    if labels is not None:
        options["labels"] = saved(tmp_path / "y.npy", labels)
    x, y = served(options.pop("source"), ids, **options, max_length=3, lengths="y")
    assert x.shape == (len(ids), 3)
    first = np.arange(4) if labels is None else labels
    assert same(y, np.column_stack((first, [2, 0, 3, 3])).astype(dtype)[ids])


@pytest.mark.parametrize(
    ("dtype", "labels", "options", "words"),
    [
        ("uint8", None, {"lengths": "x", "max_length": 300}, "larger dtype"),
        ("float16", None, {"lengths": "x", "max_length": 3000}, "larger dtype"),
        ("int32", np.zeros((2, 3, 4)), {"lengths": "y"}, "takes no length beside it"),
        ("int32", np.zeros(2, "c8"), {"lengths": "y"}, "takes no length beside it"),
        ("uint8", None, {"pad_value": -1}, "pad_value=-1: it is uint8"),
        ("int32", None, {"pad_value": 0.5}, "pad_value=0.5: it is int32"),
        ("int32", None, {"max_length": 0}, "from 1 to"),
        ("int32", None, {"padding": "both"}, "one of pre, post"),
        ("int32", None, {"x_column": "a"}, "leave it out"),
    ],
)
def test_options_that_cannot_be_met_are_refused(tmp_path, dtype, labels, options, words):
    _, given = ragged(tmp_path, [2, 1], dtype)
    if labels is not None:
        given["labels"] = saved(tmp_path / "y.npy", labels)
    with pytest.raises(ConfigError, match=words) as caught:
        open_source(make_config(**given, **options))
    assert "\n" not in str(caught.value)


# --- offsets that are wrong


@pytest.mark.parametrize(
    ("offsets", "words"),
    [
        (np.array([0, 2, 1, 4]), r"offsets\[2\] = 1 is less than"),
        (np.array([0, 2, 7]), r"offsets\[2\] is 7, and .* has 6 tokens"),
        (np.array([-1, 2, 3]), r"offsets\[0\] is -1"),
        (np.array([0, 2**63 + 1], "u8"), r"offsets\[1\] is 9223372036854775809"),
        (np.array([0.0, 2.0]), "whole numbers in one dimension"),
        (np.array([[0, 2]]), "whole numbers in one dimension"),
        (np.array([0]), "no samples"),
        (np.array([], "i8"), "no samples"),
    ],
)
def test_wrong_offsets_are_refused_at_start(tmp_path, offsets, words, monkeypatch):
    """Wherever in the file they are: it is read in blocks."""
    from prefetchd.data.arrays import sequences

    for block_bytes in (8, 16, 1 << 20):
        monkeypatch.setattr(sequences, "_BLOCK_BYTES", block_bytes)
        path = saved(tmp_path / "o.npy", offsets)
        with pytest.raises(ManifestError, match=words) as caught:
            open_source(make_config(source=saved(tmp_path / "t.npy", np.arange(6)), offsets=path))
        assert "\n" not in str(caught.value)


def test_tokens_must_be_one_file(tmp_path):
    _, options = ragged(tmp_path, [2, 1])
    with pytest.raises(ManifestError, match=r"must be one array; give a \.npy file"):
        open_source(make_config(source=tmp_path, offsets=options["offsets"]))


@pytest.mark.parametrize("which", ["tokens.npy", "offsets.npy", "y.npy"])
@pytest.mark.parametrize("ids", [[0, 1], [1]])
def test_change_of_any_of_the_files_ends_the_reading(tmp_path, which, ids):
    _, options = ragged(tmp_path, [2, 0, 5, 3])
    config = make_config(**options, labels=saved(tmp_path / "y.npy", np.arange(4)))
    opened, reader = attached(config)
    layout = BatchLayout(2, opened.facts.fields)
    x, y = layout.arrays(np.zeros(layout.slot_bytes, np.uint8), 2)
    assert reader.fill(0, ids, range(len(ids)), (x, y), lambda _: None) == []
    reader.confirm()
    path = tmp_path / which
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ManifestError, match=which):
        opened.check_unchanged()
    with pytest.raises(ManifestError, match=which):
        reader.fill(0, ids, range(len(ids)), (x, y), lambda _: None)
