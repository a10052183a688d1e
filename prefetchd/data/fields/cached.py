"""The cache with fields: which image fields can be cached, and the cache of one field in a reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.config.fields import Field, image_config
from prefetchd.data.cache.keys import check_cache, row_channels
from prefetchd.data.cache.reader_side import CacheInReader
from prefetchd.data.records import Sample
from prefetchd.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.options import Config
    from prefetchd.data.records import FieldFacts, RecordsWithFields


def cached_fields(config: Config, fields: Mapping[str, Field], facts: Sequence[FieldFacts]) -> dict[int, Config]:
    """Return the options of each image field, by its number, if the option `cache` is given.

    Raises:
        ConfigError: if they cannot be cached.
    """
    placed = [name for name, field in fields.items() if field.kind in ("image", "mask")]
    objects = [name for name, field in fields.items() if field.kind in ("boxes", "keypoints")]
    for option in ("cache", "cache_image_size"):
        if objects and getattr(config, option) is not None:
            raise ConfigError(
                f"cannot use {option} with the field {objects[0]}: boxes and keypoints are placed by the file's own "
                "pixels; leave it out"
            )
    images = {}
    for number, (name, field) in enumerate(fields.items()):
        if field.kind != "image":
            continue
        own = image_config(config, field)
        check_cache(own)
        if config.cache is not None and not facts[number].is_fetched:
            raise ConfigError(
                f"cannot cache the field {name}: its images have no files, whose changes a cache could see; leave "
                "cache out"
            )
        images[number] = own
    if config.cache is None:
        return {}
    if not images:
        raise ConfigError("cannot use cache: no field is an image; leave it out")
    if len(placed) > 1 and config.cache_image_size is None:
        raise ConfigError(
            f"cannot cache the fields {', '.join(placed)} at their delivered sizes, where their aspects are lost; give "
            "the size at which images are kept, such as cache_image_size=256"
        )
    return images


class FieldCache(CacheInReader):
    """The cache of one image field, in a reader; a sample's image is that of the field.

    Args:
        records: say which file, or part of one, the field's value is; borrowed.
        number: the field's number.
        facts, fds: of `CacheInDaemon.handle`; the descriptors are its own from here on.
        config: the options of the field.
    """

    def __init__(
        self, records: RecordsWithFields, number: int, facts: dict[str, Any], fds: list[int], config: Config
    ) -> None:
        super().__init__(facts, fds, config.image_size, row_channels(config), config.pixel_dtype)
        self._records = records
        self._number = number

    def knows(self, sample_id: int) -> bool:
        """Return whether the image of a sample need not be read."""
        return self.known(np.array([sample_id]))[0]

    def find(self, sample: Sample, sample_id: int, size: tuple[int, int] | None = None) -> NDArray[Any] | None:
        """Return the kept image of the field if there is one; see `CacheInReader.find`."""
        return super().find(self._records.part(sample, self._number), sample_id, size)

    def may_have(self, sample: Sample) -> bool:
        """Return whether the row of the field may be here; see `CacheInReader.may_have`."""
        return super().may_have(self._records.part(sample, self._number))

    def store(self, sample: Sample, sample_id: int, pixels: NDArray[Any], read_ns: int) -> None:
        """Keep the image of the field; see `CacheInReader.store`."""
        super().store(self._records.part(sample, self._number), sample_id, pixels, read_ns)
