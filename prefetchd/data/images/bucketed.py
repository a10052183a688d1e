"""Buckets of images: the sizes of all in the daemon, and a reader's pipeline for each size.

daemon:  headers (header_pass) -> nearest aspect (aspects) -> order;  one layout a bucket
reader:  a batch's arrays have the size of its bucket -> the pipeline of that size
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from prefetchd.data.source import Bucketing, Saving

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.options import Config
    from prefetchd.ring.layout import FieldLayout

_MOST_READERS = 2  # each has scratch images; the batches at hand are mostly of few sizes
T = TypeVar("T")


def bucket_configs(config: Config) -> list[Config]:
    """Return the options of the images of each bucket, by its number; none without buckets."""
    return [dataclasses.replace(config, image_size=size, bucket_sizes=()) for size in config.bucket_sizes]


class ReadersByShape(Generic[T]):
    """What loads samples of each bucket, chosen by the shape of a batch's images. In a reader, one thread.

    Args:
        config: the options.
        fields_with: returns the arrays of a batch with other options.
        make: makes what loads samples with other options.
        number: of the array that holds the images whose size is the bucket's.
    """

    def __init__(
        self,
        config: Config,
        fields_with: Callable[[Config], Sequence[FieldLayout]],
        make: Callable[[Config], T],
        number: int = 0,
    ) -> None:
        self._configs = {fields_with(own)[number].shape: own for own in bucket_configs(config)}
        self._make = make
        self._number = number
        self._readers: OrderedDict[tuple[int, ...], T] = OrderedDict()

    def of(self, arrays: Sequence[NDArray[Any]]) -> T:
        """Return what loads samples into these arrays."""
        shape = arrays[self._number].shape[1:]
        reader = self._readers.get(shape)
        if reader is None:
            if len(self._readers) >= _MOST_READERS:
                self._readers.popitem(last=False)
            reader = self._readers[shape] = self._make(self._configs[shape])
        self._readers.move_to_end(shape)
        return reader


def put_into_buckets(config: Config, handle: dict[str, Any], fds: list[int], n_samples: int, part: int) -> Bucketing:
    """Return the bucket of each image, in the daemon; arguments and errors are those of `HeaderPass`."""
    from prefetchd.data.images.aspects import LOST, bucket_numbers, lost_share
    from prefetchd.data.images.header_pass import HeaderPass

    table = HeaderPass(config, handle, fds, n_samples, part).run()
    numbers = bucket_numbers(table["height"], table["width"], config.bucket_sizes)

    def saving(ids: NDArray[Any] | slice) -> Saving | None:
        heights, widths = table["height"][ids].astype(float), table["width"][ids].astype(float)
        after = lost_share(heights, widths, numbers[ids], config.bucket_sizes)
        before = lost_share(heights, widths, 0 * numbers[ids], [config.image_size])
        return None if before is None or after is None else Saving(LOST[config.resize], before, after)

    names = [f"{height}x{width}" for height, width in config.bucket_sizes]
    return Bucketing(numbers, names, saving, names[config.bucket_sizes.index(config.image_size)])
