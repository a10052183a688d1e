"""The lines of `log_every`: one every so many batches, and one at the end of each epoch."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Generator
from itertools import islice
from typing import TYPE_CHECKING

from prefetchd.client.description import share_line

if TYPE_CHECKING:
    from prefetchd.client.batch import Batch
    from prefetchd.client.meter import LoaderStats, Meter

log = logging.getLogger("prefetchd")


def with_lines(
    batches: Generator[Batch, None, None], meter: Meter, every: int, n_batches: int, what: str, noun: str
) -> Generator[Batch, None, None]:
    """Return a generator of `batches` that writes lines, to the log `prefetchd` if it takes them, else to stderr.

    Args:
        batches: the loop's; closed with the generator.
        meter: counts them.
        every: batches between two lines; 0 for a line at the end of each epoch alone.
        n_batches: of an epoch, over all ranks.
        what: the data's name, and the rank.
        noun: what samples are called.
    """
    epoch = -1
    began = last = before = meter.read()
    n_given = 0
    try:
        while True:
            # In a list that is emptied as it is yielded: a name would hold the batch while the user has it.
            ready = list(islice(batches, 1))
            if epoch >= 0 and not (ready and ready[0].epoch == epoch):
                _write(f"{what}: {_whole(epoch, before - began, noun)}")
                began = last = before
                n_given = 0
            if not ready:
                return
            epoch, index = ready[0].epoch, ready[0].index
            n_given += 1
            yield ready.pop()
            before = meter.read()
            if every and n_given % every == 0:
                _write(
                    f"{what}: epoch {epoch}, batch {index + 1:,} of {n_batches:,}: {share_line(before - last, noun)}"
                )
                last = before
    finally:
        batches.close()


def _whole(epoch: int, stats: LoaderStats, noun: str) -> str:
    return (
        f"epoch {epoch}: {stats.samples:,} {noun} in {stats.batches:,} batches and {stats.elapsed_s:.1f} s: "
        f"{share_line(stats, noun)}"
    )


def _write(line: str) -> None:
    if log.isEnabledFor(logging.INFO) and log.hasHandlers():
        log.info("%s", line)
    else:
        # A full disk, or a closed stream, is no reason to end a training.
        with contextlib.suppress(OSError, ValueError):
            print(f"prefetchd: {line}", file=sys.stderr, flush=True)
