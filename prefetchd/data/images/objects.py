"""The target of a sample that is boxes or keypoints: from what its records say to its rows of the batch.

Called in readers, after the image was placed. Annotations are of the upright image. If an image that EXIF turns has a
stated size which is that of its stored pixels, they are of those, and are turned as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.data.faults import RefusedTarget
from prefetchd.data.images import boxes
from prefetchd.data.table.object_records import Objects
from prefetchd.ring.layout import FieldLayout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.options import Config
    from prefetchd.data.images.headers.header import ImageHeader
    from prefetchd.data.table.object_records import ObjectFacts


def object_fields(config: Config, facts: ObjectFacts, name: str = "y") -> tuple[FieldLayout, ...]:
    """Return the leaves of the field `name`, for as many objects as `max_boxes` says, or as any sample has."""
    most = max(1, facts.most if config.max_boxes is None else config.max_boxes)
    if config.target == "boxes":
        return (
            FieldLayout(f"{name}.boxes", (most, 4), "float32"),
            FieldLayout(f"{name}.labels", (most,), "int64"),
            FieldLayout(f"{name}.count", (), "int64"),
        )
    points = most * facts.points
    return (
        FieldLayout(f"{name}.keypoints", (points, 2), "float32"),
        FieldLayout(f"{name}.visibility", (points,), "int64"),
        FieldLayout(f"{name}.count", (), "int64"),
    )


class ObjectTarget:
    """Writes one configuration's boxes or keypoints."""

    def __init__(self, config: Config, facts: ObjectFacts) -> None:
        self._config = config
        self._facts = facts

    def write(
        self, values: tuple[Any, ...], header: ImageHeader, placed: boxes.Placement, out: Sequence[NDArray[Any]]
    ) -> None:
        """Write a sample's objects into its rows.

        Args:
            values: its `Objects`, as its records say them.
            header: of its image.
            placed: where its image went.
            out: its rows of the fields that `object_fields` names.

        Raises:
            RefusedTarget: if they cannot be used, or are of an image of another size.
        """
        objects = Objects(*values)
        turn = self._turn(objects.size, header)
        write = self._boxes if self._config.target == "boxes" else self._keypoints
        try:
            write(objects, header, turn, placed, out)
        except boxes.BadBoxes as bad:
            raise RefusedTarget(f"{self._facts.id_name} {objects.ids[bad.at]} {bad.why}") from None

    def _turn(self, stated: tuple[int, int], header: ImageHeader) -> bool:
        """Return whether the annotations are of the stored pixels, and must be turned upright."""
        stored = header.height_px, header.width_px
        if 0 in stated or stated == header.oriented_size:
            return False
        if stated == stored:
            return True
        height, width = header.oriented_size
        raise RefusedTarget(
            f"its annotations are of an image of {stated[1]}x{stated[0]} px, and it has {width}x{height} px"
        )

    def _boxes(
        self, objects: Objects, header: ImageHeader, turn: bool, placed: boxes.Placement, out: Sequence[NDArray[Any]]
    ) -> None:
        config = self._config
        stored, full = (header.height_px, header.width_px), header.oriented_size
        corners = boxes.to_corners(objects.boxes, self._facts.box_format, stored if turn else full)
        if turn:
            corners = boxes.hull(corners, boxes.orientation_map(header.orientation, *stored))
        moved, kept = boxes.move_boxes(corners, placed, full, config.min_visible)
        target = out[0], out[1]
        out[2][...] = boxes.deliver_boxes(moved, objects.labels[kept], config.box_format, placed.size, target)

    def _keypoints(
        self, objects: Objects, header: ImageHeader, turn: bool, placed: boxes.Placement, out: Sequence[NDArray[Any]]
    ) -> None:
        given = objects.keypoints.reshape(-1, 3)
        odd = np.flatnonzero(given[:, 2] != np.floor(given[:, 2]))  # a confidence would become 0; NaN is odd, too
        if len(odd):
            what = f"has a keypoint of visibility {given[odd[0], 2]:g}, which must be 0, 1 or 2"
            raise boxes.BadBoxes("object", int(odd[0]) // self._facts.points, what)
        labelled = given[:, 2] > 0
        points = np.where(labelled[:, None], given[:, :2], 0.0)
        if self._facts.box_format.endswith("_normalized"):
            height, width = (header.height_px, header.width_px) if turn else header.oriented_size
            points = points * (width, height)
        if turn:
            points = boxes.turn_keypoints(
                points, boxes.orientation_map(header.orientation, header.height_px, header.width_px)
            )
        try:
            moved, inside = boxes.move_keypoints(points, placed)
        except boxes.BadBoxes as bad:
            raise boxes.BadBoxes("object", bad.at // self._facts.points, f"has a keypoint that {bad.why}") from None
        seen = labelled & inside
        places, visibility, n_points = out
        count = min(len(given), len(places))
        places[:count] = np.where(seen[:, None], moved, 0.0)[:count]
        places[count:] = 0
        visibility[:count] = np.where(seen, given[:, 2], 0)[:count]
        visibility[count:] = 0
        n_points[...] = count
