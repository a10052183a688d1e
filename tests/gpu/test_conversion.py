"""What tensors on the device look like: channels last, normalised in every type of number, fields and text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import prefetchd

torch = pytest.importorskip("torch", reason="needs prefetchd[torch]")

import prefetchd.torch  # noqa: E402

QUICK: dict[str, Any] = {"batch_size": 4, "image_size": 64, "num_workers": 1}
VALUES: dict[str, Any] = {"scale": 1 / 255, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}


def test_images_are_channels_last_in_memory_and_a_convolution_takes_them(cuda, photographs):
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    with (
        prefetchd.torch.batches(photographs, dtype="float32", **VALUES, **QUICK) as here,
        prefetchd.torch.batches(photographs, dtype="float32", device=cuda, **VALUES, **QUICK) as there,
    ):
        truth = convolution(next(iter(here)).x)
        x, y = next(iter(there))
        assert x.device == y.device == cuda
        assert x.shape == (4, 3, 64, 64)
        assert x.is_contiguous(memory_format=torch.channels_last)
        found = convolution.to(cuda)(x)
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found.cpu(), truth, rtol=1e-2, atol=1e-2)  # TF32, and another order of sums


@pytest.mark.parametrize(("layout", "shape"), [("nchw", (4, 3, 64, 64)), ("nhwc", (4, 64, 64, 3))])
def test_layout_said_expressly(cuda, photographs, layout, shape):
    with prefetchd.torch.batches(photographs, layout=layout, device=cuda, **QUICK) as loader:
        x, _ = next(iter(loader))
        assert x.shape == shape
        assert x.is_contiguous()


@pytest.mark.parametrize("layout", [None, "nchw", "nhwc"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_normalization_on_the_device(cuda, photographs, dtype, layout):
    """The numbers of the readers in float32, and those rounded once in the shorter types."""
    wanted = getattr(torch, dtype)
    with (
        prefetchd.torch.batches(photographs, dtype="float32", layout=layout, **VALUES, **QUICK) as readers,
        prefetchd.torch.batches(
            photographs, dtype=dtype, layout=layout, device=cuda, normalize="device", **VALUES, **QUICK
        ) as device,
    ):
        assert device.config["dtype"] == "uint8"
        for (theirs, _), (ours, _) in zip(readers, device, strict=True):
            assert ours.dtype == wanted
            assert ours.device == cuda
            assert ours.stride() == theirs.stride()
            torch.testing.assert_close(ours.cpu(), theirs.to(wanted))


def test_half_precision_of_the_readers_arrives_as_it_is(cuda, photographs):
    with (
        prefetchd.torch.batches(photographs, dtype="float16", **VALUES, **QUICK) as here,
        prefetchd.torch.batches(photographs, dtype="float16", device=cuda, **VALUES, **QUICK) as there,
    ):
        for (theirs, _), (ours, _) in zip(here, there, strict=True):
            assert torch.equal(ours.cpu(), theirs)


def test_fields_and_texts(cuda, photographs, tmp_path):
    lines = [line.rpartition(" ") for line in photographs.read_text().splitlines()]
    rows = [f"{photographs.parent / path},{label},caption {label}" for path, _, label in lines]
    (tmp_path / "train.csv").write_text("\n".join(["path,label,caption", *rows]))
    fields = {
        "image": prefetchd.Field("image", "path"),
        "label": prefetchd.Field("label"),
        "caption": prefetchd.Field("text", max_bytes=16),
    }
    with prefetchd.torch.batches(tmp_path / "train.csv", fields=fields, device=cuda, **QUICK) as loader:
        for batch in loader:
            assert {leaf.device for leaf in (batch.image, batch.label, *batch.caption)} == {cuda}
            assert batch.image.is_contiguous(memory_format=torch.channels_last)
            assert batch.strings("caption") == [f"caption {label}" for label in batch.label.tolist()]


def test_single_batches_are_on_the_device_too(cuda, photographs):
    with prefetchd.torch.batches(photographs, device=cuda, **QUICK) as loader:
        batches = list(loader)
        again = loader.batch_at(0, 5)
        assert again.x.device == cuda
        assert torch.equal(again.x, batches[5].x)


def test_arrays_keep_their_numbers(cuda, tmp_path):
    truth = np.arange(80 * 6, dtype=np.float64).reshape(80, 6)
    np.save(tmp_path / "x.npy", truth)
    with prefetchd.torch.batches(tmp_path / "x.npy", batch_size=8, num_workers=1, device=cuda) as loader:
        assert torch.equal(torch.cat([batch.x for batch in loader]).cpu(), torch.from_numpy(truth))
