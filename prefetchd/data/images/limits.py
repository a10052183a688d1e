"""The limits on an encoded image: what its header claims is checked before anything is decoded. Called in readers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefetchd.config.units import format_bytes
from prefetchd.data.faults import RefusedImage
from prefetchd.data.images import decode
from prefetchd.data.images.working_memory import LIMIT_BYTES_A_PIXEL, claimed_bytes, limit_bytes

if TYPE_CHECKING:
    from prefetchd.config.options import Config
    from prefetchd.data.images.exact import Wanted
    from prefetchd.data.images.headers.header import ImageHeader


def checked_header(data: memoryview, config: Config, wanted: Wanted | None = None) -> ImageHeader:
    """Return the header of an encoded image that is within the limits, and is as `wanted`; of a mask without.

    Raises:
        RefusedImage: if it has too many pixels, or takes too much memory to decode, or has other channels or bits.
    """
    header = decode.identify(data)
    most = config.max_image_pixels
    if header.pixels > most:
        raise RefusedImage(f"{header.width_px}x{header.height_px} has more pixels than max_image_pixels={most}")
    if wanted is not None:
        wanted.check(header)
    claim = claimed_bytes if wanted is None else wanted.claimed_bytes
    claimed, limit = claim(header, shrink_on_load=config.shrink_on_load), limit_bytes(most)
    if claimed > limit:
        raise RefusedImage(
            f"the {header.format.upper()} ({header.describe()}) takes {format_bytes(claimed)} to decode, and the "
            f"limit is {format_bytes(limit)}, {LIMIT_BYTES_A_PIXEL} bytes for each of max_image_pixels={most}; "
            f"give max_image_pixels={-(-claimed // LIMIT_BYTES_A_PIXEL)} to decode it"
        )
    return header
