"""One sample with fields into its row: each field is loaded, the user's function sees them all, each is written.

Loaded in readers only. The first image comes first, since it draws the geometry of all others. A fault of a field names
it. Fields are read one after another, so that working memory is that of the largest and not of all together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2

from prefetchd.config.augment import parameters
from prefetchd.config.fields import parse_fields
from prefetchd.data.faults import SampleFault
from prefetchd.data.fields.layouts import leaves_of
from prefetchd.data.fields.objects import ObjectsPart
from prefetchd.data.fields.parts import BytesPart, Draw, Encoded, NumbersPart, Part
from prefetchd.data.fields.pixels import ImagePart, MaskPart, SharedGeometry
from prefetchd.data.files import FileBuffer
from prefetchd.data.images import decode
from prefetchd.data.images.geometry import n_words
from prefetchd.data.images.user_functions import UserFunctions
from prefetchd.sampling.randomness import SampleRandomness

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.options import Config
    from prefetchd.data.cache.reader_side import CacheInReader
    from prefetchd.data.images.boxes import Placement
    from prefetchd.data.images.headers.header import ImageHeader
    from prefetchd.data.images.pipeline import OnRead
    from prefetchd.data.read_ahead import ReadAhead
    from prefetchd.data.records import RecordsWithFields, Sample
    from prefetchd.data.source import ReserveMemory


class SampleReader:
    """Loads samples with fields as the configuration says. One thread; a reader has one for each data set.

    Args:
        config: the options.
        records: list the samples and fetch their bytes; borrowed.
        ahead: reads them ahead; borrowed.
        caches: of kept images, by the number of the field; borrowed.

    Raises:
        ConfigError: if the user's function cannot be imported.
    """

    def __init__(
        self,
        config: Config,
        records: RecordsWithFields,
        ahead: ReadAhead,
        caches: dict[int, CacheInReader] | None = None,
    ) -> None:
        cv2.setNumThreads(0)
        decode.silence_decoders()
        fields = parse_fields(config.fields)
        self._rng = SampleRandomness(config.seed)
        self._functions = UserFunctions(config, self._rng)
        self._buffer = FileBuffer()
        given = parameters(config.augment)
        self._n_words = n_words(given)
        first = next((name for name, field in fields.items() if field.kind == "image"), None)
        shared = SharedGeometry(config.augment, (first is not None and fields[first].size) or config.image_size)
        self._parts: dict[str, tuple[Part, slice]] = {}
        at = 0
        for number, (name, field) in enumerate(fields.items()):
            facts = records.fields[number]
            end = at + len(leaves_of(name, field, facts, config))
            encoded = Encoded(number, ahead, self._buffer)
            part: Part
            match field.kind:
                case "image":
                    cache = (caches or {}).get(number)
                    part = ImagePart(
                        field, number, config, records, ahead, self._buffer, shared, cache, is_first=name == first
                    )
                case "mask":
                    part = MaskPart(field, number, config, ahead, self._buffer, shared)
                case "boxes" | "keypoints":
                    part = ObjectsPart(field, number, config, facts, self._placed)
                case "text" | "bytes":
                    part = BytesPart(field, number, facts, encoded)
                case _:
                    part = NumbersPart(number, facts, encoded)
            self._parts[name] = part, slice(at, end)
            at = end
        self._in_turn = sorted(self._parts, key=lambda name: name != first)  # masks need the first image's geometry

    def _placed(self) -> tuple[ImageHeader, Placement]:
        """Return the header of the first image, and where it went; masks and objects are loaded after it."""
        first = self._parts[self._in_turn[0]][0]
        assert isinstance(first, ImagePart), "there is a field of kind image"
        return first.reader.placed()

    def watch(self, on_read: OnRead) -> None:
        """Have the first image of each sample reported before it is decoded."""
        for part, _ in self._parts.values():
            if isinstance(part, ImagePart):
                part.reader.on_read = on_read
                return

    def load(
        self,
        sample: Sample,
        sample_id: int,
        epoch: int,
        row: int,
        arrays: Sequence[NDArray[Any]],
        reserve: ReserveMemory,
    ) -> None:
        """Write a sample, as it is in `epoch`, into `row` of `arrays`.

        Raises:
            SampleFault: if it is bad.
            MemoryError: if `reserve` does.
            ManifestError: if the records have changed.
        """
        units = self._rng.units(epoch, sample_id, self._n_words) if self._n_words else ()
        draw = Draw(epoch, sample_id, units)
        rows = [array[row, ...] for array in arrays]
        name = ""
        try:
            for name in self._in_turn:
                part, places = self._parts[name]
                part.load(sample, draw, rows[places], reserve)
            name = ""
            if self._functions.has_transform:
                shown = {each: part.shown() for each, (part, _) in self._parts.items()}
                taking = {each: part.take for each, (part, _) in self._parts.items()}
                self._functions.transform_sample(shown, taking, epoch, sample_id)
            for part, _ in self._parts.values():
                part.finish()
        except SampleFault as fault:
            fault.reason = f"field {name}: {fault.reason}" if name else fault.reason
            raise fault.with_traceback(None) from None
        except cv2.error as error:
            if error.code == cv2.Error.StsNoMem:
                raise MemoryError(f"no memory: {error.err}") from None
            raise
        finally:
            self._buffer.trim()
            reserve(0)
