"""The source of images that are delivered as they are in their files, for what decodes them elsewhere.

The arrays are `x.bytes`, (rows, encoded_bytes), with zeros behind each file, `x.length`, and `y`. The daemon opens it,
and each reader attaches an `EncodedReader`, which looks at each header: what is no image, or too large, is a bad sample
as always. What only decoding shows, such as damage in the middle of a file, is left to what decodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from prefetchd.data.images.source import ImageSource
from prefetchd.data.source import SourceFacts
from prefetchd.ring.layout import FieldLayout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.options import Config
    from prefetchd.data.cache.reader_side import CacheInReader
    from prefetchd.data.images.pipeline import ImageReader


class EncodedSource(ImageSource):
    """A `Source` of encoded images."""

    def _make_reader(self, config: Config, cache: CacheInReader | None) -> ImageReader:
        from prefetchd.data.images.encoded_reader import EncodedReader

        return EncodedReader(config, self._records, self._ahead)

    def _fields(self) -> tuple[FieldLayout, ...]:
        """Return the bytes and their number, and y."""
        most = self._config.encoded_bytes
        assert most is not None, "the registry asks only then"
        return FieldLayout("x.bytes", (most,), "uint8"), FieldLayout("x.length", (), "int64"), super()._fields()[-1]

    @cached_property
    def facts(self) -> SourceFacts:
        """What never changes; no decoder decides anything of it."""
        return dataclasses.replace(super().facts, versions={})

    def _row(self, arrays: Sequence[NDArray[Any]], row: int) -> tuple[Any, list[NDArray[Any]]]:
        """Return a row of bytes and the place of its length, and a row of y."""
        content, lengths, y = arrays
        return (content[row], lengths[row, ...]), [y[row, ...]]
