"""Detection: train a small detector in PyTorch on images of squares and discs, which this script makes.

    python examples/detection_train.py [ANNOTATIONS] [--root IMAGES] [--epochs N]

`target="boxes"` delivers boxes and labels, moved as the readers flip and crop the images. The detector is one of the
simplest there are: a grid of cells, each of which tells whether the centre of an object lies in it, its box and its
class. With a COCO file of your own it learns that.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

import prefetchd.torch

SIZE, CELL = 64, 8  # of images and of the grid's cells, in pixels
CELLS = SIZE // CELL


def make_images(folder: Path, n_images: int = 128) -> Path:
    """Write images with one to three squares and discs, and their annotations as a COCO file; return its path."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(n_images):
        image = rng.integers(0, 60, (96, 96, 3)).astype(np.uint8)
        for place in rng.choice(4, rng.integers(1, 4), replace=False).tolist():
            side, kind = int(rng.integers(18, 34)), int(rng.integers(2))
            left, top = 48 * (place % 2) + int(rng.integers(12)), 48 * (place // 2) + int(rng.integers(12))
            if kind == 0:
                cv2.rectangle(image, (left, top), (left + side - 1, top + side - 1), (60, 220, 60), -1)
            else:
                cv2.circle(image, (left + side // 2, top + side // 2), side // 2, (60, 60, 230), -1)
            box = [left, top, side, side]
            annotations.append({"id": len(annotations), "image_id": number, "category_id": kind, "bbox": box})
        cv2.imwrite(str(folder / f"{number}.png"), image)
        images.append({"id": number, "file_name": f"{number}.png", "width": 96, "height": 96})
    categories = [{"id": 0, "name": "square"}, {"id": 1, "name": "disc"}]
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


class Detector(nn.Module):
    """For each cell: the logit of an object, centre x and y in the cell, width and height, and a logit a class."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for into, out in ((3, 16), (16, 32), (32, 32)):
            layers += [nn.Conv2d(into, out, 3, stride=2, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
        self.layers = nn.Sequential(
            *layers, nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 5 + n_classes, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (rows, cells, cells, 5 + classes)."""
        found: torch.Tensor = self.layers(x / 255 - 0.5)
        return found.permute(0, 2, 3, 1)


def loss_of(found: torch.Tensor, boxes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the loss of a batch whose boxes are (rows, K, 4), centre and size as fractions, labels -1 for none."""
    row, place = torch.nonzero(labels >= 0, as_tuple=True)
    box, label = boxes[row, place], labels[row, place]
    centre = box[:, :2] * CELLS
    cell = centre.long().clamp(0, CELLS - 1)
    is_object = torch.zeros(found.shape[:3], device=found.device)
    is_object[row, cell[:, 1], cell[:, 0]] = 1
    there = nn.functional.binary_cross_entropy_with_logits(found[..., 0], is_object)
    if not len(row):
        return there
    mine = found[row, cell[:, 1], cell[:, 0]]
    wanted = torch.cat([centre - cell, box[:, 2:] * CELLS / 2], dim=1)
    return there + nn.functional.l1_loss(mine[:, 1:5], wanted) + nn.functional.cross_entropy(mine[:, 5:], label)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("annotations", nargs="?", help="COCO file (images that this script makes)")
parser.add_argument("--root", help="folder of its images (its own)")
parser.add_argument("--epochs", type=int, default=8)
options = parser.parse_args()
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)

with tempfile.TemporaryDirectory() as folder:
    source = options.annotations or make_images(Path(folder))
    with prefetchd.torch.batches(
        source,
        root=options.root,
        target="boxes",
        box_format="cxcywh_normalized",
        batch_size=16,
        image_size=SIZE,
        shuffle=True,
        augment="random_resized_crop(scale=(0.6, 1)), hflip",
        device=device,
    ) as loader:
        assert loader.classes is not None
        network = Detector(len(loader.classes)).to(device)
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        for epoch in range(options.epochs):
            total = torch.zeros((), device=device)
            for x, y in loader:
                loss = loss_of(network(x), y["boxes"], y["labels"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach()
            print(f"epoch {epoch}: loss {total.item() / len(loader):.4f}")
