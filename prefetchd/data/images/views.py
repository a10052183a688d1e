"""The source of images that are delivered several times each: rows of `x` with a dimension for the views.

With a number of views the arrays are `x`, (rows, views, H, W, C), and `y`; with a list of views `view0`, `view1`, ...,
each (rows, count, H, W, C) in its own size, and `y`. The daemon opens it, and each reader attaches a `ViewsReader`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prefetchd.config.views import groups
from prefetchd.data.images.source import ImageSource
from prefetchd.ring.layout import FieldLayout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.options import Config
    from prefetchd.data.cache.reader_side import CacheInReader
    from prefetchd.data.images.pipeline import ImageReader
    from prefetchd.data.records import Records


def open_images(config: Config, kind: str, records: Records) -> ImageSource:
    """Return, in the daemon, the source of the images that `records` list, with views or without, or encoded.

    Raises:
        ConfigError: as `ImageSource.open` does.
    """
    if config.encoded_bytes is not None:
        from prefetchd.data.images.encoded import EncodedSource

        return EncodedSource.open(config, kind, records)
    return (ViewsSource if config.views else ImageSource).open(config, kind, records)


class ViewsSource(ImageSource):
    """A `Source` of images with views."""

    def _make_reader(self, config: Config, cache: CacheInReader | None) -> ImageReader:
        from prefetchd.data.images.view_reader import ViewsReader

        return ViewsReader(config, self._records, self._ahead, cache)

    def _fields(self) -> tuple[FieldLayout, ...]:
        """Return an array for each group of views, and y."""
        config = self._config
        views = [FieldLayout(group.name, group.shape(config), config.dtype) for group in groups(config)]
        return (*views, super()._fields()[-1])

    def _row(self, arrays: Sequence[NDArray[Any]], row: int) -> tuple[Any, list[NDArray[Any]]]:
        """Return a row of each group's array, and of y."""
        return tuple(each[row] for each in arrays[:-1]), [arrays[-1][row, ...]]
