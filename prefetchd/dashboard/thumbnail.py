"""A small picture of a sample's file as it lies on the disk, for lists of bad samples. In the index worker alone.

A bad file may crash its decoder, hang it or claim any size: the header is checked first, and the dashboard starts
another worker where this one ends.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

from prefetchd.config.fields import parse_fields
from prefetchd.config.mix import part_configs
from prefetchd.data.faults import SampleFault
from prefetchd.data.fields.source import FieldsSource
from prefetchd.data.files import FileBuffer
from prefetchd.data.images import decode
from prefetchd.data.images.source import ImageSource
from prefetchd.data.mix.source import MixedSource
from prefetchd.data.registry import attach_source
from prefetchd.errors import ConfigError

if TYPE_CHECKING:
    from prefetchd.config.options import Config
    from prefetchd.data.records import RecordsWithFields
    from prefetchd.data.source import Source

_MOST_PIXELS = 100_000_000
_REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}


def draw_thumbnail(
    config: Config, source: Source, sample_id: int, most_px: int, readers: dict[int, ImageSource], part: int = 0
) -> bytes:
    """Return a PNG of a sample's first image, at most `most_px` wide and high.

    Args:
        config: the options.
        source: the data set.
        sample_id: the sample's number in it.
        most_px: the longest side.
        readers: what fetches encoded images, by the number of the source in a mixture; made at need.
        part: the number of `source` in a mixture.

    Raises:
        ConfigError: if it has none, or none that can be decoded.
    """
    if isinstance(source, MixedSource):
        part, own = source.part_of(sample_id)
        return draw_thumbnail(part_configs(config)[part], source.parts[part], own, most_px, readers, part)
    if not isinstance(source, ImageSource):
        raise ConfigError("cannot draw a thumbnail: the sample is no image")
    if part not in readers:
        handle, fds = source.handle()
        attached = attach_source(config, handle, [os.dup(fd) for fd in fds])
        assert isinstance(attached, ImageSource)
        readers[part] = attached
    try:
        return _draw(_encoded(config, readers[part], sample_id), most_px)
    except (SampleFault, cv2.error) as error:
        raise ConfigError(f"cannot draw a thumbnail: {error}") from None


def _encoded(config: Config, source: ImageSource, sample_id: int) -> memoryview:
    """Return the encoded bytes of a sample's first image."""
    records = source.records
    (sample,) = records.samples([sample_id])
    buffer = FileBuffer()
    if not isinstance(source, FieldsSource):
        return records.read(sample, buffer, lambda _: None)
    kinds = [field.kind for field in parse_fields(config.fields).values()]
    if "image" not in kinds:
        raise ConfigError("cannot draw a thumbnail: no field is an image")
    number = kinds.index("image")
    with_fields = cast("RecordsWithFields", records)
    if with_fields.fields[number].is_fetched:
        return with_fields.fetch(sample, number, buffer, lambda _: None)
    return memoryview(sample.values[number])


def _draw(encoded: memoryview, most_px: int) -> bytes:
    header = decode.identify(encoded)
    if header.pixels > _MOST_PIXELS:
        raise ConfigError(f"cannot draw a thumbnail: {header.width_px}x{header.height_px} has too many pixels")
    reduction = decode.choose_reduction(header, most_px, most_px, "pad")
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), _REDUCED.get(reduction, cv2.IMREAD_COLOR))
    if image is None:
        raise ConfigError("cannot draw a thumbnail: the decoder refuses the image")
    height, width = image.shape[:2]
    factor = min(1.0, most_px / max(height, width))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    ok, png = cv2.imencode(".png", cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    assert ok
    return png.tobytes()
