"""`OrderOptions`: the options that choose samples and their order. `Config` has them beside its own. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from prefetchd.config.option import option


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderOptions:
    """Which samples an epoch has; see `docs/order.md`.

    `subset` names a file, which is no content: what stands in it goes into the digest instead.
    """

    subset: str | None = option(
        None,
        "serve these samples alone: an .npy file of their numbers, from 0, or of a true or false for each (all)",
        metavar="IDS.npy",
        content=False,
        later=True,
    )
    where: tuple[str, ...] = option(
        (), "serve samples with one of these values in a column alone: label=1,3 (all)", metavar="COLUMN=VALUE[,...]",
        later=True, flag="where",
    )  # fmt: skip
    split: str | None = option(
        None,
        "serve the samples whose path, hashed, is in this part: 0-90%, and 90-100% for the others; a sample never "
        "changes sides as the set grows (all)",
        metavar="A-B%",
        later=True,
    )
    limit: int | None = option(
        None, "serve this many samples at most, the first ones (all)", metavar="N", later=True, limits=(1, math.inf)
    )
