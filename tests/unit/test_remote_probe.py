"""The probe goes through every path of pixels, and each path is seen in its checksum."""

from __future__ import annotations

from typing import get_args

from prefetchd.config.augment import AUGMENTATIONS
from prefetchd.config.options import Dtype, Interpolation, Resize
from prefetchd.remote.probe import run


def test_probe_has_every_interpolation_augmentation_and_type_of_pixels(capfd):
    found = run()
    capfd.readouterr()  # what the JPEG library says
    assert found.keys() >= {*AUGMENTATIONS, *get_args(Dtype)} - {"uint16"}
    for interpolation in get_args(Interpolation):
        assert {f"{interpolation} {resize}" for resize in get_args(Resize)} <= found.keys()
        assert {f"{interpolation} of 16 bits as {dtype}" for dtype in ("uint16", "float32")} <= found.keys()
    deep = [value for name, value in found.items() if "16 bits" in name]
    assert len(set(deep)) == len(deep) == 20
