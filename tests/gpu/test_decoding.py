"""Images decoded on the device by each library that is installed: near those of the readers, and bad ones named."""

from __future__ import annotations

from typing import Any

import pytest

import prefetchd

torch = pytest.importorskip("torch", reason="needs prefetchd[torch]")

import prefetchd.torch  # noqa: E402
from prefetchd.torch import decoding  # noqa: E402
from prefetchd.torch.decoding import NvImageCodec, TorchvisionJpeg  # noqa: E402

QUICK: dict[str, Any] = {"batch_size": 4, "image_size": 64, "num_workers": 1, "shuffle": True}
SMOOTH = {"interpolation": "area", "shrink_on_load": False, **QUICK}  # PyTorch's antialiased resizing is near that


LIBRARIES = {"nvidia.nvimgcodec": NvImageCodec, "torchvision": TorchvisionJpeg}


@pytest.fixture(params=LIBRARIES)
def library(request, cuda, monkeypatch) -> Any:
    module, library = request.param, LIBRARIES[request.param]
    pytest.importorskip(module, reason=f"needs {module}")
    found = library(cuda)
    monkeypatch.setattr(decoding, "find_decoder", lambda device: found)
    return found


def test_pixels_are_near_those_of_the_readers(cuda, library, photographs):
    options = {"decode": "device", "device": cuda, "encoded_bytes": 100_000}
    with (
        prefetchd.torch.batches(photographs, **options, **QUICK) as ours,
        prefetchd.torch.batches(photographs, **SMOOTH) as readers,
    ):
        for _ in range(2):
            for mine, theirs in zip(ours, readers, strict=True):
                assert mine.x.device == cuda
                assert mine.x.is_contiguous(memory_format=torch.channels_last)
                assert torch.equal(mine.y.cpu(), theirs.y)
                assert (mine.x.cpu().int() - theirs.x.int()).abs().float().mean() < 6


def test_half_precision_is_made_there(cuda, library, photographs):
    values = {"dtype": "float16", "scale": 1 / 255, "mean": 0.5, "std": 0.25}
    with prefetchd.torch.batches(
        photographs, decode="device", device=cuda, encoded_bytes=100_000, **values, **QUICK
    ) as ours:
        x = next(iter(ours)).x
        assert x.dtype == torch.float16
        assert -2.1 < float(x.min()) < float(x.max()) < 2.1


def test_slot_is_not_filled_again_before_it_was_decoded(cuda, library, photographs, busy):
    """The copies' stream is late at each batch; in a ring of few slots."""
    options = {"decode": "device", "device": cuda, "encoded_bytes": 2_000_000, "memory_budget": "96MiB"}
    with (
        prefetchd.torch.batches(photographs, **options, **QUICK) as ours,
        prefetchd.torch.batches(photographs, **SMOOTH) as readers,
    ):
        kept = []
        for batch in ours:
            kept.append(batch.x)
            with ours._copies._cuda.beside():
                busy(0.02)
        for mine, theirs in zip(kept, readers, strict=True):
            assert (mine.cpu().int() - theirs.x.int()).abs().float().mean() < 6


def test_what_cannot_be_decoded_is_named(cuda, library, photographs, tmp_path):
    name = photographs.read_text().splitlines()[0].rpartition(" ")[0]
    (tmp_path / "damaged.jpg").write_bytes((photographs.parent / name).read_bytes()[:400])
    (tmp_path / "train.txt").write_text("damaged.jpg 0\n")
    with (
        prefetchd.torch.batches(
            tmp_path / "train.txt", decode="device", device=cuda, encoded_bytes=100_000, **QUICK
        ) as ours,
        pytest.raises(prefetchd.PrefetchdError, match="cannot decode row 0"),
    ):
        next(iter(ours))
