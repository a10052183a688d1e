"""Packed sequences: the tokens of a plain reference in every epoch, refusals in words, and what the plan costs."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefetchd.config.validate import make_config
from prefetchd.data.arrays import packed_rows
from prefetchd.data.arrays.packed import PackedSource
from prefetchd.errors import ConfigError, ManifestError
from prefetchd.ring.layout import BatchLayout
from prefetchd.sampling.first_fit import bins_from_wire, class_sizes, first_fit, length_classes
from prefetchd.sampling.packing import block_documents, dealt, permuted
from tests.array_sources import attached, no_descriptor_is_left, saved  # noqa: F401
from tests.unit.test_sequences import ragged

PAD = 99


def rows_of(
    options: dict[str, Any], epoch: int = 0, ids: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return tokens, documents and positions of rows of an epoch, as a reader fills them."""
    opened, reader = attached(make_config(**options))
    assert [each.name for each in opened.facts.fields] == ["tokens", "document_ids", "positions"]
    wanted = range(opened.facts.n_samples) if ids is None else ids
    layout = BatchLayout(len(wanted) + 2, opened.facts.fields)
    root = np.full(layout.slot_bytes, 0xAA, np.uint8)
    arrays = layout.arrays(root, len(wanted) + 2)
    rows = range(1, 1 + len(wanted))
    assert reader.fill(epoch, np.array(wanted), rows, arrays, lambda _: None) == []
    for array in arrays:
        for row in (array[:1], array[-1:]):
            assert (np.ascontiguousarray(row).reshape(-1).view(np.uint8) == 0xAA).all()
    tokens, documents, positions = (array[1:-1] for array in arrays)
    return tokens, documents, positions


def concatenated(sequences: Sequence[np.ndarray], order: Sequence[int], length: int) -> tuple[np.ndarray, ...]:
    """Pack documents as plain code does: end to end, cut into rows, the last one padded."""
    stream = [(token, number) for number in order for token in sequences[number]]
    rows = [stream[first : first + length] for first in range(0, len(stream), length)]
    return laid([[part] for part in rows], sequences[0], length)


def laid(rows: Sequence[Sequence[Sequence[Any]]], like: np.ndarray, length: int) -> tuple[np.ndarray, ...]:
    """Return rows of (token, document) pairs as arrays; positions begin anew wherever the document changes."""
    tokens = np.full((len(rows), length, *like.shape[1:]), PAD, like.dtype)
    documents = np.full((len(rows), length), -1, np.int32)
    positions = np.zeros((len(rows), length), np.int32)
    for row, parts in enumerate(rows):
        for at, (token, number) in enumerate(pair for part in parts for pair in part):
            tokens[row, at], documents[row, at] = token, number
            follows = at > 0 and documents[row, at - 1] == number
            positions[row, at] = positions[row, at - 1] + 1 if follows else 0
    return tokens, documents, positions


def fitted(sequences: Sequence[np.ndarray], length: int) -> list[list[int]]:
    """Return the bins of plain first-fit decreasing, of documents that are no longer than a row, by number."""
    bins: list[list[int]] = []
    space: list[int] = []
    for number in sorted(range(len(sequences)), key=lambda number: -len(sequences[number])):
        size = len(sequences[number])
        place = next((place for place, left in enumerate(space) if left >= size), len(bins))
        if place == len(bins):
            bins.append([])
            space.append(length)
        bins[place].append(number)
        space[place] -= size
    return bins


def packed(folder: Path, lengths: Sequence[int], **options: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Save documents of these lengths; return them, and the options that pack them."""
    names = {name: options.pop(name) for name in ("dtype", "feature", "before") if name in options}
    sequences, files = ragged(folder, lengths, **names)
    return sequences, {**files, "pack": "concat", "max_length": 16, "pad_value": PAD, **options}


def same(left: tuple[np.ndarray, ...], right: tuple[np.ndarray, ...]) -> None:
    for one, other in zip(left, right, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def order_of(documents: np.ndarray) -> list[int]:
    """Return the documents of an epoch in the order of its stream."""
    flat = documents[documents >= 0]
    return [int(number) for place, number in enumerate(flat) if not place or flat[place - 1] != number]


MANY = [0, 3, 1, 40, 0, 16, *np.random.default_rng(1).integers(0, 30, 1500).tolist(), 0]


# --- concat


@pytest.mark.parametrize(
    ("dtype", "feature", "length"),
    [("int32", (), 16), (">i2", (), 7), ("float32", (3,), 64), (">f8", (2,), 1), ("uint8", (), 5000)],
)
@pytest.mark.parametrize("is_gathered", [True, False])
def test_concat_is_the_stream_cut_into_rows(tmp_path, monkeypatch, dtype, feature, length, is_gathered):
    """Numbers and vectors, of both byte orders; by one index, and piece by piece; empty documents are left out."""
    monkeypatch.setattr(packed_rows, "_GATHERED_LENGTH", 1 << 30 if is_gathered else 0)
    options = {"dtype": dtype, "feature": feature, "before": 5, "max_length": length}
    sequences, options = packed(tmp_path, MANY[:300], **options)
    wanted = concatenated(sequences, range(len(sequences)), length)
    for epoch in (0, 3):
        same(rows_of(options, epoch), wanted)
    last = len(wanted[0]) - 1
    for row in {0, min(1, last), last // 2, last}:  # a row alone is read without the map
        same(rows_of(options, 0, [row]), tuple(array[row : row + 1] for array in wanted))


def test_shuffled_concat_has_each_document_once_in_a_new_order_each_epoch(tmp_path):
    """Several blocks, of documents that are far apart in the files; as many rows in every epoch."""
    sequences, options = packed(tmp_path, MANY, shuffle=True, seed=5)
    assert len(dealt(len(MANY), 0)) > 2 * block_documents(len(MANY))
    orders = []
    for epoch in range(3):
        found = rows_of(options, epoch)
        order = order_of(found[1])
        assert sorted(order) == [number for number, length in enumerate(MANY) if length]
        same(found, concatenated(sequences, order, 16))
        orders.append(order)
    assert orders[0] != orders[1] != orders[2]
    near = np.abs(np.diff(orders[0])) < 20
    assert near.mean() < 0.1
    beside = {frozenset(pair) for pair in zip(orders[0], orders[0][1:], strict=False)}
    again = {frozenset(pair) for pair in zip(orders[1], orders[1][1:], strict=False)}
    assert len(beside & again) < 0.1 * len(beside)
    assert order_of(rows_of({**options, "seed": 6})[1]) != orders[0]


def test_any_rows_of_any_epoch_are_known_at_once(tmp_path):
    """Far forward and back, in any order and number, from readers that saw other rows before."""
    for pack in ("concat", "first_fit"):
        _, options = packed(tmp_path, MANY, shuffle=True, pack=pack)
        whole = {epoch: rows_of(options, epoch) for epoch in (0, 1, 700)}
        rng = np.random.default_rng(0)
        for epoch, arrays in whole.items():
            ids = rng.permutation(len(arrays[0]))[:50]
            same(rows_of(options, epoch, ids.tolist()), tuple(array[ids] for array in arrays))


def test_drop_last_leaves_out_the_row_that_is_not_full(tmp_path):
    sequences, options = packed(tmp_path, [10, 20, 9], drop_last=True)
    tokens, documents, _ = rows_of(options)
    assert tokens.shape == (2, 16)
    np.testing.assert_array_equal(tokens.reshape(-1), np.concatenate(sequences)[:32])
    assert (documents >= 0).all()
    with pytest.raises(ConfigError, match="its 39 tokens make no row of 64 with drop_last=True"):
        rows_of({**options, "max_length": 64})


# --- first fit


def test_first_fit_is_first_fit_decreasing_of_whole_documents(tmp_path):
    lengths = [length for length in MANY if length <= 30]
    for length in (30, 47, 600):
        sequences, options = packed(tmp_path, lengths, pack="first_fit", max_length=length)
        kept = [number for number, sequence in enumerate(sequences) if len(sequence)]
        bins = fitted([sequences[number] for number in kept], length)
        rows = [[[(token, kept[n]) for token in sequences[kept[n]]] for n in each] for each in bins]
        same(rows_of(options), laid(rows, sequences[0], length))
        row = len(bins) - 1
        same(rows_of(options, 9, [row]), tuple(array[row:] for array in laid(rows, sequences[0], length)))


def test_shuffled_first_fit_has_whole_documents_in_a_new_place_each_epoch(tmp_path):
    lengths = [length for length in MANY if 0 < length <= 32]
    sequences, options = packed(tmp_path, lengths, pack="first_fit", max_length=32, shuffle=True)
    rows = []
    for epoch in range(3):
        tokens, documents, positions = rows_of(options, epoch)
        found: list[int] = []
        for row in zip(tokens, documents, positions, strict=True):
            order = order_of(row[1])
            wanted = laid([[[(token, number) for token in sequences[number]] for number in order]], sequences[0], 32)
            same(tuple(array[None] for array in row), wanted)
            found += order
        assert sorted(found) == list(range(len(lengths)))
        rows.append({frozenset(order_of(row)) for row in documents})
    assert len({len(tokens) for tokens in (rows_of(options, epoch)[0] for epoch in range(3))}) == 1
    assert len(rows[0] & rows[1]) < 0.2 * len(rows[0])


def test_a_document_longer_than_a_row_becomes_full_rows_and_the_rest(tmp_path):
    sequences, options = packed(tmp_path, [5, 40, 16, 3], pack="first_fit")
    tokens, documents, positions = rows_of(options)
    assert documents.tolist() == [[1] * 16, [1] * 16, [2] * 16, [1] * 8 + [0] * 5 + [3] * 3]
    np.testing.assert_array_equal(np.concatenate((tokens[0], tokens[1], tokens[3, :8])), sequences[1])
    assert positions[:3].tolist() == [list(range(16))] * 3
    assert positions[3].tolist() == [*range(8), *range(5), *range(3)]


def test_long_rows_round_lengths_up_so_that_documents_change_places(tmp_path):
    """Lengths that are near share a class; the rows stay right, and nothing overlaps."""
    lengths = np.random.default_rng(4).integers(1, 5000, 400).tolist()
    sequences, options = packed(tmp_path, lengths, pack="first_fit", max_length=5000, shuffle=True)
    assert len(set(lengths)) > 350
    mates = []
    for epoch in range(2):
        tokens, documents, positions = rows_of(options, epoch)
        assert sorted(number for row in documents for number in order_of(row)) == list(range(400))
        for row in range(len(tokens)):
            for number in order_of(documents[row]):
                own = documents[row] == number
                np.testing.assert_array_equal(tokens[row][own], sequences[number])
                np.testing.assert_array_equal(positions[row][own], np.arange(lengths[number]))
        mates.append({frozenset(order_of(row)) for row in documents})
    assert mates[0] != mates[1]
    assert len(tokens) <= len(fitted(sequences, 5000)) + 2


def test_classes_of_lengths_are_exact_up_to_512_and_then_near():
    lengths = np.arange(1, 70_000)
    classes = length_classes(lengths)
    sizes = class_sizes(classes)
    assert (np.diff(classes) >= 0).all()
    np.testing.assert_array_equal(sizes[:512], lengths[:512])
    assert (sizes >= lengths).all()
    assert ((sizes - lengths) * 256 < lengths).all()
    for number in np.unique(classes)[::97]:
        assert lengths[classes == number].max() == sizes[classes == number][0]
    assert len(np.unique(classes)) < 2500


def test_plan_by_counts_is_the_plan_one_by_one():
    """Every bin of random sets of lengths, to the document; it survives the wire."""
    rng = np.random.default_rng(7)
    for _ in range(150):
        capacity = int(rng.integers(1, 40))
        lengths = rng.integers(1, capacity + 1, int(rng.integers(1, 100)))
        sizes, counts = np.unique(-lengths, return_counts=True)
        bins, n_bins = first_fit((-sizes).tolist(), counts.tolist(), capacity)
        order, starts = np.argsort(-lengths, kind="stable"), np.concatenate(([0], np.cumsum(counts)))
        assert [bins_from_wire(each.to_wire()) for each in bins] == bins
        found = [
            [
                int(order[starts[part.length_class] + part.first + number * part.count + step])
                for part in each.content
                for step in range(part.count)
            ]
            for each, end in zip(bins, [*(later.first for later in bins[1:]), n_bins], strict=True)
            for number in range(end - each.first)
        ]
        assert found == fitted([np.empty(length) for length in lengths], capacity)


def test_permutations_of_many_sizes_are_bijections_that_follow_the_key():
    """Also of one and two; each value comes to each place about as often."""
    sizes = [1, 2, 3, 5, 16, 17, 1000]
    of = np.repeat(sizes, sizes)
    values = np.concatenate([np.arange(size) for size in sizes])
    found = [permuted(values, of, np.full(len(of), key, np.uint64)) for key in range(400)]
    for each in found:
        for size in sizes:
            assert sorted(each[of == size]) == list(range(size))
    firsts = np.array([each[of == 5][0] for each in found])
    assert (np.abs(np.bincount(firsts, minlength=5) - 80) < 45).all()  # five deviations


# --- what is said, and refused


@pytest.mark.parametrize("pack", ["concat", "first_fit"])
def test_padding_is_logged_and_a_fact(tmp_path, caplog, pack):
    _, options = packed(tmp_path, [10, 0, 10], pack=pack)
    with caplog.at_level(logging.INFO, "prefetchd"):
        opened, _ = attached(make_config(**options))
    assert opened.facts.padding == pytest.approx(12 / 32)
    said = "3 documents (1 are empty and left out) of 20 tokens are packed into 2 rows of 16: 37.50% is padding"
    assert said in caplog.text
    assert opened.where(1).endswith("tokens.npy packed row 1")


def test_the_digest_follows_every_document(tmp_path):
    """Two sets whose files have the same sizes."""
    digests = []
    for name, lengths in (("a", [3, 4, 5]), ("b", [4, 3, 5])):
        (tmp_path / name).mkdir()
        tokens = saved(tmp_path / name / "t.npy", np.arange(12))
        offsets = saved(tmp_path / name / "o.npy", np.concatenate(([0], np.cumsum(lengths))))
        opened, reader = attached(make_config(source=tokens, offsets=offsets, pack="concat", max_length=4))
        assert isinstance(reader, PackedSource)
        assert not reader.has_labels
        digests.append(opened.facts.digest)
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_length": None}, "cannot use pack='concat' without max_length, the tokens of a row"),
        ({"offsets": None}, "cannot use pack='concat' without offsets"),
        ({"labels": "y.npy"}, "cannot use labels together with pack: a row has parts of several documents"),
        ({"lengths": "x"}, "cannot use lengths together with pack"),
        ({"padding": "post"}, "cannot use padding together with pack: rows are filled from the left"),
        ({"truncating": "post"}, "cannot use truncating together with pack: no token is cut off"),
        ({"subset": "ids.npy"}, "cannot use subset together with pack: rows are not documents"),
        ({"weights": "balanced"}, "cannot use weights together with pack"),
        ({"limit": 3}, "cannot use limit together with pack"),
        ({"split": "0-90%"}, "cannot use split together with pack"),
        ({"mix": {"a.npy": 1, "b.npy": 2}, "source": None, "offsets": None}, "cannot use mix together with pack: give"),
        ({"pack": "best"}, "cannot use pack='best'"),
        ({"image_size": 32}, "cannot use image_size with .*: it concerns images only"),
        ({"pad_value": -1.5}, "cannot pad .* with pad_value=-1.5"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, options, words):
    _, given = packed(tmp_path, [3, 4])
    with pytest.raises(ConfigError, match=words):
        rows_of({name: value for name, value in {**given, **options}.items() if value is not None})


def test_offsets_that_do_not_fit_and_documents_without_tokens_are_refused(tmp_path):
    tokens = saved(tmp_path / "t.npy", np.arange(6))
    for name, offsets, words in (
        ("far", [0, 3, 9], r"offsets\[2\] is 9, and .* has 6 tokens"),
        ("falls", [0, 4, 3], r"offsets\[2\] = 3 is less than the one before it"),
        ("empty", [2, 2, 2], "its 2 documents have no tokens"),
        ("none", [0], "its 0 documents have no tokens"),
    ):
        path = saved(tmp_path / f"{name}.npy", np.array(offsets))
        with pytest.raises(ManifestError, match=words):
            rows_of({"source": tokens, "offsets": path, "pack": "concat", "max_length": 4})


@pytest.mark.parametrize("ids", [[0], [0, 1, 2]])
@pytest.mark.parametrize("is_shorter", [True, False])
def test_tokens_that_change_are_never_delivered(tmp_path, ids, is_shorter):
    """Not by rows together, nor by one alone: before `confirm`, the file is looked at again."""
    _, options = packed(tmp_path, [40, 30])
    opened, reader = attached(make_config(**options))
    arrays = BatchLayout(3, opened.facts.fields).arrays(np.zeros(1 << 16, np.uint8), 3)
    reader.fill(0, np.array(ids), range(len(ids)), arrays, lambda _: None)
    reader.confirm()
    if is_shorter:
        os.truncate(options["source"], 200)
    else:
        saved(tmp_path / "new.npy", np.zeros(73, np.int32)).rename(options["source"])
    with pytest.raises(ManifestError, match="cannot go on with"):
        reader.fill(0, np.array(ids), range(len(ids)), arrays, lambda _: None)
    with pytest.raises(ManifestError):
        opened.check_unchanged()


def test_offsets_that_change_are_noticed(tmp_path):
    _, options = packed(tmp_path, [40, 30])
    opened, _ = attached(make_config(**options))
    opened.check_unchanged()
    saved(Path(options["offsets"]), np.array([0, 70]))
    with pytest.raises(ManifestError):
        opened.check_unchanged()
