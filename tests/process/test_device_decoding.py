"""`decode="device"`, as far as that can be shown without a device: a stand-in decodes, on the processor, by OpenCV.

The stand-in has the place of nvImageCodec or torchvision, and a model has that of the device. `tests/gpu` has the tests
of the libraries themselves, on a device. nvImageCodec, where it is installed, also decodes here, by its processor path.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import prefetchd
from tests.images import photograph
from tests.model_device import ModelDevice

torch = pytest.importorskip("torch", reason="needs prefetchd[torch]")

import prefetchd.torch  # noqa: E402
from prefetchd.torch import TensorLoader, decoding  # noqa: E402
from prefetchd.torch.decoding import Decoding, NvImageCodec  # noqa: E402

SIDE = 48
OPTIONS: dict[str, Any] = {"batch_size": 4, "image_size": SIDE, "num_workers": 1, "shuffle": True}
CPU = torch.device("cpu")


class StandIn:
    """Decodes by OpenCV. With a model of a device it looks at the files again when the device gets to them."""

    def __init__(self, device: ModelDevice | None = None, name: str = "stand-in 1") -> None:
        self.name = name
        self._device = device

    def decode(self, files: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        found: list[torch.Tensor | None] = []
        for file in files:
            pixels = cv2.imdecode(file.numpy(), cv2.IMREAD_COLOR_RGB)
            found.append(None if pixels is None else torch.from_numpy(pixels))
            if self._device is not None:
                self._device.queue.append(partial(_same, file, file.clone()))
        return found


def _same(now: torch.Tensor, then: torch.Tensor) -> None:
    assert torch.equal(now, then), "the slot was filled again before the device had read it"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of 30 images of the delivered size, so that no two ways to resize matter; losslessly."""
    folder = tmp_path_factory.mktemp("squares")
    for number in range(30):
        assert cv2.imwrite(str(folder / f"{number}.png"), photograph(SIDE, SIDE, seed=number))
    (folder / "train.txt").write_text("".join(f"{number}.png {number}\n" for number in range(30)))
    return folder / "train.txt"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    found = StandIn()
    monkeypatch.setattr(decoding, "find_decoder", lambda device: found)
    return found


def decoded(source: Any, **options: Any) -> TensorLoader:
    return prefetchd.torch.batches(source, decode="device", encoded_bytes=100_000, **{**OPTIONS, **options})


@pytest.mark.parametrize("layout", [None, "nchw", "nhwc"])
def test_batches_are_those_of_the_readers_but_for_who_decodes(images, stand_in, layout):
    with (
        decoded(images, layout=layout) as ours,
        prefetchd.torch.batches(images, layout=layout, **OPTIONS) as readers,
    ):
        assert ours._facts()["arrays"] == readers._facts()["arrays"]
        for _ in range(2):
            for mine, theirs in zip(ours, readers, strict=True):
                assert mine.x.stride() == theirs.x.stride()
                assert torch.equal(mine.x, theirs.x)
                assert torch.equal(mine.y, theirs.y)
                assert (mine.epoch, mine.index) == (theirs.epoch, theirs.index)
        assert torch.equal(ours.batch_at(0, 2).x, readers.batch_at(0, 2).x)


def test_values_are_made_on_the_device(images, stand_in):
    values = {"dtype": "float32", "scale": 1 / 255, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}
    with decoded(images, **values) as ours, prefetchd.torch.batches(images, **values, **OPTIONS) as readers:
        for mine, theirs in zip(ours, readers, strict=True):
            torch.testing.assert_close(mine.x, theirs.x)


def test_images_of_any_size_are_resized(photographs, stand_in):
    with decoded(photographs, shuffle=False) as ours:
        x = next(iter(ours)).x
    lines = photographs.read_text().splitlines()
    for row in range(4):
        image = cv2.imread(str(photographs.parent / lines[row].rpartition(" ")[0]), cv2.IMREAD_COLOR_RGB)
        truth = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        assert np.abs(x[row].permute(1, 2, 0).numpy().astype(int) - truth).mean() < 6


@pytest.mark.parametrize("locks", [True, False])
def test_slot_is_held_until_the_device_has_decoded_it(photographs, locks):
    """In the smallest ring, whose slots are filled again as soon as they may be, and with a device that is late."""
    device = ModelDevice(locks=locks)
    options = {**OPTIONS, "image_size": 128, "encoded_bytes": 2_000_000, "memory_budget": "96MiB"}
    arrays = prefetchd.batches(photographs, **options)
    decode = Decoding(StandIn(device), arrays)
    with TensorLoader(arrays, CPU, lambda tensors: tensors, device, decode) as loader:  # type: ignore[arg-type]
        for _ in range(2):
            numbers = [y for _, y in loader]
            assert sorted(torch.cat(numbers).tolist()) == list(range(50))
        assert len(device.buffers) == (0 if locks else 26)  # the labels alone go through buffers
    assert not device.locked


def test_half_precision_is_made_also_where_the_readers_decode(images):
    values = {"dtype": "bfloat16", "scale": 1 / 255, "mean": 0.5, "std": 0.25}
    with pytest.warns(RuntimeWarning, match="left to the readers"):
        ours = decoded(images, **values)
    with ours, prefetchd.torch.batches(images, normalize="device", **values, **OPTIONS) as readers:
        x = next(iter(ours)).x
        assert x.dtype == torch.bfloat16
        assert torch.equal(x, next(iter(readers)).x)


def test_without_a_device_the_readers_decode_and_one_warning_says_so(images):
    with pytest.warns(
        RuntimeWarning, match="decode='device' is left to the readers, whose pixels are others"
    ) as caught:
        ours = decoded(images)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with ours, prefetchd.torch.batches(images, **OPTIONS) as readers:
        assert ours.config == readers.config
        assert "decoder" not in ours.state_dict()
        for mine, theirs in zip(ours, readers, strict=True):
            assert torch.equal(mine.x, theirs.x)


@pytest.mark.parametrize("by", ["options", "env", "torchrun"])
def test_without_a_device_one_of_several_ranks_is_refused_and_does_not_train_on_other_pixels(images, monkeypatch, by):
    share = {"options": {"rank": 1, "world_size": 2}, "env": {"rank": "env"}, "torchrun": {}}[by]
    if by != "options":
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "this loader delivers the share of rank 1")
        warnings.filterwarnings("error", "decode='device' is left")
        with pytest.raises(prefetchd.ConfigError, match="cannot decode on the device of this rank: it needs") as caught:
            decoded(images, **share)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"augment": "hflip"}, "cannot use augment with images that are delivered encoded"),
        ({"target": "mask"}, "cannot use target"),
        ({"target": "boxes"}, "cannot use target"),
        ({"fields": {"image": "image"}}, "cannot use fields"),
        ({"encoded_bytes": None}, "cannot decode on the device without encoded_bytes"),
        ({"decode": "gpu"}, "cannot use decode='gpu'"),
        ({"config": "prefetchd.toml"}, "cannot use decode='device' with config"),
    ],
)
def test_contradictions_are_refused_here_too_where_the_readers_would_decode(images, options, says):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(prefetchd.ConfigError, match=says) as caught:
            prefetchd.torch.batches(images, **{"decode": "device", "encoded_bytes": 1000, **options})
    assert "\n" not in str(caught.value)


def test_a_mix_is_a_source_and_no_daemon_to_attach_to(images, stand_in, monkeypatch):
    (images.parent / "other.txt").write_text(images.read_text())
    options = {**OPTIONS, "mix": {str(images): 1, str(images.parent / "other.txt"): 1}}
    with pytest.raises(prefetchd.ConfigError, match="cannot decode on the device without encoded_bytes"):
        prefetchd.torch.batches(decode="device", **options)
    with prefetchd.torch.batches(**options) as readers:
        x = next(iter(readers)).x.clone()
        with prefetchd.torch.batches(decode="device", encoded_bytes=100_000, **options) as ours:
            assert torch.equal(next(iter(ours)).x, x)
        monkeypatch.setattr(decoding, "find_decoder", lambda device: "there is none")
        with pytest.warns(RuntimeWarning, match="left to the readers"):
            ours = prefetchd.torch.batches(decode="device", encoded_bytes=100_000, **options)
        with ours:
            assert ours.config == readers.config
            assert torch.equal(next(iter(ours)).x, x)


def test_attaching(serve, images, stand_in, monkeypatch):
    serve(images, "--batch-size", "4", "--image-size", SIDE, "--encoded-bytes", "100000", "--num-workers", "1")
    serve(images, "--batch-size", "4", "--image-size", SIDE, "--num-workers", "1", name="pixels")
    with (
        prefetchd.torch.batches(decode="device") as ours,
        prefetchd.torch.batches(daemon="pixels") as readers,
    ):
        assert torch.equal(next(iter(ours)).x, next(iter(readers)).x)
    with pytest.raises(prefetchd.ConfigError, match="the daemon delivers x, y, and no encoded images"):
        prefetchd.torch.batches(daemon="pixels", decode="device")
    (images.parent / "train.csv").write_text("path\n" + "".join(f"{number}.png\n" for number in range(30)))
    field = "x=bytes(column=path, max_bytes=100000)"
    serve(images.parent / "train.csv", "--field", field, "--batch-size", "4", "--num-workers", "1", name="bytes")
    with pytest.raises(prefetchd.ConfigError, match=r"delivers x\.bytes, x\.length, and no encoded images"):
        prefetchd.torch.batches(daemon="bytes", decode="device")
    monkeypatch.setattr(decoding, "find_decoder", lambda device: "there is none")
    with pytest.raises(prefetchd.ConfigError, match="there is none; attach to a daemon whose readers decode"):
        prefetchd.torch.batches(decode="device")


def test_state_names_the_library_and_fits_no_other(images, stand_in):
    with decoded(images) as ours:
        items = iter(ours)
        seen = [next(items).y for _ in range(3)]
        state = ours.state_dict()
        rest = [batch.y for batch in items]
    assert state["decoder"] == "stand-in 1"
    with decoded(images) as ours:
        ours.load_state_dict(state)
        assert torch.equal(torch.cat([batch.y for batch in ours]), torch.cat(rest))
        assert len(seen) == 3
    with (
        prefetchd.torch.batches(images, **OPTIONS) as readers,
        pytest.raises(prefetchd.ConfigError, match=r"decoded by stand-in 1 .* and by the readers here"),
    ):
        readers.load_state_dict(state)
    stand_in.name = "stand-in 2"
    with decoded(images) as ours, pytest.raises(prefetchd.ConfigError, match="and by stand-in 2 here"):
        ours.load_state_dict(state)


def damaged(images: Path, folder: Path) -> Path:
    """A list whose second file has a good header and nothing else."""
    (folder / "damaged.png").write_bytes((images.parent / "1.png").read_bytes()[:60])
    (folder / "train.txt").write_text(f"{images.parent}/0.png 0\n{folder}/damaged.png 1\n")
    return folder / "train.txt"


def test_damage_that_only_decoding_shows_ends_the_loop_in_one_line(images, stand_in, tmp_path):
    with (
        decoded(damaged(images, tmp_path), shuffle=False) as ours,
        pytest.raises(
            prefetchd.SampleError, match="cannot decode row 1 of a batch on the device: stand-in 1"
        ) as caught,
    ):
        next(iter(ours))
    assert "\n" not in str(caught.value)


def test_damage_in_the_next_batch_waits_for_the_one_before_and_its_slot_for_the_copies(images, tmp_path, monkeypatch):
    device = ModelDevice()
    monkeypatch.setattr(prefetchd.Loader, "is_ready", True)  # so each copy is started before its predecessor is given
    options = {**OPTIONS, "batch_size": 1, "shuffle": False, "encoded_bytes": 100_000}
    arrays = prefetchd.batches(damaged(images, tmp_path), **options)
    decode = Decoding(StandIn(device), arrays)
    with TensorLoader(arrays, CPU, lambda tensors: tensors, device, decode) as loader:  # type: ignore[arg-type]
        items = iter(loader)
        assert next(items).y.tolist() == [0]
        assert loader.state_dict()["next_batch"] == 1
        assert loader._copies is not None
        held = [event for event, _ in loader._copies._reading]
        assert [event.query() for event in held] == [False]  # the label of the damaged file is on its way
        with pytest.raises(prefetchd.SampleError, match="cannot decode row 0"):
            next(items)
        assert held[0].query()
        assert not loader._copies._reading
        assert not device.queue


def test_first_batch_that_the_device_cannot_decode_does_not_count_as_delivered(images, tmp_path):
    options = {**OPTIONS, "batch_size": 2, "shuffle": False, "encoded_bytes": 100_000}
    device = ModelDevice()
    arrays = prefetchd.batches(damaged(images, tmp_path), **options)
    decode = Decoding(StandIn(device), arrays)
    with TensorLoader(arrays, CPU, lambda tensors: tensors, device, decode) as loader:  # type: ignore[arg-type]
        before = loader.state_dict()
        with pytest.raises(prefetchd.SampleError, match="cannot decode row 1"):
            next(iter(loader))
        assert loader.state_dict() == before


def test_single_batches_keep_their_files_until_the_device_has_decoded_them(images):
    device = ModelDevice()
    arrays = prefetchd.batches(images, encoded_bytes=100_000, **OPTIONS)
    decode = Decoding(StandIn(device), arrays)
    with (
        TensorLoader(arrays, CPU, lambda tensors: tensors, device, decode) as ours,  # type: ignore[arg-type]
        prefetchd.torch.batches(images, **OPTIONS) as readers,
    ):
        for mine, theirs in ((ours.peek(), readers.peek()), (ours.batch_at(2, 1), readers.batch_at(2, 1))):
            assert not device.queue
            assert torch.equal(mine.x, theirs.x.movedim(1, -1))


@pytest.fixture
def nv_image_codec() -> Iterator[NvImageCodec]:
    pytest.importorskip("nvidia.nvimgcodec", reason="needs nvidia-nvimgcodec-cu12")
    return NvImageCodec(CPU)


def test_nvimagecodec_on_the_processor(images, photographs, tmp_path, nv_image_codec, monkeypatch):
    monkeypatch.setattr(decoding, "find_decoder", lambda device: nv_image_codec)
    with decoded(images) as ours, prefetchd.torch.batches(images, **OPTIONS) as readers:
        assert ours.state_dict()["decoder"].startswith("nvimgcodec ")
        for mine, theirs in zip(ours, readers, strict=True):
            assert torch.equal(mine.x, theirs.x)
    smooth = {
        "interpolation": "area",
        "shrink_on_load": False,
        **OPTIONS,
    }  # PyTorch's antialiased resizing is near that
    with decoded(photographs) as ours, prefetchd.torch.batches(photographs, **smooth) as readers:
        for mine, theirs in zip(ours, readers, strict=True):
            assert torch.equal(mine.y, theirs.y)
            assert (mine.x.int() - theirs.x.int()).abs().float().mean() < 6
    with decoded(damaged(images, tmp_path), shuffle=False) as ours, pytest.raises(prefetchd.SampleError):
        next(iter(ours))
