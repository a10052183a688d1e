"""Which rank of how many a loader is: chosen by the user, never guessed."""

from __future__ import annotations

import contextlib
import operator
import os
from typing import Literal

from prefetchd.client.user_warnings import warn_user
from prefetchd.errors import ConfigError


def choose_rank(rank: int | Literal["env"] | None, world_size: int | None) -> tuple[int, int]:
    """Return (rank, world size).

    `rank="env"` takes both from the variables that torchrun sets (`RANK`, `WORLD_SIZE`). Where neither was given and
    `WORLD_SIZE` is more than 1, a warning says how to choose: to shard a validation loader without a word would be as
    bad as not to shard a training loader.

    Raises:
        ConfigError: if they make no sense.
    """
    if rank == "env":
        from_environment = _number("RANK"), _number("WORLD_SIZE")
        if world_size is not None and world_size != from_environment[1]:
            raise ConfigError(
                f"cannot use world_size={world_size} with rank='env': WORLD_SIZE is {from_environment[1]}; "
                "leave world_size out"
            )
        rank, world_size = from_environment
    elif rank is None and world_size is None:
        if os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1"):
            warn_user(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, and this loader delivers every batch to every rank; pass "
                "rank='env' for a share of them, or rank=0, world_size=1 if that is meant"
            )
        return 0, 1
    numbers = -1, -1
    if not isinstance(rank, bool) and not isinstance(world_size, bool):  # no rank, though Python counts with them
        with contextlib.suppress(TypeError):
            numbers = operator.index(rank), operator.index(world_size)  # type: ignore[arg-type]
    if not 0 <= numbers[0] < numbers[1] <= 1 << 31:
        raise ConfigError(
            f"cannot use rank={rank!r}, world_size={world_size!r}: give both, rank from 0 to world_size - 1, "
            "or rank='env'"
        )
    return numbers


def _number(variable: str) -> int:
    text = os.environ.get(variable, "")
    if not text.isascii() or not text.isdecimal():
        what = f"is {text!r}" if text else "is not set"
        raise ConfigError(
            f"cannot use rank='env': {variable} {what}; start with torchrun, or give rank and world_size as numbers"
        )
    return int(text)
