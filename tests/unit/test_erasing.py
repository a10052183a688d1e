"""Random erasing: the box is torchvision's, what is written is what was asked for, and nothing else is touched."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from prefetchd.config.validate import make_config
from prefetchd.data.images.erasing import Erasing, erased_box
from prefetchd.data.images.geometry import FIRST_WORD
from prefetchd.errors import ConfigError
from prefetchd.sampling.randomness import SampleRandomness

RNG = SampleRandomness(9)
N_WORDS = FIRST_WORD["random_erasing"] + 32


def erase(
    spec: str, sample_id: int = 0, epoch: int = 0, size: tuple[int, int] = (40, 50), **options: Any
) -> np.ndarray:
    config = make_config(source="m", augment=spec, image_size=size, **options)
    shape = (*size, config.n_channels) if config.layout == "nhwc" else (config.n_channels, *size)
    row = np.full(shape, 77, config.dtype)
    Erasing(config, RNG).apply(row, RNG.units(epoch, sample_id, N_WORDS), epoch, sample_id)
    return row


def box_of(row: np.ndarray) -> tuple[int, int, int, int] | None:
    """The bounding box of what is no longer 77; it must be erased without gaps."""
    changed = (row != 77).any(axis=2)
    if not changed.any():
        return None
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    top, left, tall, wide = rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    assert changed[top : top + tall, left : left + wide].all()
    return int(top), int(left), int(tall), int(wide)


def test_p_scale_and_ratio_are_respected_and_boxes_reach_every_corner():
    boxes = [
        erased_box(
            RNG.units(0, n, N_WORDS)[FIRST_WORD["random_erasing"] :],
            224,
            200,
            p=0.25,
            scale=(0.05, 0.2),
            ratio=(0.5, 2),
        )
        for n in range(4000)
    ]
    found = [box for box in boxes if box is not None]
    assert 0.22 < len(found) / len(boxes) < 0.28
    areas = np.array([tall * wide for _, _, tall, wide in found]) / (224 * 200)
    ratios = np.array([tall / wide for _, _, tall, wide in found])
    assert 0.045 < areas.min() < 0.06
    assert 0.19 < areas.max() < 0.21
    assert 0.48 < ratios.min() < 0.53
    assert 1.9 < ratios.max() < 2.08
    assert abs(np.mean(ratios < 1) - 0.5) < 0.06  # log-uniform: as many upright as lying boxes
    assert min(top for top, *_ in found) == 0
    assert max(top + tall for top, _, tall, _ in found) == 224
    assert max(left + wide for _, left, _, wide in found) == 200


def test_a_box_that_never_is_smaller_than_the_image_erases_nothing():
    units = [0.5] * 32
    assert erased_box(units, 30, 30, p=1, scale=(1, 1), ratio=(1, 1)) is None
    assert erased_box(units, 30, 30, p=1, scale=(0.25, 0.25), ratio=(1, 1)) == (8, 8, 15, 15)


def test_first_try_is_torchvisions_formula():
    """An area uniform in scale, height over width log-uniform in ratio, both rounded."""
    units = RNG.units(1, 1, 32)
    box = erased_box([0.0, *units[1:]], 224, 224, p=1, scale=(0.02, 0.33), ratio=(0.3, 3.3))
    area = 224 * 224 * (0.02 + 0.31 * units[1])
    aspect = math.exp(math.log(0.3) + (math.log(3.3) - math.log(0.3)) * units[2])
    assert box is not None
    assert box[2:] == (round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect)))


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16"])
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_value_is_written_as_it_is_channel_by_channel(dtype: str, layout: str):
    row = erase("random_erasing(p=1, value=(3, 2, 1))", dtype=dtype, layout=layout)
    image = row if layout == "nhwc" else row.transpose(1, 2, 0)
    box = box_of(image)
    assert box is not None
    top, left, tall, wide = box
    assert (image[top : top + tall, left : left + wide] == np.array([3, 2, 1], dtype)).all()
    one = erase("random_erasing(p=1)", dtype=dtype, layout=layout)
    assert sorted(np.unique(one)) == [0, 77]


def test_gray_images_are_erased_too():
    row = erase("random_erasing(p=1, value=9)", color="gray")
    assert row.shape == (40, 50, 1)
    assert box_of(row) is not None
    with pytest.raises(ConfigError, match="one number or 1"):
        make_config(source="m", augment="random_erasing(value=(1, 2, 3))", color="gray")


def test_random_values_are_standard_normal_for_floats_and_even_for_integers():
    sizes: dict[str, Any] = {"size": (300, 300)}
    for dtype in ("float32", "float16"):
        row = erase("random_erasing(p=1, scale=(0.3, 0.3), ratio=(1, 1), value='random')", dtype=dtype, **sizes)
        values = row[row != 77].astype(np.float64)
        assert values.size > 70_000
        assert abs(values.mean()) < 0.02
        assert abs(values.std() - 1) < 0.02
        assert 3 < np.abs(values).max() < 4
        assert abs((np.abs(values) < 1).mean() - 0.6827) < 0.01
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.02
    row = erase("random_erasing(p=1, scale=(0.3, 0.3), ratio=(1, 1), value='random')", **sizes)
    counts = np.bincount(row[row != 77], minlength=256)
    assert np.delete(counts, 77).min() > 0.6 * counts.mean()
    assert counts.max() < 1.4 * counts.mean()


def test_the_same_place_in_the_sequence_gives_the_same_bytes_and_another_others():
    spec = "random_erasing(p=1, value='random')"
    one = erase(spec, sample_id=3, epoch=2, dtype="float32")
    erase(spec, sample_id=4, epoch=2, dtype="float32")
    assert erase(spec, sample_id=3, epoch=2, dtype="float32").tobytes() == one.tobytes()
    others = {erase(spec, sample_id=s, epoch=e, dtype="float32").tobytes() for s, e in ((3, 3), (4, 2), (3, 1), (2, 3))}
    assert len(others) == 4
    assert one.tobytes() not in others


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"augment": "random_erasing(value=(1, 2))"}, "given one number or 3"),
        ({"augment": "random_erasing(value=0.5)"}, "whole numbers from 0 to 255 where dtype='uint8'"),
        ({"augment": "random_erasing(value=-1)"}, "whole numbers from 0 to 255"),
        ({"augment": "random_erasing(value='pixel')"}, "or 'random'"),
        ({"augment": "random_erasing(value=1e6)", "dtype": "float32"}, "a number within 65504"),
        ({"augment": "random_erasing(value=True)"}, "or 'random'"),
        ({"augment": "random_erasing(value=())"}, "or 'random'"),
    ],
)
def test_a_value_that_cannot_be_written_is_refused(options: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words) as caught:
        make_config(source="m", **options)
    assert "\n" not in str(caught.value)


def test_boxes_are_distributed_as_torchvisions():
    """Same distribution of areas, aspects and centres as two thousand of torchvision's draws."""
    from tests.torchvision_v2 import transforms_v2

    v2 = transforms_v2()
    import torch

    torch.manual_seed(0)
    theirs = v2.RandomErasing(p=1)
    image = torch.zeros(3, 96, 128)
    expected = []
    for _ in range(2000):
        params = theirs.make_params([image])
        expected.append((params["i"], params["j"], params["h"], params["w"]))
    ours = [
        erased_box([0.0, *RNG.units(0, n, 32)[1:]], 96, 128, p=1, scale=(0.02, 0.33), ratio=(0.3, 3.3))
        for n in range(2000)
    ]
    for column in range(4):
        a = np.sort([box[column] for box in ours if box is not None])
        b = np.sort([box[column] for box in expected])
        quantiles = np.linspace(0.05, 0.95, 19)
        assert np.abs(np.quantile(a, quantiles) - np.quantile(b, quantiles)).max() <= 4
