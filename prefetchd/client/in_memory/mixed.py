"""The sources of a mixture that are in memory: each is passed to the daemon as it would be alone."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prefetchd.config.mix import part_configs, renamed
from prefetchd.errors import ConfigError

if TYPE_CHECKING:
    from prefetchd.columns.passed import PassedTable
    from prefetchd.config.options import Config


def name_mix(value: Any) -> tuple[Any, dict[int, Any]]:
    """Return the option `mix` with names in place of what is in memory, and that by its number.

    In memory are sources of `(source, share)` pairs, or of a list: they cannot be keys of a dictionary.

    Raises:
        ConfigError: if a pair may be samples and their labels, and not a source and its shares.
    """
    if isinstance(value, Mapping) or not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return value, {}
    named: list[Any] = []
    found: dict[int, Any] = {}
    for number, each in enumerate(value):
        source, *share = each if _is_pair(each) else (each,)
        if not isinstance(source, str | bytes | os.PathLike):
            if share and isinstance(share[0], list | tuple) and len(share[0]) == len(source):
                raise ConfigError(
                    f"cannot tell what the {len(source)} numbers beside source {number} of the mix are: labels, or "
                    "shares by epoch; give ((samples, labels), share)"
                )
            found[number] = source
            source = f"<{type(source).__name__}>"
        named.append((source, *share) if share else source)
    return named, found


def _is_pair(each: Any) -> bool:
    """Return whether this is a source with its share, and not arrays `(x, y)`."""
    if not isinstance(each, tuple) or len(each) != 2:
        return False
    share = each[1]
    numbers = share if isinstance(share, list | tuple) else [share]
    return all(isinstance(number, int | float | str) for number in numbers) or getattr(share, "ndim", 1) == 0


def take_in_mixed(found: Mapping[int, Any], config: Config) -> tuple[Config, dict[str, PassedTable]]:
    """Return the options with the names of what is in memory, and its tables as `mix/NUMBER`.

    Raises:
        ManifestError, ConfigError: as `take_in`.
    """
    from prefetchd.client.in_memory.recognize import take_in  # loads numpy

    configs = part_configs(config)
    tables: dict[str, PassedTable] = {}
    with contextlib.ExitStack() as unless_all:
        for number, source in found.items():
            tables[f"mix/{number}"] = table = take_in(source, configs[number])
            unless_all.callback(table.close)
        unless_all.pop_all()
    mix = [
        renamed(text, tables[f"mix/{number}"].name) if number in found else text
        for number, text in enumerate(config.mix)
    ]
    return dataclasses.replace(config, mix=tuple(mix)), tables
