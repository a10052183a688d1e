"""Images with painted objects for tests, and their annotations as COCO, YOLO, JSON lines and Parquet have them."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

CLASSES = ("cat", "dog", "owl")


@dataclass
class Painted:
    """Images of grey, with white rectangles for objects that do not overlap.

    Attributes:
        folder: where the images are.
        sizes: (height, width) of each.
        boxes: (left, top, width, height) and the class of each object, by image.
    """

    folder: Path
    sizes: list[tuple[int, int]] = field(default_factory=list)
    boxes: list[list[tuple[tuple[int, int, int, int], int]]] = field(default_factory=list)

    def coco(self, **changes: Any) -> Path:
        """Write annotations.json; category ids are 10, 20 and 30, not in the order of their names."""
        annotations = [
            {"image_id": image + 1, "category_id": 10 * (label + 1), "bbox": list(box), "iscrowd": 0}
            for image, objects in enumerate(self.boxes)
            for box, label in objects
        ]
        content = {
            "images": [
                {"id": number + 1, "file_name": f"{number:03}.png", "height": height, "width": width}
                for number, (height, width) in enumerate(self.sizes)
            ],
            "annotations": [{"id": 100 + number, **each} for number, each in enumerate(annotations)],
            "categories": [{"id": 10 * (number + 1), "name": name} for number, name in enumerate(CLASSES)][::-1],
            **changes,
        }
        path = self.folder / "annotations.json"
        path.write_text(json.dumps(content))
        return path

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "path": f"{number:03}.png",
                "boxes": [list(box) for box, _ in objects],
                "labels": [CLASSES[label] for _, label in objects],
            }
            for number, objects in enumerate(self.boxes)
        ]

    def jsonl(self) -> Path:
        path = self.folder / "list.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in self.rows()))
        return path

    def shard(self, path: Path) -> None:
        """Write a tar shard, with the rows as JSON members."""
        with tarfile.open(path, "w") as shard:
            for row in self.rows():
                stem = Path(row["path"]).stem
                contents = {"png": (self.folder / row["path"]).read_bytes(), "json": json.dumps(row).encode()}
                for extension, content in contents.items():
                    member = tarfile.TarInfo(f"{stem}.{extension}")
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))

    def yolo(self, folder: Path) -> Path:
        """Make a YOLO folder with links to the images."""
        for name in ("images", "labels"):
            (folder / name).mkdir(parents=True)
        for number, ((height, width), objects) in enumerate(zip(self.sizes, self.boxes, strict=True)):
            (folder / "images" / f"{number:03}.png").symlink_to(self.folder / f"{number:03}.png")
            lines = [
                f"{label} {(x + w / 2) / width!r} {(y + h / 2) / height!r} {w / width!r} {h / height!r}\n"
                for (x, y, w, h), label in objects
            ]
            if lines:
                (folder / "labels" / f"{number:03}.txt").write_text("".join(lines))
        (folder / "classes.txt").write_text("\n".join(CLASSES))
        return folder


def paint(folder: Path, n_images: int = 10, seed: int = 0) -> Painted:
    """Write images of different sizes with 0 to 3 objects each, in a row."""
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    painted = Painted(folder)
    for number in range(n_images):
        height, width = (int(side) for side in rng.integers(90, 220, 2))
        image = np.full((height, width, 3), 60, np.uint8)
        objects = []
        for place in range(number % 4):
            left, top = place * width // 3 + int(rng.integers(2, 6)), int(rng.integers(5, 30))
            across, down = int(rng.integers(18, 22)), int(rng.integers(25, 50))
            image[top : top + down, left : left + across] = 255
            objects.append(((left, top, across, down), int(rng.integers(0, 3))))
        assert cv2.imwrite(str(folder / f"{number:03}.png"), image)
        painted.sizes.append((height, width))
        painted.boxes.append(objects)
    return painted
