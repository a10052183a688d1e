"""Images that are looked at and not delivered: a row of facts for each, in place of its pixels. For `prefetchd verify`.

Every sample goes the whole way, as in serving: read, header, limits, decode, place, user's functions. What comes of it
is written to a scratch row and forgotten, so that the same samples are bad here as there; `x` gets what the bytes and
their header say. The facts come from the bytes that the decoder itself was given: nothing is read twice.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from prefetchd.config.options import Config
from prefetchd.data.images.headers.header import FORMATS
from prefetchd.data.images.headers.read import read_header
from prefetchd.data.images.source import ImageSource
from prefetchd.data.records import Records, Sample
from prefetchd.data.registry import attach_images
from prefetchd.data.source import ReserveMemory
from prefetchd.ipc.reader_messages import Fault

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prefetchd.data.files import FileBuffer

# The columns of `x`, int64: the size as shown, and a digest of the encoded bytes.
FACTS = ("digest", "n_bytes", "width_px", "height_px", "channels", "bits", "format", "progressive", "label")
_MAX_TASK_ROWS = 64
_KEPT_FACTS = 1024  # more than are ever read ahead
_ITEM_BYTES = 4  # of the scratch row, at most


class InspectedImages:
    """A `Source` of facts about the samples of an `ImageSource`, which it owns."""

    def __init__(self, images: ImageSource) -> None:
        self.images = images
        self._watched: _WatchedRecords | None = None
        self._scratch: tuple[NDArray[Any], NDArray[Any]] | None = None

    @classmethod
    def attach(cls, config: Config, handle: dict[str, Any], fds: list[int]) -> InspectedImages:
        """Return, in a reader, the source whose `handle()` this is."""
        import numpy as np

        images = attach_images(config, handle["images"], fds, _WatchedRecords)
        source = cls(images)
        assert isinstance(images.records, _WatchedRecords)
        source._watched = images.records
        (x_shape, x_dtype), (y_shape, y_dtype) = images.x, (handle["y_shape"], handle["y_dtype"])
        source._scratch = np.empty((1, *x_shape), x_dtype), np.empty((1, *y_shape), y_dtype)
        return source

    def handle(self) -> tuple[dict[str, Any], list[int]]:
        """Plain values and descriptors from which a reader attaches."""
        images, fds = self.images.handle()
        y_shape, y_dtype = self.images.y
        return {"kind": "inspected", "images": images, "y_shape": list(y_shape), "y_dtype": y_dtype}, fds

    @property
    def n_samples(self) -> int:
        """Samples in the data set."""
        return self.images.n_samples

    @property
    def digest(self) -> str:
        """The images' digest."""
        return self.images.digest

    @property
    def versions(self) -> dict[str, str]:
        """As of the images."""
        return self.images.versions

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names, where labels were text."""
        return self.images.classes

    @property
    def x(self) -> tuple[tuple[int, ...], str]:
        """One row of `FACTS`."""
        return (len(FACTS),), "int64"

    @property
    def y(self) -> tuple[tuple[int, ...], str]:
        """Nothing of use."""
        return (), "int64"

    @property
    def shared_bytes(self) -> int:
        """As of the images."""
        return self.images.shared_bytes

    @property
    def reader_bytes(self) -> int:
        """As of the images, and the scratch row."""
        return self.images.reader_bytes + _ITEM_BYTES * math.prod(self.images.x[0])

    @property
    def max_task_rows(self) -> int:
        """As many faults fit in a message."""
        return _MAX_TASK_ROWS

    @property
    def answers_together(self) -> bool:
        """No, as for images."""
        return False

    @property
    def cache(self) -> None:
        """None: what is looked at is decoded."""

    @property
    def read_s(self) -> float:
        """As of the images."""
        return self.images.read_s

    @property
    def waited_s(self) -> float:
        """As of the images."""
        return self.images.waited_s

    def expect(self, sample_ids: Iterable[int]) -> None:
        """As of the images."""
        self.images.expect(sample_ids)

    def check_unchanged(self) -> None:
        """Raise `ManifestError` if the records are no longer what was opened."""
        self.images.check_unchanged()

    def where(self, sample_id: int) -> str:
        """Where a sample is named, and what it is."""
        return self.images.where(sample_id)

    def confirm(self) -> None:
        """As of the images."""
        self.images.confirm()

    def fill(
        self,
        epoch: int,
        sample_ids: NDArray[np.int64],
        rows: Sequence[int],
        x: NDArray[Any],
        y: NDArray[Any],
        reserve: ReserveMemory,
    ) -> list[Fault]:
        """Decode each sample and write what there is to know of it into its row of `x`."""
        assert self._scratch is not None, "only a reader fills"
        assert self._watched is not None
        faults = []
        for position, row in enumerate(rows):
            found = self.images.fill(epoch, sample_ids[position : position + 1], [0], *self._scratch, reserve)
            for fault in found:
                detail = fault.detail if len(rows) == 1 else ""
                faults.append(
                    Fault(
                        row,
                        fault.sample_id,
                        fault.where,
                        fault.reason,
                        fault.content,
                        fault.needs_fresh_reader,
                        fault.this_epoch,
                        detail,
                    )
                )
            if not found:
                (sample,) = self._watched.samples([int(sample_ids[position])])
                x[row] = self._watched.facts[sample]
        return faults


class _WatchedRecords:
    """Records that note what the bytes are that were read lately; otherwise those that it borrows."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self.facts: dict[Sample, tuple[int, ...]] = {}  # of the latest reads
        self._lock = threading.Lock()  # samples are read ahead in threads

    def read(self, sample: Sample, buffer: FileBuffer, reserve: ReserveMemory) -> memoryview:
        """Return the encoded bytes of `sample`, and note the facts."""
        data = self._records.read(sample, buffer, reserve)
        header = read_header(data)
        if header is not None:
            digest = int.from_bytes(blake2b(data, digest_size=8).digest(), "little", signed=True)
            height_px, width_px = header.oriented_size
            label = int(sample.label) if isinstance(sample.label, int) else -1
            form = FORMATS.index(header.format)
            progressive = int(header.progressive)
            facts = (
                digest,
                len(data),
                width_px,
                height_px,
                header.channels,
                header.bits,
                form,
                progressive,
                label,
            )
            with self._lock:
                self.facts[sample] = facts
                if len(self.facts) > _KEPT_FACTS:
                    del self.facts[next(iter(self.facts))]
        return data

    @property
    def name(self) -> str:
        return self._records.name

    @property
    def digest(self) -> str:
        return self._records.digest

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self._records.classes

    @property
    def label_shape(self) -> tuple[int, ...]:
        return self._records.label_shape

    @property
    def label_dtype(self) -> str:
        return self._records.label_dtype

    @property
    def shared_bytes(self) -> int:
        return self._records.shared_bytes

    @property
    def reader_bytes(self) -> int:
        return self._records.reader_bytes

    @property
    def reads_apart(self) -> bool:
        return self._records.reads_apart

    def __len__(self) -> int:
        return len(self._records)

    def samples(self, sample_ids: Iterable[int]) -> list[Sample]:
        return self._records.samples(sample_ids)

    def where(self, sample: Sample) -> str:
        return self._records.where(sample)

    def check_unchanged(self) -> None:
        self._records.check_unchanged()

    def handle(self) -> tuple[dict[str, Any], list[int]]:
        return self._records.handle()
