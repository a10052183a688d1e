"""Image files named by a manifest: line -> read -> decode -> row of the batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prefetchd.config import Config
from prefetchd.faults import FaultKind
from prefetchd.manifest import Manifest, Sample
from prefetchd.messages import Fault
from prefetchd.sources.applicable import (
    ARRAY_OPTIONS,
    SEQUENCE_OPTIONS,
    refuse_given,
)
from prefetchd.sources.base import ReserveMemory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prefetchd.sources.image_files import ImageReader


_MAX_TASK_ROWS = 64
_SAID_CHARACTERS = 400  # of a path or a reason, in a report of faults


class ImageSource:
    """Photographs in files. The daemon needs its manifest only; the decoder is loaded in readers."""

    def __init__(self, config: Config, manifest: Manifest, decoder: str) -> None:
        self._config = config
        self._manifest = manifest
        self._decoder = decoder
        self._reader: ImageReader | None = None

    @classmethod
    def recognises(cls, config: Config) -> bool:
        """Whether it is a manifest: what nothing else recognises is, or is refused as one."""
        return True

    @classmethod
    def open(cls, config: Config) -> ImageSource:
        """Open the manifest and check every line."""
        from importlib.metadata import version

        refuse_given(config, ARRAY_OPTIONS, "arrays")
        refuse_given(config, SEQUENCE_OPTIONS, "ragged sequences")
        return cls(config, Manifest.open(config), f"opencv {version('opencv-python-headless')}")

    @classmethod
    def attach(cls, config: Config, handle: dict[str, Any], fds: list[int]) -> ImageSource:
        """Attach to the daemon's manifest, in a reader."""
        from prefetchd.sources.image_files import ImageReader

        source = cls(config, Manifest.attach(handle["manifest"], fds), handle["decoder"])
        source._reader = ImageReader(config)
        return source

    def handle(self) -> tuple[dict[str, Any], list[int]]:
        """Plain values and descriptors from which a reader attaches."""
        manifest, fds = self._manifest.handle()
        return {"kind": "images", "manifest": manifest, "decoder": self._decoder}, fds

    @property
    def n_samples(self) -> int:
        """Lines of the manifest that name a sample."""
        return len(self._manifest)

    @property
    def digest(self) -> str:
        """The manifest's digest."""
        return self._manifest.digest

    @property
    def versions(self) -> dict[str, str]:
        """The decoder's name and version."""
        return {"decoder": self._decoder}

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
        """() or (k,), and int64 or float32."""
        return self._manifest.label_shape, self._manifest.label_dtype

    @property
    def shared_bytes(self) -> int:
        """The manifest's index, and the listing of a directory: memfds."""
        return sum(os.fstat(fd).st_blocks * 512 for fd in self._manifest.handle()[1] if _is_memfd(fd))

    @property
    def max_task_rows(self) -> int:
        """As many faults, each told in some hundred characters, fit in a message."""
        return _MAX_TASK_ROWS

    def check_unchanged(self) -> None:
        """Raise `ManifestError` if the manifest's file is no longer what was opened."""
        self._manifest.check_unchanged()

    def where(self, sample_id: int) -> str:
        """Manifest, line and path of a sample."""
        return self._where(self._manifest.sample(sample_id))

    def fill(
        self,
        epoch: int,
        sample_ids: NDArray[np.int64],
        rows: Sequence[int],
        x: NDArray[Any],
        y: NDArray[Any],
        reserve: ReserveMemory,
    ) -> list[Fault]:
        """Read, decode and write each sample into its row."""
        assert self._reader is not None, "only a reader fills"
        faults = []
        for sample_id, row, sample in zip(sample_ids, rows, self._manifest.samples(sample_ids), strict=True):
            fault = self._reader.load(sample.path, x[row], reserve)
            if fault is not None:
                faults.append(
                    Fault(
                        row=row,
                        sample_id=int(sample_id),
                        where=self._where(sample),
                        reason=fault.reason[:_SAID_CHARACTERS],
                        content=fault.kind is FaultKind.CONTENT,
                        needs_fresh_reader=fault.needs_fresh_reader,
                    )
                )
            y[row] = sample_id if sample.label is None else sample.label
        return faults

    def _where(self, sample: Sample) -> str:
        path = sample.path.encode("utf-8", "backslashreplace").decode()
        if len(path) > _SAID_CHARACTERS:
            path = "..." + path[-_SAID_CHARACTERS:]
        return f"{self._manifest.name} line {sample.line}: {path}" if sample.line else path


def _is_memfd(fd: int) -> bool:
    return os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:")
