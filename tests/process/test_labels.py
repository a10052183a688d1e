"""Labels of lists through a daemon: several in one field, missing ones, and epochs without a good sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import prefetchd
from tests.records import jpeg

OPTIONS = {"batch_size": 4, "image_size": 16, "num_workers": 1, "memory_budget": "160MiB"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    for number in range(6):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
        (folder / f"bad{number}.jpg").write_bytes(b"no image")
    return folder


def test_several_labels_come_as_a_vector_of_zeros_and_ones(folder: Path) -> None:
    fields = ("Mass|Nodule", "Edema", "", "Nodule", "Mass|Edema|Nodule", "Edema|Edema")
    source = folder / "chest.csv"
    source.write_text("image,label\n" + "".join(f"{number}.jpg,{field}\n" for number, field in enumerate(fields)))
    with prefetchd.batches(source, label_separator="|", **OPTIONS) as loader:
        assert loader.classes == ("Edema", "Mass", "Nodule")
        y = np.concatenate([batch.y.copy() for batch in loader])
    assert y.dtype == np.float32
    assert y.tolist() == [[0, 1, 1], [1, 0, 0], [0, 0, 0], [0, 0, 1], [1, 1, 1], [1, 0, 0]]


def test_missing_labels_come_as_the_value_given(folder: Path) -> None:
    source = folder / "chexpert.csv"
    source.write_text("path,edema,mass\n0.jpg,1.0,\n1.jpg,,0.0\n2.jpg,nan,-1.0\n3.jpg,,\n")
    with prefetchd.batches(source, missing_label=np.nan, **OPTIONS) as loader:
        (y,) = [batch.y.copy() for batch in loader]
    np.testing.assert_array_equal(y, np.array([[1, np.nan], [np.nan, 0], [np.nan, -1], [np.nan] * 2], np.float32))


@pytest.mark.parametrize("shuffle", [False, True])
def test_epoch_without_a_good_sample_is_an_error_whatever_the_policy(folder: Path, shuffle: bool) -> None:
    """All files are there and none is an image: without the error a loop would go on with empty batches."""
    source = folder / "bad.txt"
    source.write_text("".join(f"bad{number}.jpg {number}\n" for number in range(6)))
    with prefetchd.batches(source, on_error="skip", shuffle=shuffle, **OPTIONS) as loader:
        iterator = iter(loader)
        assert len(next(iterator).x) == 0
        with pytest.raises(prefetchd.SampleError, match=r"serve an epoch: none of its samples is good \(6 bad\)"):
            next(iterator)
