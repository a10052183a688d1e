"""The state of a loader: what `state_dict` gives, and whether a state fits what is served now. Pure.

A state names a position in the sequence of batches that all ranks see together, so it fits any number of readers, any
daemon and any world size; and it names what that sequence is made from, by digests, so that it fits nothing else.
"""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefetchd.config.options import OPTIONS
from prefetchd.errors import ConfigError, ManifestError
from prefetchd.ipc.messages import Attached

STATE_VERSION = 1
_COUNTS = ("epoch", "next_batch", "first_epoch")
_TEXTS = ("config_digest", "manifest_digest")
MAX_EPOCH = 1 << 52
_MAX_SHOWN = 20
_MAX_SHOWN_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class Position:
    """Where a loader goes on.

    Attributes:
        epoch: the epoch of the next batch.
        batch: the next batch of that epoch over all ranks: step x world size, as the steps were counted from 0.
        first_epoch: the first epoch of the iteration that it is in the midst of.
        rotation: the batch that its epochs begin at (`join="now"`); `batch` is counted from there.
    """

    epoch: int
    batch: int
    first_epoch: int
    rotation: int = 0

    def iteration(self, epochs: int | None) -> tuple[int, int | None]:
        """Return (first epoch, stop epoch) of the iteration that goes on here, `epochs` long.

        It is the rest of the one that was interrupted, or a new one if that was at its end.
        """
        if epochs is None:
            return self.first_epoch, None
        stop_epoch = self.first_epoch + epochs
        if self.epoch < stop_epoch:
            return self.first_epoch, stop_epoch
        return (self.epoch, self.epoch + 1) if self.batch else (self.epoch, self.epoch + epochs)


def make_state(info: Attached, position: Position) -> dict[str, Any]:
    """Return the state of a loader that is at `position` of what `info` describes: small, and plain JSON values."""
    return {
        "version": STATE_VERSION,
        "epoch": position.epoch,
        "next_batch": position.batch,
        "first_epoch": position.first_epoch,
        "rotation": position.rotation,
        "seed": info.config["seed"],
        "n_samples": info.n_samples,
        "config_digest": info.config_digest,
        "manifest_digest": info.manifest_digest,
        "config": _content(info),
    }


def read_state(state: Mapping[str, Any], info: Attached) -> Position:
    """Return the position in `state`, which must fit what `info` describes.

    Raises:
        ConfigError: if it is no state, or is of other options; the message says which.
        ManifestError: if it is of other data.
    """
    version = _whole(state.get("version")) if isinstance(state, Mapping) else None
    if version is None:
        raise ConfigError("cannot resume: this is no state of a loader; give what state_dict() returned")
    if version != STATE_VERSION:
        raise ConfigError(
            f"cannot resume: the state has version {_shown(version)}, and this prefetchd reads "
            f"{STATE_VERSION}; resume with the prefetchd that saved it"
        )
    counts = {}
    for name in (*_COUNTS, "rotation"):
        count = _whole(state.get(name, 0 if name == "rotation" else None))  # older states have none
        if count is None or not 0 <= count <= MAX_EPOCH:
            raise ConfigError(f"cannot resume: {name} is no count in the state; give what state_dict() returned")
        counts[name] = count
    for name in _TEXTS:
        if not isinstance(state.get(name), str):
            raise ConfigError(f"cannot resume: {name} is no digest in the state; give what state_dict() returned")
    check_same(state, info)
    position = Position(counts["epoch"], counts["next_batch"], counts["first_epoch"], counts["rotation"])
    if position.first_epoch > position.epoch:
        raise ConfigError(
            f"cannot resume: the state's iteration began with epoch {position.first_epoch}, after the epoch "
            f"{position.epoch} that it is in; give what state_dict() returned"
        )
    for what, batch in (("goes on at", position.batch), ("has epochs that begin at", position.rotation)):
        if batch >= info.batches_per_epoch:
            raise ConfigError(
                f"cannot resume: the state {what} batch {batch}, and an epoch has {info.batches_per_epoch} batches; "
                "give what state_dict() returned"
            )
    return position


def _whole(value: Any) -> int | None:
    """Return a whole number as Python's own: checkpoint formats make numpy's, or tensors, of it; `None` for others."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError):
        return None


def check_same(state: Mapping[str, Any], info: Attached, why: str = "the state is of other batches") -> None:
    """Raise unless `info` describes the same sequence of batches as `state`; `why` begins what is said then."""
    if state["config_digest"] != info.config_digest:
        now, then = _content(info), state.get("config")
        then = {key: value for key, value in then.items() if isinstance(key, str)} if isinstance(then, dict) else {}
        differs = [
            f"{_shown(name)} was {_shown(_value(then, name))} and is {_shown(_value(now, name))}"
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


def _value(content: Mapping[str, Any], name: str) -> Any:
    return content.get(name, _plain(OPTIONS[name].default) if name in OPTIONS else None)


def _plain(value: Any) -> Any:
    """Return an option's value as JSON has it."""
    return list(value) if isinstance(value, tuple) else value


def _content(info: Attached) -> dict[str, Any]:
    """What decides the bytes of a batch, where it is not the default."""
    content = {name: _plain(info.config[name]) for name, field in OPTIONS.items() if field.metadata["content"]}
    return {name: value for name, value in content.items() if value != _plain(OPTIONS[name].default)} | info.versions
