"""A data set that the dashboard has opened, beside the daemon that serves it: where samples are, and in which batch.

It is opened with the daemon's own options, so sample numbers and the order are the daemon's; the digest of the data
tells whether it is the same. Nothing is decoded for it but thumbnails. Lives in the index worker.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.config.options import PATH_OPTIONS
from prefetchd.config.validate import make_config
from prefetchd.data.cache.keys import DEFAULT_QUALITY
from prefetchd.data.fields.source import FieldsSource
from prefetchd.data.images.source import ImageSource
from prefetchd.data.mix.source import MixedSource
from prefetchd.data.order.plan import plan_order
from prefetchd.data.order.values import class_names, label_values
from prefetchd.data.records import shown_path
from prefetchd.data.registry import open_source
from prefetchd.data.table.object_records import ObjectRecords
from prefetchd.errors import ConfigError, ManifestError, PrefetchdError, one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.options import Config
    from prefetchd.data.source import Source
    from prefetchd.sampling.order import Order

_SCANNED = 4096  # samples or positions that are looked at between two looks at the clock


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """An open data set.

    Attributes:
        config: its options, with absolute paths and without what changes no sample's place.
        source: it.
        order: which samples are in which batch; `None` where only a look at all images would tell.
        readers: of it, or of each source of a mixture, that fetch encoded images; made at need.
    """

    config: Config
    source: Source
    order: Order | None
    readers: dict[int, ImageSource] = field(default_factory=dict)

    @classmethod
    def open(cls, options: dict[str, Any], folder: str, digest: str) -> Opened:
        """Open the data set that a daemon serves.

        Args:
            options: the daemon's, as on the wire.
            folder: the daemon's working directory, from which its relative paths start.
            digest: the daemon's digest of the data.

        Raises:
            PrefetchdError: if it cannot be opened, or is no longer what the daemon has opened.
        """
        config = make_config(**options)
        paths = {name: getattr(config, name) for name in PATH_OPTIONS}
        absolute: dict[str, Any] = {
            name: os.path.join(folder, os.path.expanduser(path))
            for name, path in paths.items()
            if path is not None and "://" not in path
        }
        if config.mix:
            del absolute["source"]
        config = dataclasses.replace(
            config, **absolute, cache=None, cache_size="auto", cache_image_size=None, cache_format="raw",
            cache_quality=DEFAULT_QUALITY, transform=None, target_transform=None,
        )  # fmt: skip
        if has_sizes := bool(config.bucket_sizes):  # which image is in which bucket takes a look at all of them
            config = dataclasses.replace(config, bucket_sizes=(), bucket_file=None)
        source = open_source(config)
        if source.facts.digest != digest:
            raise ManifestError(
                "cannot tell where samples come from: the data is no longer what the daemon opened; start the daemon "
                "again"
            )
        return cls(config, source, None if has_sizes else plan_order(config, source).order)

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        """The names of the classes of each field that has some, for people; with the option `fields` alone."""
        if not isinstance(self.source, FieldsSource | MixedSource):
            return {}
        return {name: tuple(map(one_line, classes)) for name, classes in self.source.class_names().items()}

    def where(self, sample_id: int) -> str:
        """Return where a sample comes from, in words."""
        if not 0 <= sample_id < self.source.facts.n_samples:
            raise ConfigError(
                f"cannot find the sample {sample_id}: there are {self.source.facts.n_samples}, numbered from 0"
            )
        return self.source.where(sample_id)

    # --- search

    def search(self, text: str, most: int, until_s: float) -> dict[str, Any]:
        """Return samples whose path, or place in words, has `text` in it; those found until a moment of the clock."""
        n, looked_at = self.source.facts.n_samples, 0
        found: list[int] = []
        for first in range(0, n, _SCANNED):
            if len(found) >= most or time.monotonic() > until_s:
                break
            ids = range(first, min(n, first + _SCANNED))
            found += [sample_id for sample_id, place in zip(ids, self._texts(ids), strict=True) if text in place]
            looked_at = ids.stop
        shown = found[:most]
        return {
            "samples": [{"sample_id": sample_id, "where": self.source.where(sample_id)} for sample_id in shown],
            "looked_at": looked_at,
            "n_samples": n,
            "more": len(found) > most or looked_at < n,
        }

    def _texts(self, sample_ids: Sequence[int]) -> Iterable[str]:
        """Return what a search looks at: paths where they are at hand, as they are quicker than words."""
        if isinstance(self.source, ImageSource) and not isinstance(self.source, FieldsSource):
            samples = self.source.records.samples(sample_ids)
            if all(not sample.place for sample in samples):
                return [shown_path(sample.path) for sample in samples]
        return [self.source.where(sample_id) for sample_id in sample_ids]

    def places(self, sample_id: int, epochs: Sequence[int], most: int, until_s: float) -> list[dict[str, Any]]:
        """Return for each epoch the batches and rows that a sample is in, at most `most`, before bad ones are left out.

        An epoch that the time was too short for has `None` in place of a list.
        """
        self.where(sample_id)
        order = self.order
        if order is None:
            raise ConfigError(
                "cannot tell in which batch a sample is: with several image sizes that takes a look at every image; "
                "look through the batches instead"
            )
        answer = []
        for epoch in epochs:
            found = None if time.monotonic() > until_s else _places(order, sample_id, epoch, most, until_s)
            answer.append(
                {"epoch": epoch, "places": None if found is None else [{"batch": b, "row": row} for b, row in found]}
            )
        return answer

    # --- what is in it

    def balance(self, most: int) -> dict[str, Any]:
        """Return how many samples each class has, the most frequent `most` and the rest; `None` for other labels."""
        counted = self._counted()
        if counted is None:
            return {"classes": None, "n_classes": 0, "n_samples": self.source.facts.n_samples}
        names = class_names(self.source)
        rows = [
            {
                "name": one_line(names[number]) if names is not None and 0 <= number < len(names) else str(number),
                "count": count,
            }
            for number, count in counted.most_common(most)
        ]
        empty = 0 if names is None else len(set(range(len(names))) - counted.keys())
        return {
            "classes": rows,
            "n_classes": len(counted) + empty,
            "empty": empty,
            "others": counted.total() - sum(count for _, count in counted.most_common(most)),
            "least": min(counted.values(), default=0),
            "n_samples": self.source.facts.n_samples,
            "of_objects": isinstance(self.source, ImageSource) and isinstance(self.source.records, ObjectRecords),
        }

    def _counted(self) -> Counter[int] | None:
        if isinstance(self.source, ImageSource) and isinstance(self.source.records, ObjectRecords):
            return Counter(dict(enumerate(self.source.records.class_counts().tolist())))
        try:
            labels: NDArray[Any] = label_values(self.source, "class balance")
        except PrefetchdError:
            return None
        if not np.issubdtype(labels.dtype, np.integer):
            return None
        values, counts = np.unique(labels, return_counts=True)
        return Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))

    # --- thumbnails

    def thumbnail(self, sample_id: int, most_px: int) -> bytes:
        """Return a small PNG of a sample's file as it is, at most `most_px` wide and high.

        Raises:
            PrefetchdError: if it has no image that can be decoded.
        """
        from prefetchd.dashboard.thumbnail import draw_thumbnail

        self.where(sample_id)
        return draw_thumbnail(self.config, self.source, sample_id, most_px, self.readers)


def _places(order: Order, sample_id: int, epoch: int, most: int, until_s: float) -> list[tuple[int, int]] | None:
    """Return (batch, row) of a sample in an epoch, at most `most`; `None` if the time is too short."""
    known = order.positions(epoch, np.array([sample_id], np.int64))
    if known is not None:
        places = [divmod(position, order.batch_size) for position in known.tolist() if position < order.n_samples]
        return [(batch, row) for batch, row in places if batch < order.batches_per_epoch]
    found: list[tuple[int, int]] = []
    for batch in range(order.batches_per_epoch):
        if batch % 64 == 0 and time.monotonic() > until_s:
            return None
        ids = order.sample_ids(epoch, batch, 0, order.rows(epoch, batch))
        found += [(batch, row) for row in np.flatnonzero(ids == sample_id).tolist()]
        if len(found) >= most:
            break
    return found[:most]
