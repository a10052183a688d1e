"""Image files named by a manifest: line -> read -> decode -> row of the batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prefetchd.config import Config
from prefetchd.faults import FaultKind
from prefetchd.manifest import Manifest, Sample
from prefetchd.messages import Fault, TrialDone
from prefetchd.sources.base import ReserveMemory

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.sources.image_files import ImageReader


_SAID_CHARACTERS = 400  # of a path or a reason, in a report of faults


class ImageSource:
    """Photographs in files. The daemon needs its manifest only; the decoder is loaded in readers."""

    def __init__(self, config: Config, manifest: Manifest, decoder: str) -> None:
        self._config = config
        self._manifest = manifest
        self._decoder = decoder
        self._reader: ImageReader | None = None
        self._trial: TrialDone | None = None

    @classmethod
    def open(cls, config: Config) -> ImageSource:
        """Open the manifest and check every line; with users' functions or masks, try them on a sample."""
        from importlib.metadata import version

        source = cls(config, Manifest.open(config), f"opencv {version('opencv-python-headless')}")
        if config.transform is not None or config.target_transform is not None or config.target == "mask":
            from prefetchd.trial_parent import run_trial

            source._trial = run_trial(config, *source.handle())
        return source

    @classmethod
    def attach(cls, config: Config, handle: dict[str, Any], fds: list[int]) -> ImageSource:
        """Attach to the daemon's manifest, in a reader."""
        from prefetchd.sources.image_files import ImageReader

        source = cls(config, Manifest.attach(handle["manifest"], fds), handle["decoder"])
        source._reader = ImageReader(config, source._manifest.label_dtype)
        return source

    def try_out(self, sample_id: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return x and y of one sample, as they come, in the trial process; raises as `ImageReader.try_out` does."""
        assert self._reader is not None, "only a reader tries"
        return self._reader.try_out(self._manifest.sample(sample_id), sample_id)

    def handle(self) -> tuple[dict[str, Any], list[int]]:
        """Plain values and descriptors from which a reader attaches."""
        manifest, fds = self._manifest.handle()
        return {"manifest": manifest, "decoder": self._decoder}, fds

    @property
    def n_samples(self) -> int:
        """Lines of the manifest that name a sample."""
        return len(self._manifest)

    @property
    def digest(self) -> str:
        """The manifest's digest."""
        return self._manifest.digest

    @property
    def content_digest(self) -> str:
        """Digest of the content options, the decoder's version, and the code of the users' functions."""
        code = {} if self._trial is None else self._trial.code
        return self._config.digest(decoder=self._decoder, **code)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names, sorted, where labels were text."""
        return self._manifest.classes

    @property
    def x(self) -> tuple[tuple[int, ...], str]:
        """(height, width, channels) or (channels, height, width), and the dtype."""
        height, width = self._config.image_size
        channels = self._config.channels
        shape = (height, width, channels) if self._config.layout == "nhwc" else (channels, height, width)
        return shape, self._config.dtype

    @property
    def y(self) -> tuple[tuple[int, ...], str]:
        """() or (k,), and int64 or float32; of masks and `target_transform`, what the trial found."""
        if self._trial is not None:
            return tuple(self._trial.y_shape), self._trial.y_dtype
        return self._manifest.label_shape, self._manifest.label_dtype

    @property
    def shared_bytes(self) -> int:
        """The manifest's index, and the listing of a directory: memfds."""
        return sum(os.fstat(fd).st_blocks * 512 for fd in self._manifest.handle()[1] if _is_memfd(fd))

    @property
    def reader_bytes(self) -> int:
        """Memory that the users' functions take in each reader, as the trial found."""
        return 0 if self._trial is None else self._trial.reader_bytes

    def check_unchanged(self) -> None:
        """Raise `ManifestError` if the manifest's file is no longer what was opened."""
        self._manifest.check_unchanged()

    def where(self, sample_id: int) -> str:
        """Manifest, line and path of a sample."""
        return self._where(self._manifest.sample(sample_id))

    def fill(
        self,
        epoch: int,
        sample_ids: Sequence[int],
        rows: Sequence[int],
        x: NDArray[Any],
        y: NDArray[Any],
        reserve: ReserveMemory,
    ) -> list[Fault]:
        """Read, decode and write each sample into its row."""
        assert self._reader is not None, "only a reader fills"
        faults = []
        for sample_id, row, sample in zip(sample_ids, rows, self._manifest.samples(sample_ids), strict=True):
            fault = self._reader.load(sample, int(sample_id), epoch, x[row], y[row, ...], reserve)
            if fault is not None:
                faults.append(
                    Fault(
                        row=row,
                        sample_id=int(sample_id),
                        where=self._where(sample),
                        reason=fault.reason[:_SAID_CHARACTERS],
                        content=fault.kind is FaultKind.CONTENT,
                        needs_fresh_reader=fault.needs_fresh_reader,
                        this_epoch=fault.this_epoch,
                        detail=fault.detail if len(rows) == 1 else "",
                    )
                )
        return faults

    def _where(self, sample: Sample) -> str:
        path = sample.path.encode("utf-8", "backslashreplace").decode()
        if len(path) > _SAID_CHARACTERS:
            path = "..." + path[-_SAID_CHARACTERS:]
        return f"{self._manifest.name} line {sample.line}: {path}" if sample.line else path


def _is_memfd(fd: int) -> bool:
    return os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:")
