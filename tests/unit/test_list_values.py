"""Labels and hashes of paths of whole lists, taken apart by blocks: those that parsing each line gives."""

from __future__ import annotations

import random
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from prefetchd.config.validate import make_config
from prefetchd.data.manifest.records import Manifest
from prefetchd.data.manifest.values import ClassTable
from prefetchd.data.order.weights import balanced
from prefetchd.errors import ManifestError

NAMES = ["cat", "dog", "x", "a-b", "\u00fcn\u00ef", "Cat", "a_name_of_a_class_that_has_more_than_32_bytes"]
SEPARATORS = {"text": " ", "csv": ",", "tsv": "\t"}


def write_list(path: Path, kind: str, rng: random.Random, pool: list[str], n_columns: int) -> Path:
    """Write a list whose lines are as odd as they may be: quotes, padding, blanks, comments, any line break."""
    separator = SEPARATORS[kind]
    lines = [separator.join(["id", "path", "label"][-n_columns:])] if kind != "text" else []
    for row in range(rng.randint(2, 60)):
        path_text, label = f"d{row % 3}/{row}" + rng.choice([".jpg", ".png", " b.jpg", "\u00e9.jpg"]), rng.choice(pool)
        if kind == "text":
            label = rng.choice([label] * 9 + [f'"{label}"'])
            between = rng.choice([" ", " ", "  ", "\t"])
            lines.append(path_text + between + label + rng.choice(["", "", " "]))
        else:
            label = rng.choice([label] * 5 + [f" {label}", f"{label} ", f'"{label}"'])
            first = [str(row)] if n_columns == 3 else []
            lines.append(separator.join([*first, rng.choice([path_text, f'"{path_text}"']), label]))
        lines += rng.choice([[]] * 18 + [[""], ["# a comment"]])
    line_break = rng.choice(["\n", "\r\n"])
    path.write_bytes((line_break.join(lines) + rng.choice(["", line_break])).encode())
    return path


@pytest.mark.parametrize("kind", list(SEPARATORS))
@pytest.mark.parametrize(
    "pool", [NAMES, ["0", "7", "-3", "123456"], ["0.5", "1e3"]], ids=["names", "whole", "fractions"]
)
def test_values_of_blocks_are_those_of_lines(tmp_path, kind, pool):
    n_compared = 0
    for seed in range(40):
        rng = random.Random(seed)
        path = write_list(tmp_path / f"{seed}.{kind}", kind, rng, pool, rng.choice([2, 3]))
        try:
            manifest = Manifest.open(make_config(source=str(path)))
        except ManifestError:  # such as names that look like a list of labels
            continue
        with manifest:
            samples = manifest.samples(range(len(manifest)))
            values = manifest.label_values()
            assert values is not None
            assert values.tolist() == [sample.label for sample in samples]
            hashes = np.concatenate(list(manifest.path_hashes()))
            both = manifest.labels_and_path_hashes()
            assert (both is None) == (pool[0] == "0.5"), "fractions are parsed line by line"
            if both is not None:
                np.testing.assert_array_equal(both[0], values)
                np.testing.assert_array_equal(both[1], hashes)
            with mock.patch.object(Manifest, "_is_plain", False):
                np.testing.assert_array_equal(hashes, np.concatenate(list(manifest.path_hashes())))
        n_compared += 1
    assert n_compared >= 20


@pytest.mark.parametrize(
    ("lines", "labels"),
    [
        (["a.jpg 1", "b.jpg", "c d.jpg", "e.jpg nan", "f.jpg 4"], "0"),
        (["a.jpg cat", "b.jpg", "c d.jpg", "e.jpg nan", "f.jpg dog"], "none"),
    ],
)
def test_missing_labels_of_blocks_are_those_of_lines(tmp_path, lines, labels):
    path = tmp_path / "list.txt"
    path.write_text("\n".join(lines * 5) + "\n")
    with Manifest.open(make_config(source=str(path), missing_label=labels)) as manifest:
        samples = manifest.samples(range(len(manifest)))
        found, hashes = manifest.labels_and_path_hashes()
        assert found.tolist() == [sample.label for sample in samples]
        with mock.patch.object(Manifest, "_is_plain", False):
            np.testing.assert_array_equal(hashes, np.concatenate(list(manifest.path_hashes())))


def test_classes_are_found_by_their_hashes():
    table = ClassTable([b"cat", b"dog", b""])
    hashes = ClassTable([b"dog", b"emu"])._hashes
    numbers, found = table.numbers(hashes)
    assert table.is_unique
    assert numbers[found].tolist() == [1]
    assert not ClassTable([b"cat", b"cat"]).is_unique


@pytest.mark.parametrize(
    "labels",
    [
        np.array([-128, 127, 127, 0], np.int8),
        np.array([1 << 40, 5, 5]),
        np.array([0.5, 0.5, 2.0]),
        np.array([(1 << 63) + 5, (1 << 63) + 5, (1 << 63) + 7], np.uint64),
        np.array([True, False, False]),
    ],
)
def test_balanced_weights_are_one_over_the_size_of_a_class(labels):
    sizes = [labels.tolist().count(label) for label in labels.tolist()]
    np.testing.assert_array_equal(balanced(labels), 1 / np.array(sizes))
