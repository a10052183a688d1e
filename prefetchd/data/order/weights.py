"""The weight of each sample: `balanced`, a column, or numbers that a user gave. In the daemon, at open."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.config.order_options import BALANCED
from prefetchd.config.selection import LABEL, is_weight_column
from prefetchd.data.order.ids import name_of_numbers, read_numbers
from prefetchd.data.order.subset import digest_of
from prefetchd.data.order.values import Labels, column_values, texts_are_numbers
from prefetchd.data.table.text import array_numbers
from prefetchd.errors import ConfigError, one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.columns.passed import PassedTable
    from prefetchd.config.options import Config
    from prefetchd.data.source import Source

_LEAST_TOTAL = 1e-290  # how many samples there are, divided by it, is finite
_LEAST = 1e-300  # of weights relative to the largest: a random number over it stays finite
log = logging.getLogger("prefetchd")


def weigh_places(
    config: Config, source: Source, ids: NDArray[np.int64] | None, passed: PassedTable | None, labels: Labels
) -> tuple[NDArray[np.int64] | None, NDArray[np.float64], str]:
    """Return the places that can be drawn, with the sum of the weights up to each, and what the digest follows.

    Places of weight 0 are left out. Without replacement they are the weights themselves, to 1. Arguments and errors are
    those of `weigh`; an epoch of more samples than can be drawn so is a `ConfigError` too.
    """
    weights = weigh(config, source, ids, passed, labels)
    is_drawn = weights > 0
    if not is_drawn.all():
        ids = np.flatnonzero(is_drawn) if ids is None else ids[is_drawn]
        weights = weights[is_drawn]
    n_drawn, n = config.epoch_samples or len(weights), len(weights)
    shown = one_line(str(config.weights))
    if not config.replace and n_drawn > n:
        raise ConfigError(
            f"cannot draw epoch_samples={n_drawn} with replace=False: {n} samples have a weight above 0, and each "
            f"comes once; give {n} at most, or draw with replacement"
        )
    how = "" if config.replace else " without replacement"
    log.info("an epoch draws %d of %d samples by weights=%s%s", n_drawn, n, shown, how)
    # The labels are in the digest of the data; other weights are not.
    version = BALANCED if config.weights == BALANCED else digest_of(weights)
    if config.replace:
        return ids, np.cumsum(weights), version
    relative = weights / weights.max()
    return ids, np.maximum(relative, _LEAST, out=relative), version


def weigh(
    config: Config, source: Source, ids: NDArray[np.int64] | None, passed: PassedTable | None, labels: Labels
) -> NDArray[np.float64]:
    """Return the weight of each place, (places,), from 0 on.

    Args:
        config: the options; `weights` is given.
        source: the open data set.
        ids: the sample at each place; `None` for all samples in order.
        passed: the weights, if they are in the starter's memory; owned.
        labels: of all samples.

    Raises:
        ConfigError: if there is no weight for each sample, or none that can be drawn by.
    """
    assert config.weights is not None
    if config.weights == BALANCED:
        found = labels('weights="balanced"')
        return balanced(found if ids is None else found[ids])
    values = _given(config.weights, source, passed, labels)
    shown, n = name_of_numbers("weights", config.weights), source.facts.n_samples
    if len(values) != n:
        raise ConfigError(f"cannot use {shown}: it has {len(values)} weights for {n} samples; give one for each")
    weights = values.astype(np.float64)
    wrong = ~(np.isfinite(weights) & (weights >= 0))
    if wrong.any():
        number = int(wrong.argmax())
        raise ConfigError(
            f"cannot use {shown}: the weight of sample {number} is {weights[number]:g}; give finite numbers, 0 or more"
        )
    if ids is not None:
        weights = weights[ids]
    with np.errstate(over="ignore"):
        total = float(weights.sum())
    if not 0 < total < np.inf:
        remedy = "give smaller ones, in the same ratio" if total else "give some above 0"
        raise ConfigError(f"cannot use {shown}: its weights add up to {total:g}; {remedy}")
    if total < _LEAST_TOTAL:
        weights = np.ldexp(weights, -np.frexp(weights.max())[1])  # exact: by a power of two
    return weights


def balanced(labels: NDArray[Any]) -> NDArray[np.float64]:
    """Return for each label one over how many of its kind there are."""
    if len(labels) and np.issubdtype(labels.dtype, np.integer):
        low, high = int(labels.min()), int(labels.max())
        if high - low < max(len(labels), 1 << 16) and max(-low, high) < 1 << 62:  # without a sort
            numbers = labels.astype(np.int64) - low
            return (1.0 / np.maximum(np.bincount(numbers), 1))[numbers]
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return (1.0 / counts)[classes.reshape(-1)]


def _given(weights: str, source: Source, passed: PassedTable | None, labels: Labels) -> NDArray[Any]:
    if passed is not None or not is_weight_column(weights):
        return read_numbers("weights", weights, passed)
    if weights == LABEL:
        return labels("weights")
    column = column_values(source, weights, "weights")
    if column.layout.kind == "strings" and texts_are_numbers(source):
        return array_numbers(column, len(column), f"the weights in the column {weights!r}", "give another column")
    if column.layout.kind != "numbers" or column.layout.shape or column.missing is not None:
        raise ConfigError(f"cannot use weights={weights!r}: it takes a column with a number in each row; give another")
    return column.values
