"""`AnnotatedImages`: what COCO files and YOLO folders say, in the same plain columns. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.options import BoxFormat


def are_fractions(points: NDArray[np.float64]) -> bool:
    """Return whether keypoints (..., 2 or 3) look like fractions of the image: none is above 1, and some are not whole.

    Points without visibility count as labelled.
    """
    flat = points.reshape(-1, points.shape[-1])
    labelled = flat[flat[:, 2] > 0, :2] if flat.shape[1] > 2 else flat
    return bool(len(labelled) and (np.abs(labelled) <= 1).all() and (labelled != np.floor(labelled)).any())


@dataclass(frozen=True, slots=True)
class AnnotatedImages:
    """The images of a data set in their order, and the objects in each.

    Attributes:
        paths: of the images, below `folder` or absolute, as `os.fsdecode` makes them.
        folder: what the paths start from, absolute.
        offsets: (n + 1,); the objects of image i are those from `offsets[i]` to `offsets[i + 1]`.
        boxes: (total, 4) float64, in `box_format`.
        box_format: how a box is written.
        labels: (total,) int64, class numbers.
        ids: (total,) int64, what names an object to people, with `id_name` before it.
        id_name: such as "annotation".
        keypoints: (total, k, 3) float64: x, y and visibility of the k points of each object; `None` without.
        sizes: (n, 2) int64, the images' stated (height, width), 0 where none is stated; `None` if there are none.
        lines: (n,) int64, the line that lists each image, from 1; `None` if no line does.
        classes: the classes' names by number; `None` if they have none.
        notes: what was left out and why, for the log.
    """

    paths: list[str]
    folder: str
    offsets: NDArray[np.int64]
    boxes: NDArray[np.float64]
    box_format: BoxFormat
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]
    id_name: str
    keypoints: NDArray[np.float64] | None = None
    sizes: NDArray[np.int64] | None = None
    lines: NDArray[np.int64] | None = None
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def without_empty(self) -> AnnotatedImages:
        """Return it without boxes that have no width or no height, and a note of how many there were."""
        size = self.boxes[:, 2:] - self.boxes[:, :2] if self.box_format.startswith("xyxy") else self.boxes[:, 2:]
        empty = (size == 0).any(axis=1)
        if not empty.any():
            return self
        first = int(self.ids[np.argmax(empty)])
        note = f"left out {int(empty.sum())} boxes without width or height, such as {self.id_name} {first}"
        return self.only(~empty, note)

    def only(self, kept: NDArray[np.bool_], note: str) -> AnnotatedImages:
        """Return it with those objects that are `kept`, and `note` why the others are not."""
        before = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
        return replace(
            self,
            offsets=before[self.offsets],
            boxes=self.boxes[kept],
            labels=self.labels[kept],
            ids=self.ids[kept],
            keypoints=None if self.keypoints is None else self.keypoints[kept],
            notes=(*self.notes, note),
        )
