"""The source of samples with fields: an `ImageSource` whose rows have as many arrays as the fields ask for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from prefetchd.config.fields import parse_fields
from prefetchd.data.faults import SampleFault
from prefetchd.data.fields.layouts import leaves_of
from prefetchd.data.images.bucketed import ReadersByShape
from prefetchd.data.images.source import ImageSource
from prefetchd.data.read_ahead import ReadAhead
from prefetchd.ring.layout import BatchLayout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.options import Config
    from prefetchd.data.cache.reader_side import CacheInReader
    from prefetchd.data.cache.several import SeveralCaches
    from prefetchd.data.fields.sample import SampleReader
    from prefetchd.data.files import FileBuffer
    from prefetchd.data.images.pipeline import OnRead
    from prefetchd.data.records import Records, RecordsWithFields, Sample
    from prefetchd.data.source import ReserveMemory
    from prefetchd.ipc.reader_messages import Fault
    from prefetchd.ring.layout import FieldLayout


_SCRATCH_IMAGES = 2  # of each field: pixels before they are values, and what a transform is given


class FieldsSource(ImageSource):
    """A `Source` of samples with fields."""

    _records: RecordsWithFields
    _sample_reader: SampleReader
    _readers_by_shape: ReadersByShape[SampleReader] | None = None

    @classmethod
    def attach(cls, config: Config, handle: dict[str, Any], records: Records, cache_fds: list[int]) -> Self:
        """Return, in a reader, the source whose `handle()` this is; owns the attached records and `cache_fds`."""
        from prefetchd.data.fields.sample import SampleReader

        source = cls(config, handle["kind"], records, handle["decoder"])
        caches: dict[int, CacheInReader] = {}
        if handle["cache"] is not None:
            from prefetchd.data.fields.cached import FieldCache

            cached = source._cached_fields()
            for number, facts, n_fds in handle["cache"]["fields"]:
                fds, cache_fds = cache_fds[:n_fds], cache_fds[n_fds:]
                caches[number] = cache = FieldCache(source._records, number, facts, fds, cached[number])
                source._ahead.known[number] = cache.knows
                if records.is_far:
                    cache.object_state = records.object_state
                    source._ahead.skips[number] = cache.may_have

        def make(own: Config) -> SampleReader:
            return SampleReader(own, source._records, source._ahead, caches)

        if config.bucket_sizes:
            number = source._first_image_array(config)
            source._readers_by_shape = ReadersByShape(config, source._fields_with, make, number)
        else:
            source._sample_reader = make(config)
        return source

    def _watch(self, on_read: OnRead) -> None:
        """Have the first image of each sample reported before it is decoded, in a reader."""
        self._sample_reader.watch(on_read)

    def _cached_fields(self) -> dict[int, Config]:
        from prefetchd.data.fields.cached import cached_fields

        return cached_fields(self._config, parse_fields(self._config.fields), self._records.fields)

    def _check_cache(self) -> None:
        """Raise `ConfigError` where the options of the cache contradict the others, or the fields."""
        self._cached_fields()

    def _open_cache(self) -> SeveralCaches:
        from prefetchd.data.cache.daemon_side import CacheInDaemon
        from prefetchd.data.cache.several import SeveralCaches

        n_samples = len(self._records)
        cached = self._cached_fields()
        return SeveralCaches(
            {number: CacheInDaemon(own, self._decoder, n_samples, (), "int64") for number, own in cached.items()}
        )

    def _read_ahead(self) -> ReadAhead:
        """Return what reads ahead: each field of encoded bytes, in the order of the fields."""

        def fetch(number: int, sample: Sample, buffer: FileBuffer, reserve: ReserveMemory) -> memoryview:
            return self._records.fetch(sample, number, buffer, reserve)

        facts = self._records.fields
        return ReadAhead(
            self._records, {number: partial(fetch, number) for number, each in enumerate(facts) if each.is_encoded}
        )

    def _fields_with(self, config: Config) -> tuple[FieldLayout, ...]:
        """Return the arrays of all fields, with the size of `config`."""
        fields, facts = parse_fields(config.fields), self._records.fields
        leaves = [
            leaves_of(name, field, each, config) for (name, field), each in zip(fields.items(), facts, strict=True)
        ]
        return tuple(leaf for each in leaves for leaf in each)

    @property
    def _image_part(self) -> int:
        """The number of the first image, which decides the bucket."""
        return [field.kind for field in parse_fields(self._config.fields).values()].index("image")

    def _first_image_array(self, config: Config) -> int:
        """Return the number of the array with the first image."""
        name = list(parse_fields(config.fields))[self._image_part]
        return [each.name for each in self._fields_with(config)].index(name)

    def class_names(self) -> dict[str, tuple[str, ...]]:
        """Return the names of the classes of each label that was text, in the daemon."""
        names = parse_fields(self._config.fields)
        facts = zip(names, self._records.fields, strict=True)
        return {name: each.classes for name, each in facts if each.classes is not None}

    @property
    def _scratch_bytes(self) -> int:
        """Bytes of scratch images beyond the first one, which the allowance of every reader holds."""
        fields = self._fields()
        more = fields if self._config.bucket_sizes else ()  # there are the readers of two sizes at a time
        return _SCRATCH_IMAGES * sum(each.row_bytes for each in (*fields[1:], *more))

    def try_out(self, sample_id: int, reserve: ReserveMemory) -> NDArray[Any]:
        """Load one sample, in the dry run; the fields say what it delivers."""
        layout = BatchLayout(1, self._fields())
        arrays = layout.arrays(np.empty(layout.slot_bytes, np.uint8), 1)
        self._reader_of(arrays).load(self._records.samples([sample_id])[0], sample_id, 0, 0, arrays, reserve)
        return np.zeros((), np.int64)

    def _reader_of(self, arrays: Sequence[NDArray[Any]]) -> SampleReader:
        return self._sample_reader if self._readers_by_shape is None else self._readers_by_shape.of(arrays)

    def _load_all(
        self,
        epoch: int,
        sample_ids: NDArray[np.int64],
        rows: Sequence[int],
        samples: Sequence[Sample],
        arrays: Sequence[NDArray[Any]],
        reserve: ReserveMemory,
    ) -> list[Fault]:
        faults = []
        reader = self._reader_of(arrays)
        for sample_id, row, sample in zip(sample_ids, rows, samples, strict=True):
            try:
                reader.load(sample, int(sample_id), epoch, row, arrays, reserve)
            except SampleFault as fault:
                faults.append(self._report(fault, row, int(sample_id), is_alone=len(rows) == 1))
        return faults
