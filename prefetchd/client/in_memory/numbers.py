"""An option that is a list of numbers in the trainer's memory, such as the samples of a subset."""

from __future__ import annotations

from typing import Any

import numpy as np

from prefetchd.columns.passed import PassedTable
from prefetchd.columns.writer import ColumnsWriter
from prefetchd.errors import ConfigError
from prefetchd.ipc.failures import explained


def take_in_numbers(option: str, value: Any) -> PassedTable:
    """Return a table with the one column `numbers`.

    Args:
        option: the option's name.
        value: an array, (n,), or a list; of numbers, or of true and false.

    Raises:
        ConfigError: if it is something else.
    """
    try:
        numbers = np.asarray(value)
    except (TypeError, ValueError):
        numbers = np.empty(0, object)
    if numbers.shape == (0,) and numbers.dtype != object:  # an empty choice, such as that of flatnonzero
        raise ConfigError(f"cannot use {option}: it is empty; give at least one number")
    if numbers.ndim != 1 or not len(numbers) or numbers.dtype.kind not in "biuf":
        what = f"an array of the shape {numbers.shape} and dtype {numbers.dtype}"
        raise ConfigError(
            f"cannot use {option}: it is {what}; give a list of numbers, (n,), or the path of an .npy file"
        )
    with explained(f"copy {option} into shared memory"), ColumnsWriter(len(numbers)) as writer:
        try:
            writer.add_numbers("numbers", numbers)
        except ValueError as error:
            raise ConfigError(f"cannot use {option}: {error}") from None
        return PassedTable(f"<{len(numbers)} numbers>", "numbers", *writer.finish())
