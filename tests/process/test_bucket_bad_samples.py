"""Buckets with no good sample for a batch, or at all."""

from __future__ import annotations

from pathlib import Path

import pytest

import prefetchd
from prefetchd.errors import SampleError
from tests.images import write_jpeg
from tests.process.test_buckets import QUICK, SIZES


@pytest.fixture
def no_good_wide_one(tmp_path: Path) -> Path:
    """A list of three square images, and of a wide one whose header alone is whole."""
    for number in range(3):
        write_jpeg(tmp_path / f"{number}.jpg", (60, 60), number)
    write_jpeg(tmp_path / "wide.jpg", (90, 160))
    content = (tmp_path / "wide.jpg").read_bytes()
    (tmp_path / "wide.jpg").write_bytes(content[: len(content) // 8])
    (tmp_path / "list.txt").write_text("0.jpg 0\n1.jpg 0\nwide.jpg 0\n2.jpg 0\n")
    return tmp_path / "list.txt"


def test_a_batch_without_a_good_sample_has_no_rows_under_skip(no_good_wide_one):
    with prefetchd.batches(no_good_wide_one, image_size=SIZES, on_error="skip", **QUICK) as loader:
        found = [(batch.x.shape, batch.y.shape, batch.sample_ids.tolist()) for batch in loader]
    assert found == [((3, 48, 48, 3), (3,), [0, 1, 3]), ((0, 36, 64, 3), (0,), [])]


def test_a_bucket_without_a_good_sample_has_no_substitute(no_good_wide_one):
    with (
        prefetchd.batches(no_good_wide_one, image_size=SIZES, on_error="substitute", **QUICK) as loader,
        pytest.raises(SampleError, match="all samples of its bucket are bad"),
    ):
        list(loader)
