"""How the samples that were seen fall into buckets, for `prefetchd verify` with several sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.cli.views.charts import histogram
from prefetchd.data.images.aspects import LOST, bucket_numbers, lost_share

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.options import Config


def bucket_report(config: Config, facts: NDArray[Any]) -> dict[str, Any] | None:
    """Return how many samples each bucket has, and what is lost with them and without; `None` without buckets.

    `facts` are a row of `KEPT` a sample.
    """
    if not config.bucket_sizes:
        return None
    seen = facts[facts["seen"]]
    heights, widths = seen["height_px"].astype(np.float64), seen["width_px"].astype(np.float64)
    numbers = bucket_numbers(heights, widths, config.bucket_sizes)
    counts = np.bincount(numbers, minlength=len(config.bucket_sizes)).tolist()
    return {
        "counts": [
            {"size": [height, width], "count": count}
            for (height, width), count in zip(config.bucket_sizes, counts, strict=True)
        ],
        "lost": LOST[config.resize],
        "share": lost_share(heights, widths, numbers, config.bucket_sizes),
        "share_without_buckets": lost_share(heights, widths, 0 * numbers, [config.image_size]),
    }


def describe_buckets(report: dict[str, Any]) -> list[str]:
    """Return the lines that `prefetchd verify` prints of a report of `bucket_report`."""
    height, width = max((row["size"] for row in report["counts"]), key=lambda size: size[0] * size[1])
    lost = ""
    if report["share"] is not None:
        without = f"{report['share_without_buckets']:.1%} if all were {height}x{width}"
        lost = f"; {report['share']:.1%} of an image {report['lost']}, and {without}"
    rows = [("x".join(map(str, row["size"])), row["count"]) for row in report["counts"]]
    return [f"  buckets     {len(rows)}{lost}:", *(f"    {line}" for line in histogram(rows))]
