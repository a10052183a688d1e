"""The order of a mixture: its shares and sizes as one `Mixture`, and its tables in one sealed memfd for the readers.

The memfd has one row: the samples that `where` and `split` leave, and for each epoch with shares of its own the sources
at the positions of a period (`sampling.apportion`), with those positions by source.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from prefetchd.columns.store import Columns
from prefetchd.columns.writer import ColumnsWriter
from prefetchd.config.mix import MixPart, parse_mix, phases
from prefetchd.data.mix.source import MixedSource
from prefetchd.data.order.subset import choose_samples
from prefetchd.errors import ConfigError
from prefetchd.sampling.apportion import MOST_POSITIONS, apportion, whole_shares
from prefetchd.sampling.mixture import Mixture, Period, make_period
from prefetchd.sampling.order import Order

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.options import Config
    from prefetchd.data.source import Source

log = logging.getLogger("prefetchd")

_SHOWN_PHASES = 4


def plan_mix(config: Config, source: Source) -> tuple[Order, dict[str, str], Columns]:
    """Return the order of a mixture, what decides it besides the content options, and its tables, for the caller.

    Raises:
        ConfigError: if `where` or `split` leave no sample of a source, or an epoch would have none.
    """
    assert isinstance(source, MixedSource)
    chosen = choose_samples(config, source, {})
    names = [name for name, _ in source.facts.sources]
    firsts = [first for _, first in source.facts.sources]
    if chosen.ids is None:
        sizes = [part.facts.n_samples for part in source.parts]
    else:
        sizes = np.diff(np.searchsorted(chosen.ids, [*firsts, source.facts.n_samples])).tolist()
    for name, size in zip(names, sizes, strict=True):
        if not size:
            raise ConfigError(f"cannot mix {name}: where and split leave none of its samples; leave it out")
    weights = _weights(config, sizes)
    periods = [make_period(each, apportion(each)) for each in weights]
    n_samples = config.epoch_samples or _epoch_samples(config, periods, sizes)
    columns = _write(chosen.ids, periods, firsts, sizes, n_samples, source.facts.n_samples)
    order = mixed_order(config, columns)
    versions = dict(chosen.versions)
    versions["mix"] = ", ".join(":".join(map(str, each)) for each in weights)
    for number, part in enumerate(source.parts):
        versions[f"mix_source_{number}"] = part.facts.digest
    assert order.mixture is not None
    for epoch in range(min(len(weights), _SHOWN_PHASES)):
        log.info("%s", describe(order.mixture, names, epoch))
    return order, versions, columns


def _weights(config: Config, sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the whole shares of the sources in the first epochs; those of the last hold on."""
    parts = parse_mix(config.mix)
    if not parts[0].shares:
        parts = [MixPart(part.name, (share,)) for part, share in zip(parts, _by_size(config, sizes), strict=True)]
    found = []
    for phase in range(phases(parts)):
        weights, is_exact = whole_shares([part.share(phase) for part in parts])
        if not is_exact:
            log.info("shares of the mix are taken to 1/%d: they have no smaller common denominator", MOST_POSITIONS)
        found.append(weights)
    return found


def _by_size(config: Config, sizes: Sequence[int]) -> list[Fraction]:
    """Return shares by size, evened out by the temperature."""
    if config.mix_temperature in (None, 1):
        return [Fraction(size) for size in sizes]
    assert config.mix_temperature is not None
    largest = max(sizes)
    return [Fraction((size / largest) ** (1 / config.mix_temperature)) for size in sizes]


def _epoch_samples(config: Config, periods: Sequence[Period], sizes: Sequence[int]) -> int:
    """Return the samples of an epoch, the same for all: no epoch goes beyond `stop="first"`, or ends before `last`."""
    found = [period.epoch_samples(sizes, config.stop) for period in periods]
    return min(found) if config.stop == "first" else max(found)


def describe(mixture: Mixture, names: Sequence[str], epoch: int) -> str:
    """Return a line with the sizes and the shares of the sources in an epoch."""
    weights = mixture.period(epoch).weights
    parts = [
        f"{name} {100 * weight / sum(weights):.4g}% ({count} of {size} samples)"
        for name, weight, count, size in zip(names, weights, mixture.counts(epoch), mixture.sizes, strict=True)
    ]
    several = len(mixture.periods) > 1
    which = f"epoch {epoch}{' and on' if epoch + 1 == len(mixture.periods) else ''}" if several else "an epoch"
    return f"{which} mixes {mixture.n_samples} samples: {', '.join(parts)}"


def _write(
    ids: NDArray[np.int64] | None,
    periods: Sequence[Period],
    firsts: Sequence[int],
    sizes: Sequence[int],
    n_samples: int,
    n_all: int,
) -> Columns:
    """Return the tables in a sealed memfd, which the caller owns."""
    with ColumnsWriter(1) as writer:
        if ids is not None:
            writer.add_numbers("ids", (ids.astype(np.uint32) if n_all <= 1 << 32 else ids)[np.newaxis])
        for number, period in enumerate(periods):
            writer.add_numbers(f"sources{number}", period.sources[np.newaxis])
            writer.add_numbers(f"grouped{number}", period.grouped[np.newaxis])
        attributes = {
            "firsts": list(firsts),
            "sizes": list(sizes),
            "weights": [list(period.weights) for period in periods],
            "n_samples": n_samples,
        }
        return Columns.attach(*writer.finish(attributes))


def mixed_order(config: Config, columns: Columns) -> Order:
    """Return the order whose tables these are, in the daemon or a reader."""
    facts = columns.attributes
    mixture = Mixture(
        tuple(facts["firsts"]),
        tuple(facts["sizes"]),
        tuple(
            Period(tuple(weights), columns[f"sources{number}"].values[0], columns[f"grouped{number}"].values[0])
            for number, weights in enumerate(facts["weights"])
        ),
        facts["n_samples"],
        config.seed,
        config.shuffle,
        config.shuffle_block or 0,
        columns["ids"].values[0] if "ids" in columns else None,
    )
    return Order(mixture.n_samples, config.batch_size, config.drop_last, config.shuffle, config.seed, mixture=mixture)
