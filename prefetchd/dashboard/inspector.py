"""What the batch inspector asks: a batch of any epoch, its pictures, and where a sample is. Called in threads."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import cv2
from starlette.responses import Response

from prefetchd.client.single import Served
from prefetchd.dashboard.batches import Batches
from prefetchd.dashboard.index import Index
from prefetchd.dashboard.query import number, text
from prefetchd.errors import ConfigError, PrefetchdError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from starlette.requests import Request

    from prefetchd.dashboard.samples import Samples

_ROWS = 48  # at once
_MOST_EPOCHS = 12
_MOST_PLACES = 8
_MOST_FOUND = 50
_SEARCH_S = 15.0
_LARGE_PX = 640  # the longest side of a picture, which is shown smaller
_THUMBNAIL_PX = 128
_KEPT = {"cache-control": "private, max-age=600"}


class Inspector:
    """Answers what the pages of batches ask.

    Args:
        daemon: returns how to ask the daemon that a request names.
        batches: reads batches; borrowed.
        index: knows where samples are; borrowed.
    """

    def __init__(self, daemon: Callable[[Request], str | int], batches: Batches, index: Index) -> None:
        self._daemon = daemon
        self._batches = batches
        self._index = index

    def served(self, request: Request) -> Served:
        """Return what the daemon says of the data set that a request names."""
        return self._batches.served(self._daemon(request), text(request, "dataset", ""))

    def batch(self, request: Request) -> Any:
        """Return some rows of a batch, from `first` on, with where each sample comes from."""
        served = self.served(request)
        samples, names_why = self._samples(request, served)
        first = number(request, "first", 0)
        rows = [samples.describe(row) for row in range(first, min(len(samples), first + _ROWS))]
        try:
            places = self._index.ask(served, "where", sample_ids=[row["sample_id"] for row in rows])
            why = names_why
        except PrefetchdError as error:
            places, why = [None] * len(rows), str(error)
        for row, place in zip(rows, places, strict=True):
            row["where"] = place
        info, config = served.info, samples.config
        return {
            "held": samples.number,
            "epoch": samples.batch.epoch,
            "batch": samples.batch.index,
            "batches_per_epoch": info.batches_per_epoch,
            "n_samples": info.n_samples,
            "rows": rows,
            "n_rows": len(samples),
            "first": first,
            "paths_why": why,
            "on_error": config.on_error,
            "planned_rows": _planned_rows(served, samples),
            "shuffle": config.shuffle,
        }

    def _samples(self, request: Request, served: Served) -> tuple[Samples, str]:
        """Return the batch that a request names, and why names of classes are not known, if so."""
        names, why = {}, ""
        if served.info.config.get("fields"):
            try:
                names = {name: tuple(known) for name, known in self._index.ask(served, "names").items()}
            except PrefetchdError as error:
                why = str(error)
        epoch, index = number(request, "epoch"), number(request, "batch")
        daemon, dataset = self._daemon(request), text(request, "dataset", "")
        return self._batches.get(daemon, dataset, served, epoch, index, names), why

    def picture(self, request: Request) -> Response:
        """Return a picture of a row, as PNG; one that is larger than a screen shows is made smaller."""
        samples = self._batches.held(number(request, "held", 0))
        if samples is None:
            samples, _ = self._samples(request, self.served(request))
        picture: NDArray[Any] = samples.picture(number(request, "row"), text(request, "name"))
        height, width = picture.shape[:2]
        factor = _LARGE_PX / max(height, width)
        if factor < 1:
            size = max(1, round(width * factor)), max(1, round(height * factor))
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        ok, encoded = cv2.imencode(".png", picture)
        assert ok
        return Response(encoded.tobytes(), 200, _KEPT, "image/png")

    def thumbnail(self, request: Request) -> Response:
        """Return a small picture of a sample's file."""
        png = self._index.ask(
            self.served(request), "thumbnail", sample_id=number(request, "sample"), most_px=_THUMBNAIL_PX
        )
        return Response(png, 200, _KEPT, "image/png")

    def places(self, request: Request) -> Any:
        """Return in which batch of some epochs a sample is."""
        served = self.served(request)
        sample_id = number(request, "sample")
        first = number(request, "epoch", 0)
        n_epochs = number(request, "epochs", 6)
        if n_epochs > _MOST_EPOCHS:
            raise ConfigError(f"cannot look at {n_epochs} epochs at once: {_MOST_EPOCHS} is the most")
        epochs = list(range(first, first + n_epochs))
        found = self._index.ask(
            served, "places", sample_id=sample_id, epochs=epochs, most=_MOST_PLACES, seconds=_SEARCH_S
        )
        (where,) = self._index.ask(served, "where", sample_ids=[sample_id])
        return {"sample_id": sample_id, "where": where, "epochs": found, "n_samples": served.info.n_samples}

    def search(self, request: Request) -> Any:
        """Return samples by a part of their path, or by number."""
        wanted = text(request, "text").strip()
        if not wanted:
            raise ConfigError("cannot search for nothing: give a part of a path, or a sample's number")
        served = self.served(request)
        if wanted.isascii() and wanted.isdigit() and len(wanted) <= 16:
            (where,) = self._index.ask(served, "where", sample_ids=[int(wanted)])
            return {
                "samples": [{"sample_id": int(wanted), "where": where}],
                "more": False,
                "looked_at": 1,
                "n_samples": 1,
            }
        wanted = os.fsdecode(wanted.encode("utf-8", "surrogateescape"))
        return self._index.ask(served, "search", text=wanted, most=_MOST_FOUND, seconds=_SEARCH_S)


def _planned_rows(served: Served, samples: Samples) -> int | None:
    """Return how many samples the batch has before bad ones are left out; `None` with buckets, which decide it."""
    config = served.info.config
    if config.get("bucket_sizes") or config.get("length_buckets"):
        return None
    size: int = config["batch_size"]
    return min(size, served.info.n_samples - samples.batch.index * size)
