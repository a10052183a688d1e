"""The functions of docs/ that hand a sample to torchvision's transforms move images, masks and boxes as one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.torchvision_v2 import transforms_v2

DOCS = Path(__file__).parents[2] / "docs"
Sample = dict[str, Any]


def documented(page: str, start: str) -> Callable[[Sample, np.random.Generator], Sample]:
    """Return the function `augment` of the block that begins with `start`."""
    transforms_v2()  # makes torchvision importable, or skips
    (block,) = re.findall(rf"```python{start}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(block, page, "exec"), names)
    return names["augment"]  # type: ignore[no-any-return]


def results(augment: Callable[[Sample, np.random.Generator], Sample], sample: Sample) -> list[Sample]:
    """Return what `augment` makes of a sample, with numbers as a reader gives them: seeded each time."""
    import torch

    found = []
    for seed in range(40):
        torch.manual_seed(seed)
        np.random.seed(seed)
        found.append(augment(dict(sample), np.random.default_rng(seed)))
    return found


def test_image_and_mask_turn_together() -> None:
    augment = documented("fields.md", r"\n# my_torch_transforms.py")
    image = np.random.default_rng(0).integers(0, 255, (8, 12, 3)).astype(np.uint8)
    turned = 0
    for found in results(augment, {"image": image, "mask": image[..., 0], "other": 7}):
        np.testing.assert_array_equal(found["mask"], found["image"][..., 0])
        assert found["other"] == 7
        turned += not np.array_equal(found["image"], image)
    assert 5 < turned < 35


def test_boxes_stay_around_what_they_were_drawn_around() -> None:
    augment = documented("detection.md", ' title="detect_torch.py"')
    image = np.zeros((128, 128, 3), np.uint8)
    image[30:60, 20:90] = 255
    objects = {"boxes": np.array([[20, 30, 90, 60]], np.float32), "labels": np.array([5])}
    there = others = 0
    for found in results(augment, {"image": image, "objects": objects}):
        assert found["image"].shape == image.shape
        labels = np.asarray(found["objects"]["labels"])
        if not len(labels):
            continue
        assert labels.tolist() == [5]
        rows, columns = np.nonzero(found["image"][..., 0] > 127)
        bright = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        box = np.asarray(found["objects"]["boxes"])[0]
        np.testing.assert_allclose(np.clip(box, 0, 128), bright, atol=2.5)
        there += 1
        others += not np.allclose(box, objects["boxes"][0])
    assert there > 20
    assert others > 10
