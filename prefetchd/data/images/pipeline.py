"""One sample into its row: read -> header -> limits -> decode -> place -> change -> user's function -> values -> erase.

Loaded in readers only (it imports cv2). Each step is checked before it costs anything: a header that claims too many
pixels is refused before they are decoded, and working memory beyond the allowance is reserved before it is taken.
Without augmentation and functions an image is resized straight into its row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from prefetchd.config.augment import parameters
from prefetchd.config.options import Config
from prefetchd.data.faults import SampleFault, UndecodableImage
from prefetchd.data.files import FileBuffer
from prefetchd.data.images import decode
from prefetchd.data.images.boxes import Placement, placement
from prefetchd.data.images.cacheable import KeptImages
from prefetchd.data.images.erasing import Erasing
from prefetchd.data.images.exact import Wanted
from prefetchd.data.images.geometry import Box, Draws, Geometry, GeometryDraws, n_words
from prefetchd.data.images.headers.header import ImageHeader
from prefetchd.data.images.limits import checked_header
from prefetchd.data.images.masks import MaskReader
from prefetchd.data.images.normalize import Normalizer
from prefetchd.data.images.pixel_changes import PixelChanges
from prefetchd.data.images.resample import Placer
from prefetchd.data.images.user_functions import UserFunctions
from prefetchd.data.read_ahead import MASK_PART, ReadAhead
from prefetchd.data.records import Records
from prefetchd.data.source import ReserveMemory
from prefetchd.sampling.randomness import SampleRandomness

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from prefetchd.data.cache.reader_side import CacheInReader
    from prefetchd.data.images.objects import ObjectTarget
    from prefetchd.data.records import Sample

    OnRead = Callable[[Sample, memoryview, ImageHeader], None]
    _Draw = Callable[[tuple[int, int]], Sequence[tuple[Geometry, tuple[int, int]]]]

# Up to this size a kept image is part of every reader's share, as the delivered one is.
_SMALL_IMAGE_BYTES = 1 << 20


class _Decoded(NamedTuple):
    """How the last image was decoded: its header, the reduction, (height, width) then, its geometry and the crop."""

    header: ImageHeader
    reduction: int
    size: tuple[int, int]
    geometry: Geometry
    crop: Box | None


class ImageReader:
    """Loads samples as the configuration says. One thread; a reader has one for each data set.

    Args:
        config: the options.
        records: list the samples and fetch their bytes; borrowed.
        ahead: reads them ahead; borrowed.
        cache: holds kept images, and takes new ones; borrowed.
        objects: writes the target where that is boxes or keypoints.
        part: the number of the part of a sample that is this image, to `ahead`.
        draws: chooses the geometry; that of `augment` if not given.
        buffer: takes files' bytes; one of its own if not given.

    Attributes:
        on_read: called with each image's sample, encoded bytes and header, before the decode.

    Raises:
        ConfigError: if the user's functions cannot be imported.
    """

    on_read: OnRead | None = None

    def __init__(
        self,
        config: Config,
        records: Records,
        ahead: ReadAhead | None = None,
        cache: CacheInReader | None = None,
        objects: ObjectTarget | None = None,
        *,
        part: int = 0,
        draws: Draws | None = None,
        buffer: FileBuffer | None = None,
    ) -> None:
        cv2.setNumThreads(0)
        decode.silence_decoders()
        self._config = config
        self._records = records
        self._ahead = ahead or ReadAhead(records)
        self._buffer = buffer or FileBuffer()
        self._wanted = Wanted.of(config)
        self._normalizer = Normalizer(config)
        self._rng = SampleRandomness(config.seed)
        self._functions = UserFunctions(config, self._rng)
        self._part = part
        self._draws = draws or GeometryDraws(config.augment, config.image_size)
        given = parameters(config.augment)
        self._n_words = n_words(given)
        self._changes = PixelChanges(config.augment, config.image_size, config.color, config.n_channels)
        self._erasing = Erasing(config, self._rng) if "random_erasing" in given else None
        self._placer = Placer(config.image_size, config.resize, config.interpolation)
        self._masks: MaskReader | None = None
        if config.target == "mask":
            self._masks = MaskReader(config, self._ahead, self._buffer, MASK_PART)
        self._objects = objects
        self._decoded: _Decoded | None = None
        self._cache = cache
        is_kept = cache is not None or config.cache_image_size is not None
        self._kept = KeptImages(config) if is_kept else None
        self._is_plain = not (self._n_words or self._functions.has_transform or self._masks or objects)

    def load(
        self,
        sample: Sample,
        sample_id: int,
        epoch: int,
        x: NDArray[Any],
        targets: Sequence[NDArray[Any]],
        reserve: ReserveMemory,
    ) -> SampleFault | None:
        """Write a sample, as it is in `epoch`, into its rows of `x` and `targets`; return its fault if it has one.

        `targets` are `y`, of shape () where a label is a number, or the leaves of `y`.

        Raises:
            MemoryError: if `reserve` does.
            ManifestError: if the records have changed.
        """
        try:
            y = targets[0]
            target = self._load(sample, sample_id, epoch, x, reserve)
            if self._objects is not None:
                self._objects.write(sample.values, *self.placed(), targets)
            elif self._config.target_transform is not None:
                made = self._functions.target(target, epoch, sample_id)
                target = self._functions.as_wanted(made, y.shape, y.dtype)
            elif self._masks is not None and not np.can_cast(target.dtype, y.dtype):
                raise UndecodableImage(
                    f"the mask {sample.label} has 16 bits, and the first mask had 8; write all as one"
                )
        except SampleFault as fault:
            # Its traceback's frames would keep the file's bytes, in a cycle of references.
            return fault.with_traceback(None)
        except cv2.error as error:
            if error.code == cv2.Error.StsNoMem:
                raise MemoryError(f"no memory: {error.err}") from None
            raise
        finally:
            self._buffer.trim()
            reserve(0)
        if self._objects is None:
            y[...] = target
        return None

    def try_out(self, sample: Sample, sample_id: int, reserve: ReserveMemory) -> NDArray[Any]:
        """Return the sample's y as it is in epoch 0, in the shape and dtype that the functions give.

        Raises:
            SampleFault: if the sample is bad.
            MemoryError: if there is not enough memory.
        """
        x = self._empty_x()
        target = self._load(sample, sample_id, 0, x, reserve)
        return self._functions.target(target, 0, sample_id)

    def _empty_x(self) -> Any:
        config = self._config
        shape = (*config.image_size, config.n_channels)
        return np.empty(shape if config.layout == "nhwc" else (shape[2], *shape[:2]), config.dtype)

    def place(
        self, sample: Sample, sample_id: int, units: Sequence[float], x: NDArray[Any], reserve: ReserveMemory
    ) -> tuple[NDArray[Any], Geometry]:
        """Return the sample's pixels as `units` place and jitter them, and their geometry.

        The pixels are `x` itself, or memory that is used again; `deliver` writes them into `x`.
        """
        image, geometry, crop = self._read(sample, sample_id, units, reserve)
        pixels = self._normalizer.canvas(x)
        self._placer.place(image, geometry, crop, pixels)
        if self._changes:
            self._changes.apply(pixels, units)
        return pixels, geometry

    def deliver(self, pixels: NDArray[Any], x: NDArray[Any]) -> None:
        """Write finished pixels, or floating numbers in their place, into `x` as values."""
        if pixels.dtype == self._wanted.dtype:
            self._normalizer.deliver(pixels, x)
        else:
            self._normalizer.deliver_floats(pixels, x)

    def erase(self, x: NDArray[Any], units: Sequence[float], epoch: int, sample_id: int) -> None:
        """Erase a box of the delivered image, if `augment` says so."""
        if self._erasing is not None:
            self._erasing.apply(x, units, epoch, sample_id)

    def _load(self, sample: Sample, sample_id: int, epoch: int, x: NDArray[Any], reserve: ReserveMemory) -> Any:
        """Write the pixels into `x`; return the label, as a numpy scalar or vector, or the mask."""
        if self._is_plain:
            image, _, _ = self._read(sample, sample_id, (), reserve)
            pixels = self._normalizer.canvas(x)
            self._placer.resize(image, pixels)
            self._normalizer.deliver(pixels, x)
            return self._label(sample, sample_id)
        units = self._rng.units(epoch, sample_id, self._n_words) if self._n_words else ()
        pixels, geometry = self.place(sample, sample_id, units, x, reserve)
        mask = None
        if self._masks is not None:
            mask = self._masks.read(sample, sample_id, geometry, reserve, str(sample.label))
        if not self._functions.has_transform:
            self._normalizer.deliver(pixels, x)
        else:
            values, turned = self._functions.transform(
                pixels, epoch, sample_id, mask if self._functions.takes_masks else None
            )
            mask = mask if turned is None else turned
            self.deliver(values.reshape(pixels.shape) if values.dtype == pixels.dtype else values, x)
        self.erase(x, units, epoch, sample_id)
        return self._label(sample, sample_id) if mask is None else mask

    def _read(
        self, sample: Sample, sample_id: int, units: Sequence[float], reserve: ReserveMemory
    ) -> tuple[NDArray[Any], Geometry, Box | None]:
        """Return the decoded image, the geometry that `units` give it, and its crop in the decoded image."""

        def draw(full_size: tuple[int, int]) -> list[tuple[Geometry, tuple[int, int]]]:
            return [(self._draws.draw(units, full_size), self._config.image_size)]

        image, [(geometry, crop)] = self._read_once(sample, sample_id, draw, reserve)
        return image, geometry, crop

    def _read_once(
        self, sample: Sample, sample_id: int, draw: _Draw, reserve: ReserveMemory
    ) -> tuple[NDArray[Any], list[tuple[Geometry, Box | None]]]:
        """Return the decoded image, and each geometry that `draw` gives it, with its crop in the decoded image.

        `draw` gets the size (height, width) of the upright image and returns geometries, each with the size of what is
        delivered of it. All are in the pixels that are decoded, and none has to enlarge what a reduction left.
        """
        config = self._config
        if self._kept is not None:
            image = self._kept_image(self._kept, sample, sample_id, reserve)
            return image, [(geometry, geometry.crop) for geometry, _ in draw(image.shape[:2])]
        data, header = self._encoded(sample, sample_id, reserve)
        drawn = draw(header.oriented_size)
        crops = [geometry.crop for geometry, _ in drawn]
        reduction = 1
        if config.shrink_on_load:
            reduction = min(
                decode.choose_reduction(header, *size, config.resize, crop[2:] if crop is not None else None)
                for crop, (_, size) in zip(crops, drawn, strict=True)
            )
        bottoms = [crop[0] + crop[2] for crop in crops if crop is not None]
        n_rows = header.height_px
        if len(bottoms) == len(crops):
            # The crops in the decoded image end there or above.
            n_rows = decode.rows_to_decode(header, reduction, -(-max(bottoms) // reduction))
        working_bytes = self._wanted.working_bytes(header, len(data), reduction)
        self._ahead.make_room(working_bytes)
        reserve(working_bytes)
        image = self._wanted.decode(data, header, reduction=reduction, n_rows=n_rows)
        height, width = image.shape[:2]
        if height == -(-n_rows // reduction):
            height = -(-header.height_px // reduction)  # of all rows, decoded or not
        placed = [(geometry, geometry.reduced_crop(reduction, height, width)) for geometry, _ in drawn]
        self._decoded = _Decoded(header, reduction, image.shape[:2], *placed[0])
        return image, placed

    def placed(self) -> tuple[ImageHeader, Placement]:
        """Return the header of the image that was placed last, which was no kept one, and where it went."""
        assert self._decoded is not None
        header, reduction, (height, width), geometry, crop = self._decoded
        shown, region = self._placer.shown(height, width, crop)
        scale = 1 / reduction, 1 / reduction
        return header, placement(geometry, shown, region, self._config.image_size, scale)

    def _kept_image(self, kept: KeptImages, sample: Sample, sample_id: int, reserve: ReserveMemory) -> NDArray[Any]:
        """Return the image that is the same in every epoch, from the cache or decoded for it."""
        if self._cache is not None:
            self._ahead.make_room(kept.n_bytes)  # of a row that is read
            reserve(kept.n_bytes)
            found = self._cache.row(sample_id)
            if found is None:
                if not sample.path:  # it was in the cache, and its row is gone
                    sample = self._records.samples([sample_id])[0]
                found = self._cache.find(sample, sample_id, kept.one_size)
            image = None if found is None else kept.pixels(found)
            if image is not None:
                return image
        data, header = self._encoded(sample, sample_id, reserve)
        reduction = kept.reduction(header) if self._config.shrink_on_load else 1
        working = self._wanted.working_bytes(header, len(data), reduction)
        working += kept.n_bytes if kept.n_bytes > _SMALL_IMAGE_BYTES else 0
        self._ahead.make_room(working)
        reserve(working)
        row = kept.row(kept.make(self._wanted.decode(data, header, reduction=reduction)))
        if self._cache is not None:
            self._cache.store(sample, sample_id, row, self._ahead.began_ns)
        image = kept.pixels(row)
        if image is None:
            raise MemoryError(f"no memory to decode a kept image of {len(row)} bytes")
        return image

    def _encoded(self, sample: Sample, sample_id: int, reserve: ReserveMemory) -> tuple[memoryview, ImageHeader]:
        """Return the encoded bytes of the sample's image, and their header."""
        data = self._ahead.read(sample_id, sample, self._buffer, reserve, self._part)
        header = checked_header(data, self._config, self._wanted)
        if self.on_read is not None:
            self.on_read(sample, data, header)
        return data, header

    def _label(self, sample: Sample, sample_id: int) -> Any:
        label = sample_id if sample.label is None else sample.label
        return label if self._config.target_transform is None else np.asarray(label, self._records.label_dtype)[()]
