"""Numbers of samples that a user gave, in an `.npy` file or in memory. In the daemon, at open."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prefetchd.columns.store import Columns
from prefetchd.data.arrays.array_set import ArraySet
from prefetchd.data.arrays.npy import open_npy
from prefetchd.data.arrays.source import read_rows
from prefetchd.errors import ConfigError, ManifestError, one_line

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from prefetchd.columns.passed import PassedTable


def name_of_numbers(option: str, path: str) -> str:
    """Return an option as errors name it: `subset='ids.npy'`, and of numbers in memory `subset=<9 numbers>`."""
    name = one_line(path)
    return f"{option}={name if name.startswith('<') else repr(name)}"


def read_numbers(option: str, path: str, passed: PassedTable | None) -> NDArray[Any]:
    """Return the numbers that an option names, (count,), of any dtype: those passed, or those of an `.npy` file.

    Raises:
        ConfigError: if they are no list of numbers.
        ManifestError: if the file cannot be read.
    """
    name = one_line(path)
    if passed is not None:
        try:
            with Columns.attach(passed.description, passed.fd) as columns:
                return columns["numbers"].values
        except (ValueError, KeyError) as error:
            raise ManifestError(
                f"cannot use {option}={name}: {error}; pass it with prefetchd.batches of the same version"
            ) from None
    found = open_npy(path)
    if found.row_shape:
        raise ConfigError(
            f"cannot use {name_of_numbers(option, path)}: it has the shape {found.shape}; give a list, (n,)"
        )
    return read_rows(ArraySet(name, (found,)))


def sample_numbers(option: str, path: str, values: NDArray[Any], n_samples: int) -> NDArray[np.int64]:
    """Return samples that were given by number, or as a true or false for each, in their order.

    Raises:
        ConfigError: if they name none, or one that the data set does not have.
    """
    given = name_of_numbers(option, path)
    if values.dtype == bool:
        if len(values) != n_samples:
            raise ConfigError(
                f"cannot use {given}: it has {len(values)} values, true or false, for {n_samples} samples; "
                "give one for each, or the samples' numbers"
            )
        values = np.flatnonzero(values)
    if not len(values):
        raise ConfigError(f"cannot use {given}: it names no sample; give one at least, or leave it out")
    if not np.issubdtype(values.dtype, np.integer):
        raise ConfigError(f"cannot use {given}: its dtype is {values.dtype}; give whole numbers of samples, from 0")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= n_samples:
        wrong = low if low < 0 else high
        raise ConfigError(
            f"cannot use {given}: it names the sample {wrong}, and there are {n_samples}; give numbers from "
            f"0 to {n_samples - 1}"
        )
    return values.astype(np.int64)
