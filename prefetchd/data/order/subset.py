"""Which samples are served: `subset`, `where`, `split` and `limit`, one after another. In the daemon, at open."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from prefetchd.config.selection import LABEL, parse_split, parse_where
from prefetchd.data.mix.source import MixedSource
from prefetchd.data.order.ids import name_of_numbers, read_numbers, sample_numbers
from prefetchd.data.order.matching import TextMatch, is_one_of, wanted_number
from prefetchd.data.order.values import (
    Labels,
    class_names,
    column_classes,
    column_values,
    texts_are_numbers,
)
from prefetchd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from numpy.typing import NDArray

    from prefetchd.columns.passed import PassedTable
    from prefetchd.config.options import Config
    from prefetchd.data.source import Source

log = logging.getLogger("prefetchd")

_LOGGED_CLASSES = 20


@dataclass(frozen=True, slots=True)
class Chosen:
    """The samples that are served.

    Attributes:
        ids: (places,) their numbers, in order; `None` for all.
        versions: what decides them besides the content options, for the digest.
        labels: of all samples.
    """

    ids: NDArray[np.int64] | None
    versions: dict[str, str]
    labels: Labels


def choose_samples(config: Config, source: Source, passed: Mapping[str, PassedTable]) -> Chosen:
    """Return the samples that the options choose.

    Args:
        config: the options.
        source: the open data set.
        passed: what options name that is in the starter's memory, by option; owned.

    Raises:
        ConfigError: if an option means nothing for the source, or no sample is left.
        ManifestError: if a file cannot be read.
    """
    n = source.facts.n_samples
    ids: NDArray[np.int64] | None = None
    versions: dict[str, str] = {}
    if config.subset is not None:
        numbers = read_numbers("subset", config.subset, passed.get("subset"))
        ids = _checked(config.subset, sample_numbers("subset", config.subset, numbers, n), n)
        versions["subset"] = digest_of(ids)
    if config.order is not None:
        numbers = read_numbers("order", config.order, passed.get("order"))
        ids = sample_numbers("order", config.order, numbers, n)
        versions["order"] = digest_of(ids)
    labels = Labels(source)
    if config.where:
        matching = _matching(config, source, labels)
        if set(parse_where(config.where)) != {LABEL}:  # other columns are not in the digest of the data
            versions["where_samples"] = digest_of(np.flatnonzero(matching))
        ids = _kept(ids, matching, f"where={', '.join(config.where)}", "choose other values")
    if config.split is not None:
        low, high = parse_split(config.split)
        hashes = labels.with_key_hashes()
        inside = hashes >= np.uint64(low)
        if high < 1 << 64:
            inside &= hashes < np.uint64(high)
        ids = _kept(ids, inside, f"split={config.split}", "choose a wider part")
    if config.limit is not None and config.limit < (n if ids is None else len(ids)):
        ids = np.arange(config.limit, dtype=np.int64) if ids is None else ids[: config.limit]
    if ids is not None:
        log.info("%s", describe(config, source, ids, labels))
    return Chosen(ids, versions, labels)


def digest_of(ids: NDArray[Any]) -> str:
    """Return how many numbers these are, and a digest that follows them all, for the state."""
    return f"{len(ids)} ids {hashlib.blake2b(ids.tobytes(), digest_size=8).hexdigest()}"


def distinct(ids: NDArray[np.int64], n_samples: int) -> NDArray[np.int64]:
    """Return the samples that are named, each once, in rising order; faster than a sort."""
    inside = np.zeros(n_samples, bool)
    inside[ids] = True
    return np.flatnonzero(inside)


def _checked(name: str, ids: NDArray[np.int64], n_samples: int) -> NDArray[np.int64]:
    found = distinct(ids, n_samples)
    if len(found) != len(ids):
        given = name_of_numbers("subset", name)
        raise ConfigError(
            f"cannot use {given}: {len(ids) - len(found)} of its {len(ids)} numbers are there already; "
            "give each sample once"
        )
    return found


def _kept(ids: NDArray[np.int64] | None, inside: NDArray[np.bool_], why: str, remedy: str) -> NDArray[np.int64]:
    """Return those of the chosen samples that are inside; refuse to be left with none."""
    kept = np.flatnonzero(inside) if ids is None else ids[inside[ids]]
    if not len(kept):
        n_before = len(inside) if ids is None else len(ids)
        raise ConfigError(f"cannot serve with {why}: no sample is left of {n_before}; {remedy}")
    return kept


def _matching(config: Config, source: Source, labels: Labels) -> NDArray[np.bool_]:
    """Return which samples have one of the wanted values in each column, (samples,)."""
    inside = np.ones(source.facts.n_samples, bool)
    for name, wanted in parse_where(config.where).items():
        if name == LABEL:
            values, names = labels("where"), class_names(source)
            inside &= is_one_of(values, [wanted_number(name, text, names, values) for text in wanted])
            continue
        parts = source.parts if isinstance(source, MixedSource) else (source,)
        inside &= np.concatenate([_column_matches(part, name, wanted) for part in parts])
    return inside


def _column_matches(source: Source, name: str, wanted: list[str]) -> NDArray[np.bool_]:
    """Return which samples have one of the wanted values in a named column, (samples,)."""
    column = column_values(source, name, "where")
    if column.layout.kind == "strings":
        are_numbers = texts_are_numbers(source)
        inside = np.fromiter(map(TextMatch(wanted, are_numbers=are_numbers).__getitem__, column), bool, len(column))
    elif column.layout.kind == "numbers" and not column.layout.shape:
        names = column_classes(source, name)
        inside = is_one_of(column.values, [wanted_number(name, text, names, column.values) for text in wanted])
    else:
        raise ConfigError(
            f"cannot use where with the column {name!r}: it holds {column.layout.kind} "
            f"{column.layout.dtype}{list(column.layout.shape)}; give a column of numbers or text"
        )
    return inside if column.missing is None else inside & ~column.missing


def describe(config: Config, source: Source, ids: NDArray[np.int64], labels: Labels) -> str:
    """Return a line with the number of samples served, why, and how many there are of each class."""
    given = {
        "subset": config.subset,
        "order": config.order,
        "where": " ".join(config.where),
        "split": config.split,
        "limit": config.limit,
    }
    why = ", ".join(f"{name}={value}" for name, value in given.items() if value)
    count, n = len(ids), source.facts.n_samples
    served = f"an epoch has {count} samples, of {n}" if config.order else f"{count} of {n} samples are served"
    text = f"{served} ({why})"
    try:
        values = labels("where")
    except ConfigError:
        return text
    if not np.issubdtype(values.dtype, np.integer):
        return text
    names = class_names(source)
    numbers, counts = np.unique(values[ids], return_counts=True)
    shown = [
        f"{names[number] if names is not None and 0 <= number < len(names) else number}: {count}"
        for number, count in zip(numbers.tolist()[:_LOGGED_CLASSES], counts.tolist(), strict=False)
    ]
    more = f", and {len(numbers) - len(shown)} more" if len(numbers) > len(shown) else ""
    return f"{text}; by class: {', '.join(shown)}{more}"
