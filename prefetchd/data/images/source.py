"""The source of encoded images, listed by records of any kind (a manifest, tar shards, Parquet files).

The daemon opens it, and needs the records only; readers attach, and load the decoder. It owns the records, the cache
and the reads ahead: they end with the process that holds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, cast

from prefetchd.config.options import Config
from prefetchd.config.views import groups
from prefetchd.data.cache.keys import check_cache, row_channels
from prefetchd.data.faults import FaultKind, SampleFault
from prefetchd.data.images.bucketed import ReadersByShape, bucket_configs, put_into_buckets
from prefetchd.data.images.objects import object_fields
from prefetchd.data.read_ahead import MASK_PART, ReadAhead
from prefetchd.data.records import Records, RecordsWithMasks
from prefetchd.data.source import Bucketing, ReserveMemory, SourceFacts
from prefetchd.data.table.object_records import ObjectRecords
from prefetchd.errors import one_line
from prefetchd.ipc.reader_messages import DryRunDone, Fault
from prefetchd.ring.layout import FieldLayout, xy_fields

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prefetchd.data.cache.daemon_side import CacheInDaemon
    from prefetchd.data.cache.reader_side import CacheInReader
    from prefetchd.data.cache.several import SeveralCaches
    from prefetchd.data.images.cacheable import CachedRows
    from prefetchd.data.images.pipeline import ImageReader, OnRead
    from prefetchd.data.records import Sample


_MAX_TASK_ROWS = 64
_SCRATCH_IMAGES = 3  # of the placer, and of the normalizer with `nchw`
_REASON_CHARACTERS = 400  # in a report of faults


class ImageSource:
    """A `Source` of images.

    Args:
        config: the options.
        kind: which class of records it has, as the registry names it.
        records: list the samples; owned.
        decoder: name and version of the decoder, for the digest.
    """

    def __init__(self, config: Config, kind: str, records: Records, decoder: str) -> None:
        self._config = config
        self._kind = kind
        self._records = records
        self._decoder = decoder
        self._reader: ImageReader | None = None
        self._by_shape: ReadersByShape[ImageReader] | None = None
        self._ahead = self._read_ahead()
        self._cache: CacheInDaemon | SeveralCaches | None = None
        self._rows: CachedRows | None = None
        self._dry_run: DryRunDone | None = None

    def _read_ahead(self) -> ReadAhead:
        """Return what reads ahead: each sample's image, then its mask if it has one."""
        if self._config.target != "mask":
            return ReadAhead(self._records)
        records = cast(RecordsWithMasks, self._records)  # other kinds are refused with masks
        return ReadAhead(records, {0: records.read, MASK_PART: records.read_label})

    @classmethod
    def open(cls, config: Config, kind: str, records: Records) -> Self:
        """Return, in the daemon, the source of the images that `records` list.

        Users' functions and masks are tried on a sample first.

        Raises:
            ConfigError: if the options contradict each other, or the functions cannot be used.
        """
        from importlib.metadata import version

        source = cls(config, kind, records, f"opencv {version('opencv-python-headless')}")
        source._check_cache()
        if config.transform is not None or config.target_transform is not None or config.target == "mask":
            from prefetchd.data.images.dry_run import dry_run

            source._dry_run = dry_run(config, *source.handle())
        if config.cache is not None:
            source._cache = source._open_cache()
        return source

    def _check_cache(self) -> None:
        """Raise `ConfigError` where the options of the cache contradict the others."""
        check_cache(self._config)

    def open_cache(self) -> CacheInDaemon | SeveralCaches:
        """Return the cache that the options name, for all readers; the caller owns it.

        Raises:
            ConfigError: if what is served cannot be cached.
            CacheError: if the folder cannot be used.
        """
        self._check_cache()
        return self._open_cache()

    def _open_cache(self) -> CacheInDaemon | SeveralCaches:
        from prefetchd.data.cache.daemon_side import CacheInDaemon

        records = self._records
        return CacheInDaemon(self._config, self._decoder, len(records), tuple(records.label_shape), records.label_dtype)

    @classmethod
    def attach(cls, config: Config, handle: dict[str, Any], records: Records, cache_fds: list[int]) -> Self:
        """Return, in a reader, the source whose `handle()` this is; owns the attached records and `cache_fds`."""
        source = cls(config, handle["kind"], records, handle["decoder"])
        cache = None
        if handle["cache"] is not None:
            from prefetchd.data.cache.reader_side import CacheInReader
            from prefetchd.data.images.cacheable import CachedRows

            cache = CacheInReader(
                handle["cache"], cache_fds, config.image_size, row_channels(config), config.pixel_dtype
            )
            source._rows = CachedRows(config, cache, records)
            if records.is_far:
                cache.object_state = records.object_state
                source._ahead.skips[0] = cache.may_have
        if config.bucket_sizes:
            source._by_shape = ReadersByShape(config, source._fields_with, lambda own: source._make_reader(own, cache))
        else:
            source._reader = source._make_reader(config, cache)
        return source

    def _make_reader(self, config: Config, cache: CacheInReader | None) -> ImageReader:
        """Return, in a reader, what loads samples."""
        from prefetchd.data.images.pipeline import ImageReader

        objects = None
        if isinstance(self._records, ObjectRecords):
            from prefetchd.data.images.objects import ObjectTarget

            objects = ObjectTarget(config, self._records.objects)
        return ImageReader(config, self._records, self._ahead, cache, objects)

    def _watch(self, on_read: OnRead) -> None:
        """Have each image reported before it is decoded, in a reader."""
        assert self._reader is not None
        self._reader.on_read = on_read

    @property
    def records(self) -> Records:
        """The records; they stay the source's."""
        return self._records

    def try_out(self, sample_id: int, reserve: ReserveMemory) -> NDArray[Any]:
        """Return y of one sample, in the dry run; raises as `ImageReader.try_out` does."""
        if self._reader is None:
            self._reader = self._make_reader(self._config, None)
        return self._reader.try_out(self._records.samples([sample_id])[0], sample_id, reserve)

    def handle(self) -> tuple[dict[str, Any], list[int]]:
        """Plain values and descriptors from which a reader attaches."""
        records, fds = self._records.handle()
        cache, cache_fds = (None, []) if self._cache is None else self._cache.handle()
        facts = {"kind": self._kind, "records": records, "decoder": self._decoder, "cache": cache}
        return {**facts, "n_cache_fds": len(cache_fds)}, [*fds, *cache_fds]

    @cached_property
    def facts(self) -> SourceFacts:
        """What never changes; once the dry run was made and the cache is open."""
        records, dry_run = self._records, self._dry_run
        return SourceFacts(
            n_samples=len(records),
            digest=records.digest,
            versions={"decoder": self._decoder, **({} if dry_run is None else dry_run.code)},
            fields=self._fields(),
            bucket_fields=tuple(map(self._fields_with, bucket_configs(self._config))),
            classes=records.classes,
            shared_bytes=records.shared_bytes + (0 if self._cache is None else self._cache.shared_bytes),
            reader_bytes=records.reader_bytes + (0 if dry_run is None else dry_run.reader_bytes) + self._scratch_bytes,
            max_task_rows=_MAX_TASK_ROWS,
            is_far=records.is_far,
            answers_together=False,  # after a quick image may come a slow one, or a function that hangs
        )

    def _fields(self) -> tuple[FieldLayout, ...]:
        """Return the arrays of a batch; with buckets, of one of the largest size."""
        return self._fields_with(self._config)

    def _fields_with(self, config: Config) -> tuple[FieldLayout, ...]:
        """Return x, (height, width, channels) or (channels, height, width), and y, with the size of `config`.

        A label is () or (k,), int64 or float32; with masks or `target_transform` the dry run has found what it is.
        """
        shape = (*config.image_size, config.n_channels)
        x = (shape if config.layout == "nhwc" else (shape[2], *shape[:2])), config.dtype
        if self._dry_run is not None:
            is_mask = config.target == "mask" and config.target_transform is None
            y_shape = config.image_size if is_mask and not config.views else tuple(self._dry_run.y_shape)
            return xy_fields(x, (y_shape, self._dry_run.y_dtype))
        if isinstance(self._records, ObjectRecords):
            return FieldLayout("x", *x), *object_fields(config, self._records.objects)
        return xy_fields(x, (self._records.label_shape, self._records.label_dtype))

    def put_into_buckets(self) -> Bucketing:
        """Return the bucket of each image, after a look at the headers of those whose sizes are not kept."""
        return put_into_buckets(self._config, *self.handle(), len(self._records), self._image_part)

    @property
    def _image_part(self) -> int:
        """The number of the field whose image decides the bucket; -1 where a sample has one image."""
        return -1

    @property
    def cache(self) -> CacheInDaemon | SeveralCaches | None:
        """The cache of decoded samples, in the daemon."""
        return self._cache

    @property
    def read_s(self) -> float:
        """Seconds that a read takes, if reads are slow; else 0."""
        return self._ahead.read_s

    @property
    def waited_s(self) -> float:
        """Seconds spent waiting for reads so far."""
        return self._ahead.waited_s

    def expect(self, sample_ids: Iterable[int]) -> None:
        """Begin to read these samples' images and masks, if reads are slow and the cache does not have them."""
        if self._rows is not None and self._ahead.read_s:
            sample_ids = self._rows.unknown(sample_ids)
        self._ahead.expect(sample_ids)

    @property
    def _scratch_bytes(self) -> int:
        """Bytes of scratch images beyond those of three bytes a pixel, which the allowance of every reader holds."""
        pixels = sum(height * width for height, width in {group.size for group in groups(self._config)})
        pixel_bytes = self._config.n_channels * {"uint8": 1, "uint16": 2, "float32": 4}[self._config.pixel_dtype]
        if self._config.views:
            return _SCRATCH_IMAGES * pixels * pixel_bytes
        more = pixel_bytes if self._config.bucket_sizes else 0  # there are the readers of two sizes at a time
        return _SCRATCH_IMAGES * pixels * (max(0, pixel_bytes - 3) + more)

    def check_unchanged(self) -> None:
        """Raise `ManifestError` if the records are no longer what was opened."""
        self._records.check_unchanged()

    def where(self, sample_id: int) -> str:
        """Say where a sample is listed, and what it is."""
        return self._records.where(self._records.samples([sample_id])[0])

    def confirm(self) -> None:
        """Do nothing: the records are checked as each sample's line is read."""

    def fill(
        self,
        epoch: int,
        sample_ids: NDArray[np.int64],
        rows: Sequence[int],
        arrays: Sequence[NDArray[Any]],
        reserve: ReserveMemory,
    ) -> list[Fault]:
        """Read, decode and write each sample into its row."""
        asked_for = sample_ids
        try:
            if self._rows is None:
                samples: Sequence[Sample] = self._records.samples(sample_ids)
            else:
                sample_ids, rows, samples = self._rows.fill(sample_ids, rows, arrays[0], arrays[-1])
            return self._load_all(epoch, sample_ids, rows, samples, arrays, reserve)
        finally:
            self._ahead.pass_over(asked_for)

    def _row(self, arrays: Sequence[NDArray[Any]], row: int) -> tuple[Any, list[NDArray[Any]]]:
        """Return a row of x, and of y or its leaves, as the reader takes them."""
        x, *targets = arrays
        return x[row], [target[row, ...] for target in targets]

    def _load_all(
        self,
        epoch: int,
        sample_ids: NDArray[np.int64],
        rows: Sequence[int],
        samples: Sequence[Sample],
        arrays: Sequence[NDArray[Any]],
        reserve: ReserveMemory,
    ) -> list[Fault]:
        reader = self._reader if self._by_shape is None else self._by_shape.of(arrays)
        assert reader is not None, "only in a process that attached"
        faults = []
        for sample_id, row, sample in zip(sample_ids, rows, samples, strict=True):
            x, targets = self._row(arrays, row)
            fault = reader.load(sample, int(sample_id), epoch, x, targets, reserve)
            if fault is not None:
                faults.append(self._report(fault, row, int(sample_id), is_alone=len(rows) == 1))
        return faults

    def _report(self, fault: SampleFault, row: int, sample_id: int, *, is_alone: bool) -> Fault:
        """Return the report of a sample's fault; tracebacks of many rows would not fit in a message."""
        return Fault(
            row=row,
            sample_id=sample_id,
            where=self.where(sample_id),
            reason=one_line(fault.reason)[:_REASON_CHARACTERS],
            content=fault.kind is FaultKind.CONTENT,
            needs_fresh_reader=fault.needs_fresh_reader,
            this_epoch=fault.this_epoch,
            detail=fault.detail if is_alone else "",
        )
