"""Images that are inspected and not delivered: a row holds facts in place of pixels. For `prefetchd verify`.

Every sample passes the whole pipeline, as in serving, into a scratch row, so that the same samples are bad here as
there. The facts come from the bytes and the header that the decoder was given: nothing is read or parsed twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace as replace_facts
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Self

from msgspec.structs import replace

from prefetchd.config.options import Config
from prefetchd.data.faults import refuse_larger
from prefetchd.data.images.headers.header import FORMATS, ImageHeader
from prefetchd.data.images.source import ImageSource
from prefetchd.data.records import Records, Sample
from prefetchd.data.source import ReserveMemory, SourceFacts
from prefetchd.ipc.reader_messages import Fault
from prefetchd.ring.layout import FieldLayout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The columns of the one field, int64: the size is as shown, the digest is of the encoded bytes.
FACTS = ("digest", "n_bytes", "width_px", "height_px", "channels", "bits", "format", "progressive", "label")


class InspectedImages(ImageSource):
    """The samples of another `ImageSource`, whose records it borrows; a row is their `FACTS`."""

    _scratch: list[NDArray[Any]]
    _facts: tuple[int, ...] = (0,) * len(FACTS)  # of the latest image

    @classmethod
    def of(cls, images: ImageSource) -> InspectedImages:
        """Return, in the daemon, the inspection of `images`."""
        source = cls(images._config, images._kind, images._records, images._decoder)
        source._dry_run = images._dry_run
        return source

    @classmethod
    def attach(cls, config: Config, handle: dict[str, Any], records: Records, cache_fds: list[int]) -> Self:
        """Return, in a reader, the source whose `handle()` this is; owns the records and `cache_fds`."""
        import numpy as np

        source = super().attach(config, handle, records, cache_fds)
        source._watch(source._note)
        source._scratch = [np.empty((1, *shape), dtype) for shape, dtype in handle["rows"]]
        return source

    def handle(self) -> tuple[dict[str, Any], list[int]]:
        """Plain values and descriptors from which a reader attaches."""
        handle, fds = super().handle()
        rows = [[list(each.shape), each.dtype] for each in super()._fields()]
        return {**handle, "is_inspected": True, "rows": rows}, fds

    @cached_property
    def facts(self) -> SourceFacts:
        """The images' own, with one field in place of theirs; each reader also has the scratch rows."""
        facts = super().facts
        scratch_bytes = sum(each.row_bytes for each in super()._fields())
        return replace_facts(facts, reader_bytes=facts.reader_bytes + scratch_bytes)

    def _fields(self) -> tuple[FieldLayout, ...]:
        """Return one row of `FACTS`."""
        return (FieldLayout("facts", (len(FACTS),), "int64"),)

    def fill(
        self,
        epoch: int,
        sample_ids: NDArray[np.int64],
        rows: Sequence[int],
        arrays: Sequence[NDArray[Any]],
        reserve: ReserveMemory,
    ) -> list[Fault]:
        """Decode each sample and write its facts into its row."""
        faults: list[Fault] = []
        for position, row in enumerate(rows):
            found = super().fill(epoch, sample_ids[position : position + 1], [0], self._scratch, reserve)
            faults += [replace(fault, row=row, detail=fault.detail if len(rows) == 1 else "") for fault in found]
            if not found:
                arrays[0][row] = self._facts
        return faults

    def _note(self, sample: Sample, data: memoryview, header: ImageHeader) -> None:
        """Keep the facts of an image that is about to be decoded.

        Raises:
            RefusedImage: for one that would not fit into its row if it is delivered encoded.
        """
        if (most := self._config.encoded_bytes) is not None:
            refuse_larger(len(data), most)
        height_px, width_px = header.oriented_size
        self._facts = (
            int.from_bytes(blake2b(data, digest_size=8).digest(), "little", signed=True),
            len(data),
            width_px,
            height_px,
            header.channels,
            header.bits,
            FORMATS.index(header.format),
            int(header.progressive),
            sample.label if isinstance(sample.label, int) else -1,
        )
