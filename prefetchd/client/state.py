"""The state of a loader: what `state_dict` returns, and whether a state fits what is served now. Pure.

A state names a position in the sequence of samples that all ranks see together, so it fits any number of readers, any
daemon, world size and batch size. It names the other options and the data of that sequence by digests, so it fits no
other sequence.
"""

from __future__ import annotations

import contextlib
import operator
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from prefetchd.config.options import OPTIONS
from prefetchd.errors import ConfigError, ManifestError
from prefetchd.sampling.sharding import Shard

if TYPE_CHECKING:
    from prefetchd.ipc.messages import Attached

STATE_VERSION = 2
_COUNTS = ("epoch", "next_batch", "first_epoch")
_ADDED_COUNTS = ("rotation", "next_row")  # older states have none
_TEXTS = ("config_digest", "manifest_digest")
MAX_EPOCH = 1 << 52
_MAX_SHOWN = 20
_MAX_SHOWN_CHARACTERS = 40
_MIDDLE_CHARACTERS = 24  # of long values that differ in the middle


@dataclass(frozen=True, slots=True)
class Position:
    """Where a loader goes on.

    Attributes:
        epoch: the epoch of the next batch.
        batch: the next batch of that epoch over all ranks: step x world size, as the steps were counted from 0.
        first_epoch: the first epoch of its iteration.
        rotation: the batch that its epochs begin at (`join="now"`); `batch` is counted from there.
        row: how many samples of the next batch were seen, in batches of another size.
    """

    epoch: int
    batch: int
    first_epoch: int
    rotation: int = 0
    row: int = 0

    def next_epoch(self) -> Position:
        """Return the start of the next epoch."""
        return replace(self, epoch=self.epoch + 1, batch=0, row=0)

    def iteration(self, epochs: int | None) -> tuple[int, int | None]:
        """Return (first epoch, stop epoch) of the iteration that goes on here, `epochs` long.

        It is the rest of the interrupted iteration, or a new one if that was at its end.
        """
        if epochs is None:
            return self.first_epoch, None
        stop_epoch = self.first_epoch + epochs
        if self.epoch < stop_epoch:
            return self.first_epoch, stop_epoch
        return (self.epoch, self.epoch + 1) if self.batch or self.row else (self.epoch, self.epoch + epochs)


@dataclass(slots=True)
class Progress:
    """How far one iteration is. The iteration alone changes it, so one that has ended cannot move a later one.

    Attributes:
        start: where its epoch begins, or where it went on within an epoch.
        steps: the batches of this epoch that it has delivered since.
        serial: the number of the iteration, and of its cursor.
        stop_epoch: the epoch before which it ends; `None` for never.
        join: whether the daemon decides where it begins.
    """

    start: Position
    steps: int = 0
    serial: int = 0
    stop_epoch: int | None = None
    join: bool = False

    def position(self, shard: Shard) -> Position:
        """Return where the next batch is, for a loader of `shard`."""
        start = self.start
        if not self.steps:
            return start
        return Position(*shard.after(start.epoch, self.steps, start.batch), start.first_epoch, start.rotation)


def make_state(info: Attached, position: Position) -> dict[str, Any]:
    """Return the state of a loader that is at `position` of what `info` describes: small, and plain JSON values."""
    return {
        "version": STATE_VERSION,
        "epoch": position.epoch,
        "next_batch": position.batch,
        "next_row": position.row,
        "batch_size": info.config["batch_size"],
        "first_epoch": position.first_epoch,
        "rotation": position.rotation,
        "seed": info.config["seed"],
        "n_samples": info.n_samples,
        "config_digest": info.config_digest,
        "manifest_digest": info.manifest_digest,
        "config": _content(info),
    }


def read_state(state: Mapping[str, Any], info: Attached) -> Position:
    """Return the position in `state`, which must fit what `info` describes; its `batch_size` may be another.

    Raises:
        ConfigError: if it is no state, or is of other options; the message says which.
        ManifestError: if it is of other data.
    """
    version = _whole(state.get("version")) if isinstance(state, Mapping) else None
    if version is None:
        raise ConfigError("cannot resume: this is no state of a loader; give what state_dict() returned")
    if not 1 <= version <= STATE_VERSION:
        raise ConfigError(
            f"cannot resume: the state has version {_shown(version)}, and this prefetchd reads 1 to "
            f"{STATE_VERSION}; resume with the prefetchd that saved it"
        )
    counts = {}
    for name in (*_COUNTS, *_ADDED_COUNTS):
        count = _whole(state.get(name, 0 if name in _ADDED_COUNTS else None))
        if count is None or not 0 <= count <= MAX_EPOCH:
            raise ConfigError(f"cannot resume: {name} is no count in the state; give what state_dict() returned")
        counts[name] = count
    for name in _TEXTS:
        if not isinstance(state.get(name), str):
            raise ConfigError(f"cannot resume: {name} is no digest in the state; give what state_dict() returned")
    batch_size = _batch_size(state)
    _refuse_in_buckets(info, batch_size, any(counts[name] for name in ("next_batch", *_ADDED_COUNTS)))
    as_then = _with_batch_size(info, batch_size)
    check_same(state, as_then)
    position = Position(
        counts["epoch"], counts["next_batch"], counts["first_epoch"], counts["rotation"], counts["next_row"]
    )
    if position.first_epoch > position.epoch:
        raise ConfigError(
            f"cannot resume: the state's iteration began with epoch {position.first_epoch}, after the epoch "
            f"{position.epoch} that it is in; give what state_dict() returned"
        )
    if position.row >= batch_size:
        raise ConfigError(
            f"cannot resume: the state goes on at row {position.row} of a batch of {batch_size}; "
            "give what state_dict() returned"
        )
    n_batches = as_then.batches_per_epoch
    for what, batch in (("goes on at", position.batch), ("has epochs that begin at", position.rotation)):
        if batch >= n_batches:
            raise ConfigError(
                f"cannot resume: the state {what} batch {batch}, and an epoch has {n_batches} batches; "
                "give what state_dict() returned"
            )
    if batch_size != info.config["batch_size"]:
        position = in_batches_of(
            info.config["batch_size"], position, batch_size, info.n_samples, drop_last=info.drop_last
        )
    if position.row and info.config["on_error"] == "skip":
        raise ConfigError(
            f"cannot resume: the state goes on at row {position.row} of a batch of {info.config['batch_size']}, and "
            "with on_error='skip' a row may be another sample's; resume with the batch_size that it began with, "
            f"{batch_size}, at the end of an epoch, or with a batch_size that divides it"
        )
    return position


def _refuse_in_buckets(info: Attached, size_then: int, within_epoch: bool) -> None:
    """Refuse a state within an epoch of another batch size, where batches hold samples of one bucket each."""
    size = info.config["batch_size"]
    has_buckets = info.config.get("bucket_sizes") or info.config.get("length_buckets")
    if has_buckets and within_epoch and size != size_then:
        raise ConfigError(
            f"cannot resume: the state is within an epoch of batches of {size_then}, and with buckets those of {size} "
            f"have other samples; resume with batch_size={size_then}, or at the end of an epoch"
        )


def in_batches_of(batch_size: int, position: Position, size_then: int, n_samples: int, *, drop_last: bool) -> Position:
    """Return the place of `position`, which counts batches of `size_then`, in batches of `batch_size`.

    It is the aligned batch that has the next sample, and the row of that sample in it. With `drop_last` the next epoch
    follows where batches of `batch_size` leave out all samples that are left.

    Raises:
        ConfigError: if epochs begin at a sample with which no batch of `batch_size` begins.
    """
    n_then = n_samples // size_then if drop_last else -(-n_samples // size_then)
    n_batches = n_samples // batch_size if drop_last else -(-n_samples // batch_size)
    rotation, rest = divmod(position.rotation * size_then, batch_size)
    if rest:
        raise ConfigError(
            f"cannot resume: epochs of the state begin at sample {position.rotation * size_then} (join='now'), within "
            f"a batch of {batch_size}; resume with the batch_size that it began with, {size_then}, or begin anew"
        )
    rotation %= n_batches
    if not position.batch and not position.row:
        return replace(position, rotation=rotation)
    index = position.batch + position.rotation
    wrapped = index >= n_then
    batch, row = divmod((index - n_then if wrapped else index) * size_then + position.row, batch_size)
    if batch >= n_batches:  # the front is what is left: the samples from here on make no whole batch
        batch, row, wrapped = 0, 0, True
    passed = batch - rotation + (n_batches if wrapped else 0)
    if passed >= n_batches:
        return replace(position.next_epoch(), rotation=rotation)
    return replace(position, batch=passed, row=row, rotation=rotation)


def _batch_size(state: Mapping[str, Any]) -> int:
    """Return the batch size that `state` counts with."""
    then = state.get("config")
    content = then if isinstance(then, Mapping) else {}
    size = _whole(state.get("batch_size", content.get("batch_size", OPTIONS["batch_size"].default)))
    if size is None or not 1 <= size <= MAX_EPOCH:
        raise ConfigError("cannot resume: batch_size is no count in the state; give what state_dict() returned")
    return size


def _with_batch_size(info: Attached, batch_size: int) -> Attached:
    """Return `info` as it would be with another batch size."""
    if batch_size == info.config["batch_size"]:
        return info
    import msgspec  # a resume with the same batch size does without these

    from prefetchd.config.validate import make_config

    config = make_config(**{**info.config, "batch_size": batch_size})
    n_batches = info.n_samples // batch_size if info.drop_last else -(-info.n_samples // batch_size)
    return msgspec.structs.replace(
        info, config=config.to_wire(), config_digest=config.digest(**info.versions), batches_per_epoch=n_batches
    )


def read_index(name: str, value: Any, stop: int) -> int:
    """Return the number of an epoch or batch as Python's own; refuse one that is not from 0 and below `stop`."""
    number = _whole(value)
    if number is None or not 0 <= number < stop:
        why = "" if name == "epoch" else f" (an epoch has {stop} {'batch' if stop == 1 else 'batches'})"
        raise ConfigError(f"cannot use {name}={value!r}: it must be a whole number from 0 to {stop - 1}{why}")
    return number


def _whole(value: Any) -> int | None:
    """Return a whole number as Python's own, also one of numpy or a tensor; `None` for another value."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError):
        return None


def check_same(state: Mapping[str, Any], info: Attached, why: str = "the state is of other batches") -> None:
    """Raise unless `info` describes the same sequence of batches as `state`; `why` begins the message."""
    if state["config_digest"] != info.config_digest:
        now, then = _content(info), state.get("config")
        then = {key: value for key, value in then.items() if isinstance(key, str)} if isinstance(then, dict) else {}
        differs = [
            f"{_shown(name)} was {_differing(_value(then, name), _value(now, name))}"
            for name in (*OPTIONS, *sorted((now.keys() | then.keys()) - OPTIONS.keys()))
            if _value(then, name) != _value(now, name)
        ]
        raise ConfigError(
            f"cannot go on: {why} ({', '.join(differs[:_MAX_SHOWN]) or 'other digests'}); "
            "serve with the options that it began with, or begin anew"
        )
    if state["manifest_digest"] != info.manifest_digest:
        raise ManifestError(
            f"cannot go on: {why}, from other data (digest {_shown(state['manifest_digest'])}, "
            f"{_shown(state.get('n_samples'))} samples; now {info.manifest_digest}, {info.n_samples} samples); "
            "serve the data that it began with, or begin anew"
        )


def _shown(value: Any) -> str:
    """Return a name, a digest or a value, on one line and not too long."""
    if isinstance(value, str) and value.isalnum() and len(value) <= _MAX_SHOWN_CHARACTERS:
        return value
    try:
        return value if isinstance(value, str) and value.isidentifier() else reprlib.repr(value)
    except ValueError:
        return "of very many digits"  # which Python refuses to write out


def _differing(then: Any, now: Any) -> str:
    """Return both values, or what begins where they differ if only the middle of long ones does."""
    shown: tuple[str, ...] = (_shown(then), _shown(now))
    if shown[0] == shown[1]:
        with contextlib.suppress(ValueError):  # of very many digits
            texts = str(then), str(now)
            same = next((at for at, pair in enumerate(zip(*texts, strict=False)) if pair[0] != pair[1]), 0)
            start = max(0, same - _MIDDLE_CHARACTERS // 2)
            shown = tuple(f"...{text[start : start + _MIDDLE_CHARACTERS]!r}..." for text in texts)
    return f"{shown[0]} and is {shown[1]}"


def _value(content: Mapping[str, Any], name: str) -> Any:
    return content.get(name, _plain(OPTIONS[name].default) if name in OPTIONS else None)


def _plain(value: Any) -> Any:
    """Return an option's value as JSON has it."""
    return list(value) if isinstance(value, tuple) else value


def _content(info: Attached) -> dict[str, Any]:
    """Return the options that decide the bytes of a batch, where they are not the default."""
    content = {name: _plain(info.config[name]) for name, field in OPTIONS.items() if field.metadata["content"]}
    return {name: value for name, value in content.items() if value != _plain(OPTIONS[name].default)} | info.versions
