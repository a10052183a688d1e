"""Which library decodes on a device, and whom a failure is blamed on; OpenCV has the libraries' place."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import cv2
import pytest

torch = pytest.importorskip("torch", reason="needs prefetchd[torch]")

from prefetchd.torch import decoding  # noqa: E402
from prefetchd.torch.decoding import TorchvisionJpeg, find_decoder  # noqa: E402
from prefetchd.torch.trial import trial_file  # noqa: E402


def by_opencv(files: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
    return [torch.from_numpy(cv2.imdecode(file.numpy(), cv2.IMREAD_COLOR_RGB)) for file in files]


def test_without_a_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert find_decoder(torch.device("cuda")) == (
        "neither nvImageCodec (pip install nvidia-nvimgcodec-cu12) nor torchvision is installed"
    )


def test_library_that_is_installed_and_cannot_decode_is_passed_over(monkeypatch):
    def fails(files: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        raise RuntimeError("compiled without nvJPEG\nand more")

    def library(decode: Any) -> Any:
        return lambda device: SimpleNamespace(name="found", decode=decode)

    good, bad, blind = library(by_opencv), library(fails), library(lambda files: [None for _ in files])
    device = torch.device("cuda")
    monkeypatch.setattr(decoding, "_LIBRARIES", (("json", bad), ("math", blind), ("ast", good)))
    assert not isinstance(find_decoder(device), str)
    monkeypatch.setattr(decoding, "_LIBRARIES", (("json", bad), ("math", blind)))
    assert find_decoder(device) == (
        "json cannot be used (compiled without nvJPEG); math cannot be used (it does not decode a JPEG that is good)"
    )

    def is_full(device: torch.device) -> Any:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(decoding, "_LIBRARIES", (("json", is_full), ("ast", good)))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        find_decoder(device)


@pytest.fixture
def torchvision_jpeg(monkeypatch: pytest.MonkeyPatch) -> TorchvisionJpeg:
    """torchvision's decoder, with OpenCV in its place: it fails as a whole, and says nothing of which file."""

    def decode_jpeg(files: list[torch.Tensor], **options: Any) -> list[torch.Tensor]:
        pixels = [cv2.imdecode(file.numpy(), cv2.IMREAD_COLOR_RGB) for file in files]
        if any(each is None for each in pixels):
            raise RuntimeError("cannot decode")
        return [torch.from_numpy(each).permute(2, 0, 1) for each in pixels]

    io = SimpleNamespace(ImageReadMode=SimpleNamespace(RGB="RGB"), decode_jpeg=decode_jpeg)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(io=io))
    monkeypatch.setitem(sys.modules, "torchvision.io", io)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1")
    return TorchvisionJpeg(torch.device("cpu"))


def test_torchvision_blames_a_file_for_what_is_its_own_alone(torchvision_jpeg, monkeypatch):
    good, bad = trial_file(), trial_file()[:300]
    images = torchvision_jpeg.decode([good, bad, good])
    assert [None if image is None else tuple(image.shape) for image in images] == [(32, 32, 3), None, (32, 32, 3)]
    assert torchvision_jpeg.decode([bad, bad]) == [None, None]
    for error in (RuntimeError("CUDA error: unspecified launch failure"), torch.cuda.OutOfMemoryError("full")):

        def fails(files: list[torch.Tensor], error: Exception = error, **options: Any) -> list[torch.Tensor]:
            raise error

        monkeypatch.setattr(torchvision_jpeg, "_decode_jpeg", fails)
        for files in ([good], [good, good]):
            with pytest.raises(type(error)) as caught:
                torchvision_jpeg.decode(files)
            assert caught.value is error
