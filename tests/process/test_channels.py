"""Depths, alpha and bands through real daemons: the numbers of the files, and clear refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import prefetchd
from tests.process.commands import run_command
from tests.tiffs import DEFLATE, encode_tiff

SIZE = (24, 30)
OPTIONS: dict[str, Any] = {"batch_size": 4, "image_size": SIZE, "num_workers": 2}

FUNCTIONS = """
import numpy as np

def halve(image, rng):
    assert image.dtype == np.uint16, image.dtype
    return image // np.uint16(2)

def shift(image, rng):
    assert image.dtype == np.float32, image.dtype
    return image + np.float32(rng.random())
"""


def depths(seed: int, channels: int = 1, dtype: str = "uint16") -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 65536, (*SIZE, channels)).astype(dtype)


@pytest.fixture
def depth_list(tmp_path: Path) -> Path:
    for number in range(6):
        assert cv2.imwrite(str(tmp_path / f"{number}.png"), depths(number)[..., 0])
    (tmp_path / "list.txt").write_text("".join(f"{number}.png {number}\n" for number in range(6)))
    return tmp_path / "list.txt"


@pytest.fixture
def band_list(tmp_path: Path) -> Path:
    for number in range(6):
        file = encode_tiff(depths(number, 13), compression=DEFLATE, predictor=2, tile=(16, 16))
        (tmp_path / f"{number}.tiff").write_bytes(file)
    (tmp_path / "bands.txt").write_text("".join(f"{number}.tiff {number}\n" for number in range(6)))
    return tmp_path / "bands.txt"


def all_x(source: Path, **options: Any) -> NDArray[Any]:
    with prefetchd.batches(source, **{**OPTIONS, **options}) as loader:
        return np.concatenate([batch.x.copy() for batch in loader])


def test_depth_maps_keep_their_16_bits(depth_list: Path) -> None:
    expected = np.stack([depths(number) for number in range(6)])
    found = all_x(depth_list, channels=1, dtype="uint16")
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(all_x(depth_list, color="gray", dtype="uint16"), expected)
    np.testing.assert_array_equal(
        all_x(depth_list, dtype="uint16", layout="nchw"), expected[:, None, ..., 0].repeat(3, 1)
    )


def test_bands_are_normalised_each_by_its_own_numbers(band_list: Path) -> None:
    pixels = np.stack([depths(number, 13) for number in range(6)])
    np.testing.assert_array_equal(all_x(band_list, channels=13, dtype="uint16"), pixels)
    mean, std = np.linspace(100, 9000, 13), np.linspace(50, 7000, 13)
    for layout, axis in (("nhwc", 3), ("nchw", 1)):
        raw = all_x(band_list, channels=13, dtype="float32", layout=layout)
        np.testing.assert_array_equal(raw, np.moveaxis(pixels, 3, axis).astype(np.float32))
        found = all_x(band_list, channels=13, dtype="float32", layout=layout, scale=0.5, mean=mean, std=std)
        values = (pixels * 0.5 - mean) / std
        np.testing.assert_allclose(found, np.moveaxis(values, 3, axis), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3, 6])
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_any_float32_is_kept_bit_for_bit(tmp_path: Path, channels: int, layout: str) -> None:
    """NaN with its payload, infinities and both zeros too."""
    bits = np.random.default_rng(channels).integers(0, 1 << 32, (*SIZE, channels), dtype=np.uint32)
    bits[:2, :2] = 0x7FC01234
    (tmp_path / "a.tiff").write_bytes(encode_tiff(bits.view(np.float32), compression=DEFLATE, predictor=3))
    (tmp_path / "list.txt").write_text("a.tiff 0\n")
    found = all_x(tmp_path / "list.txt", channels=channels, dtype="float32", layout=layout)[0].view(np.uint32)
    np.testing.assert_array_equal(found, np.moveaxis(bits, -1, 0) if layout == "nchw" else bits)


def test_alpha_is_kept_in_both_orders_and_fades_at_no_edge(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text("a.png 0\n")
    np.testing.assert_array_equal(all_x(tmp_path / "list.txt", channels=4, color="rgb")[0], pixels)
    np.testing.assert_array_equal(all_x(tmp_path / "list.txt", channels=4, color="bgr")[0], pixels[..., [2, 1, 0, 3]])
    jittered = all_x(tmp_path / "list.txt", channels=4, color="rgb", augment="color_jitter")[0]
    np.testing.assert_array_equal(jittered[..., 3], pixels[..., 3])
    assert not np.array_equal(jittered[..., :3], pixels[..., :3])


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 13, "dtype": "uint16", "image_size": 16},
        {"channels": 13, "dtype": "float32", "image_size": 20, "scale": 0.1, "layout": "nchw"},
        {
            "channels": 13,
            "dtype": "float32",
            "image_size": 20,
            "cache_image_size": 24,
            "augment": "random_resized_crop, hflip, rotate, color_jitter(saturation=0, hue=0)",
        },
    ],
)
def test_a_cache_gives_the_same_numbers(band_list: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    plain = all_x(band_list, epochs=2, **options)
    for _ in range(2):
        np.testing.assert_array_equal(all_x(band_list, epochs=2, cache=tmp_path / "cache", **options), plain)
    assert plain.dtype == options["dtype"]


@pytest.mark.parametrize("augment", ["random_resized_crop, hflip, vflip, rotate, affine", "color_jitter(hue=0.2)"])
def test_augmented_numbers_are_the_same_with_any_readers(depth_list: Path, augment: str) -> None:
    options = {"channels": 1, "dtype": "uint16", "augment": augment, "epochs": 2}
    found = all_x(depth_list, **options)
    np.testing.assert_array_equal(all_x(depth_list, **{**options, "num_workers": 1}), found)
    assert not np.array_equal(found[:6], found[6:])


def test_a_users_function_gets_the_numbers_that_were_kept(
    depth_list: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept_functions.py").write_text(FUNCTIONS)
    expected = np.stack([depths(number) for number in range(6)])
    given = {"channels": 1, "python_path": str(tmp_path)}
    found = all_x(depth_list, dtype="uint16", transform="kept_functions:halve", **given)
    np.testing.assert_array_equal(found, expected // 2)
    moved = all_x(depth_list, dtype="float32", transform="kept_functions:shift", **given) - expected
    assert ((moved >= 0) & (moved <= 1)).all()
    with pytest.raises(prefetchd.ConfigError, match="uint8"):
        all_x(depth_list, dtype="uint8", color="gray", transform="kept_functions:halve", python_path=str(tmp_path))


def test_an_image_of_other_channels_or_bits_is_a_bad_sample_that_names_both(depth_list: Path) -> None:
    folder = depth_list.parent
    assert cv2.imwrite(str(folder / "6.png"), depths(6, 3))
    assert cv2.imwrite(str(folder / "7.jpg"), depths(7, 1, "uint8"))
    depth_list.write_text(depth_list.read_text() + "6.png 6\n7.jpg 7\n")
    with pytest.raises(prefetchd.SampleError, match="the PNG has 3 channels, and channels=1"):
        all_x(depth_list, channels=1, dtype="uint16", batch_size=7)
    with prefetchd.batches(depth_list, channels=1, dtype="uint16", on_error="skip", **OPTIONS) as loader:
        kept = [batch.y.tolist() for batch in loader]
    assert kept == [[0, 1, 2, 3], [4, 5]]


def test_preview_shows_depths_and_bands(depth_list: Path, band_list: Path) -> None:
    for source, options in ((depth_list, ["--channels=1", "--dtype=uint16"]), (band_list, ["--channels=13"])):
        target = source.parent / "sheet.png"
        if "13" in options[0]:
            options = [*options, "--dtype=float32", "--scale=0.001", "--mean=1", "--std=2"]
        result = run_command("preview", source, "-o", target, "--image-size=24", *options)
        assert result.returncode == 0, result.stderr
        assert cv2.imread(str(target)).std() > 10


def test_fields_keep_the_numbers_of_their_files(depth_list: Path, band_list: Path) -> None:
    """Depths and bands beside colours, all placed alike; jitter changes the colours alone."""
    folder = depth_list.parent
    for number in range(6):
        assert cv2.imwrite(str(folder / f"rgb{number}.png"), depths(number, 3, "uint8"))
    rows = "".join(f"rgb{number}.png,{number}.png,{number}.tiff\n" for number in range(6))
    (folder / "table.csv").write_text("image,depth,bands\n" + rows)
    fields = {
        "image": prefetchd.Field("image"),
        "depth": prefetchd.Field("image", channels=1, dtype="uint16"),
        "bands": prefetchd.Field("image", channels=13, dtype="float32"),
    }
    given = {**OPTIONS, "fields": fields, "augment": "hflip(p=1), color_jitter"}
    with prefetchd.batches(folder / "table.csv", **given) as loader:
        batches = [batch.copy() for batch in loader]
    for name, channels, dtype in (("depth", 1, "uint16"), ("bands", 13, "float32")):
        found = np.concatenate([batch[name] for batch in batches])
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, np.stack([depths(n, channels)[:, ::-1] for n in range(6)]).astype(dtype))
    changed = np.concatenate([batch["image"] for batch in batches])
    assert not np.array_equal(changed[0], depths(0, 3, "uint8")[:, ::-1, ::-1])
