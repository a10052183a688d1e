"""One encoded image into one row of a batch: read -> header -> limits -> decode -> resize and normalise.

Loaded in readers only (it imports cv2). Each step is settled before it costs anything: a header that claims too many
pixels is refused before they are decoded, and working memory beyond the allowance is reserved before it is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2

from prefetchd import decode
from prefetchd.config import Config
from prefetchd.faults import SampleFault, UndecodableImage
from prefetchd.file_bytes import FileBuffer
from prefetchd.sample import Sample
from prefetchd.sources.base import ReserveMemory
from prefetchd.sources.records import Records
from prefetchd.transforms import PixelPipeline

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A file buffer larger than this is given back after the image that needed it.
_KEPT_FILE_BYTES = 4 << 20


class ImageReader:
    """Loads images as the configuration says; one a reader process."""

    def __init__(self, config: Config, records: Records) -> None:
        cv2.setNumThreads(0)
        decode.silence_decoders()
        self._config = config
        self._records = records
        self._buffer = FileBuffer()
        self._pipeline = PixelPipeline(config)

    def load(self, sample: Sample, row: NDArray[Any], reserve: ReserveMemory) -> SampleFault | None:
        """Write the image of `sample` into `row`; return what was wrong with it, if anything was.

        Raises:
            MemoryError: if `reserve` does.
            ManifestError: if the records have changed.
        """
        try:
            self._load(sample, row, reserve)
        except SampleFault as fault:
            return fault
        finally:
            self._buffer.trim(_KEPT_FILE_BYTES)
            reserve(0)
        return None

    def _load(self, sample: Sample, row: NDArray[Any], reserve: ReserveMemory) -> None:
        config = self._config
        data = self._records.read(sample, self._buffer, reserve)
        header = decode.identify(data)
        if header.pixels > config.max_image_pixels:
            raise UndecodableImage(
                f"{header.width_px}x{header.height_px} has more pixels than max_image_pixels={config.max_image_pixels}"
            )
        reduction = 1
        if config.shrink_on_load:
            reduction = decode.choose_reduction(header, *config.image_size, config.resize)
        reserve(decode.decode_working_bytes(header, len(data), color=config.color, reduced=reduction))
        image = decode.decode_image(data, header, color=config.color, reduction=reduction)
        self._pipeline.write(image, row)
