"""Which share of the batches a loader takes, and with which loaders it shares a daemon, a pass or a start."""

from __future__ import annotations

import contextlib
import operator
import os
from typing import TYPE_CHECKING, Any, Literal

from prefetchd.client.user_warnings import warn_user
from prefetchd.config.convert import plain, whole_number
from prefetchd.errors import ConfigError
from prefetchd.sampling.sharding import Shard

if TYPE_CHECKING:
    from prefetchd.ipc.messages import Attached


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


def make_shard(info: Attached, rank: int, world_size: int) -> Shard:
    """Return what rank `rank` of `world_size` sees of an epoch of what `info` describes.

    Raises:
        ConfigError: if no rank has a step.
    """
    shard = Shard(info.batches_per_epoch, rank, world_size, info.drop_last)
    if not shard.steps():
        raise ConfigError(
            f"cannot share {info.batches_per_epoch} batches among {world_size} ranks with drop_last=True: none has a "
            "step; lower batch_size, or leave drop_last out"
        )
    if world_size > 1 and info.config["on_error"] == "skip":
        warn_user(
            "on_error='skip' makes the batches of some ranks shorter than those of others, which can stop a "
            "collective step; use on_error='substitute'"
        )
    return shard


def ranks_here() -> int:
    """Return how many ranks torchrun runs on this machine; 0 if its variable does not say."""
    here = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(here) if here.isascii() and here.isdecimal() else 0


def is_shared(share: Any, *, private: bool) -> bool:
    """Return whether a loader with a source (`private`) uses one daemon with other processes.

    Raises:
        ConfigError: if `share` cannot be.
    """
    chosen = plain(share)
    if chosen is not None and not isinstance(chosen, bool):
        raise ConfigError(f"cannot use share={share!r}: it must be True, False or None")
    if chosen and not private:
        raise ConfigError("cannot use share=True without a source: a daemon that has a name is shared anyhow")
    return private and (ranks_here() > 1 if chosen is None else chosen)


def check_sharing(
    group: object, join: object, start_together: object, world_size: int, *, reconnect: bool, alone: bool
) -> int:
    """Refuse what cannot be shared; return how many loaders start together, 0 for none.

    Args:
        group: the name of the group, or `None`.
        join: `start` or `now`.
        start_together: how many loaders start together, or `None`.
        world_size: number of ranks.
        reconnect: whether the loader goes on with another daemon.
        alone: whether the daemon serves this loader alone.

    Raises:
        ConfigError: if one is wrong, or two contradict each other.
    """
    if join not in ("start", "now"):
        raise ConfigError(f"cannot use join={join!r}: it must be 'start' or 'now'")
    if join == "now" and world_size > 1:
        raise ConfigError(
            f"cannot use join='now' with world_size={world_size}: ranks that begin at different batches would not see "
            "every batch once; leave join out"
        )
    if group is not None and (not isinstance(group, str) or not 1 <= len(group) <= 200):
        raise ConfigError(f"cannot use group={group!r}: it must be a name")
    for name, value in (("reconnect", reconnect), ("world_size", world_size > 1), ("join", join == "now")):
        if group is not None and value:
            raise ConfigError(
                f"cannot use {name}= with group={group!r}: its members have no positions of their own in the pass; "
                f"leave one of them out"
            )
    together = 0
    if start_together is not None:
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            together = 0 if isinstance(start_together, str) else whole_number(start_together)
        if not 1 <= together <= 1024:
            raise ConfigError(f"cannot use start_together={start_together!r}: it must be a whole number from 1 to 1024")
    if alone and (group is not None or together > 1):
        what = f"group={group!r}" if group is not None else f"start_together={together}"
        raise ConfigError(
            f"cannot use {what} with a private daemon, which serves this loader alone; pass share=True, or attach to a "
            "daemon"
        )
    return together
