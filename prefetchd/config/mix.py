"""The option `mix`: from what a user writes to its one form, and what that form means. Pure.

{"a.txt": 0.7, "b.txt": [0.5, 0.1]}  ->  ("a.txt=0.7", "b.txt=0.5,0.1")
["a.txt", "b.txt"]                   ->  ("a.txt", "b.txt")                shares by size
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from prefetchd.config.convert import absolute_path, path, plain, shown, wrong
from prefetchd.config.options import OPTIONS
from prefetchd.errors import ConfigError

if TYPE_CHECKING:
    from prefetchd.config.options import Config

MAX_SOURCES = 64
MAX_PHASES = 64  # epochs with shares of their own
_WANTED = (
    "sources with their shares, such as {'a.txt': 0.7, 'b.txt': 0.3} or a.txt=0.7, of 400 digits at most, or sources "
    "alone"
)
_SHARE = r"\d+(?:\.\d*)?(?:[eE][+-]?\d+)?(?:/\d+)?"
_WRITTEN = re.compile(rf"(.+)=({_SHARE}(?:,{_SHARE})*)", re.DOTALL)
_EXPONENT = re.compile(r"[eE][+-]?0*(\d+)")
_MOST_CHARACTERS, _MOST_EXPONENT = 400, 400  # of a share: a fraction of more digits takes seconds, or for ever
_SEED_STEP = 0x1E3779B97F4A7C15  # odd, so that each part has a seed of its own
_SEEDS = 1 << 63


@dataclass(frozen=True, slots=True)
class MixPart:
    """One source of a mixture.

    Attributes:
        name: its path, or for one in memory what errors call it.
        shares: how much of it there is, in each epoch; the last holds from then on. Empty for shares by size.
    """

    name: str
    shares: tuple[Fraction, ...]

    def share(self, phase: int) -> Fraction:
        """Return its share in an epoch; only the ratio to the other shares means anything."""
        return self.shares[min(phase, len(self.shares) - 1)]


def canonical_mix(value: object) -> tuple[str, ...]:
    """Return the sources as texts `path=share,share`, or `path` where sizes decide.

    Args:
        value: a mapping of paths to a share, or to one for each epoch; a text, or several; or pairs.

    Raises:
        ConfigError: if it is something else, or the shares cannot be mixed by.
    """
    if value is None or value in ("", (), []):
        return ()
    if isinstance(value, Mapping):
        texts = [_text(name, share) for name, share in value.items()]
    elif isinstance(value, str | bytes | os.PathLike):
        texts = [_given(value)]
    elif isinstance(value, Sequence):
        texts = [_text(*each) if isinstance(each, tuple) and len(each) == 2 else _given(each) for each in value]
    else:
        raise wrong("mix", type(value).__name__, _WANTED)
    _check(parse_mix(texts))
    return tuple(texts)


def parse_mix(mix: Iterable[str]) -> list[MixPart]:
    """Return the sources of the option in its one form."""
    parts = []
    for text in mix:
        match = _WRITTEN.fullmatch(text)
        if match is None:
            parts.append(MixPart(text, ()))
            continue
        try:
            parts.append(MixPart(match[1], tuple(map(_fraction, match[2].split(",")))))
        except (ValueError, ZeroDivisionError):
            raise wrong("mix", text, _WANTED) from None
    return parts


def _fraction(text: str) -> Fraction:
    """Return a share; raises `ValueError` for one whose digits would take too long to write out."""
    exponent = _EXPONENT.search(text)
    if len(text) > _MOST_CHARACTERS or (exponent and (len(exponent[1]) > 3 or int(exponent[1]) > _MOST_EXPONENT)):
        raise ValueError
    return Fraction(text)


def _given(value: Any) -> str:
    """Return the text of one source, as it was written or as it came by a message."""
    if not isinstance(value, str | bytes | os.PathLike):
        raise wrong("mix", type(value).__name__, _WANTED)
    found = path(value)
    assert found is not None
    return found


def _text(name: Any, share: Any) -> str:
    if share is None:
        return _given(name)
    shares = plain(share)
    several = list(shares) if isinstance(shares, Sequence) and not isinstance(shares, str) else [shares]
    try:
        texts = [str(plain(each)) for each in several]
    except ValueError:  # a number of very many digits
        texts = []
    if not texts or not all(re.fullmatch(_SHARE, text) for text in texts):
        raise ConfigError(
            f"cannot mix {_given(name)!r} with the share {shown(share)}: it must be a number, 0 or more, such as 0.7 "
            "or 1/3, or one for each epoch, such as [0.9, 0.5]"
        )
    return f"{_given(name)}={','.join(texts)}"


def _check(parts: Sequence[MixPart]) -> None:
    if not 2 <= len(parts) <= MAX_SOURCES:
        raise ConfigError(f"cannot mix {len(parts)} sources: give 2 to {MAX_SOURCES}")
    names = [part.name for part in parts if not part.name.startswith("<")]
    again = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if again is not None:
        raise ConfigError(f"cannot mix {again!r} with itself; give each source once, with all of its share")
    without = [part.name for part in parts if not part.shares]
    if without and len(without) < len(parts):
        raise ConfigError(
            f"cannot mix {without[0]!r}: the others have shares, and it has none; give each a share, or none"
        )
    if without:
        return
    longest = phases(parts)
    if longest > MAX_PHASES:
        raise ConfigError(
            f"cannot mix by shares for {longest} epochs: give {MAX_PHASES} at most; the last one holds on"
        )
    for part in parts:
        if not any(part.shares):
            raise ConfigError(f"cannot mix {part.name!r} with the share 0; leave it out")
    for phase in range(longest):
        if not any(part.share(phase) for part in parts):
            raise ConfigError(f"cannot mix in epoch {phase}: all shares are 0; give one above it")


def phases(parts: Sequence[MixPart]) -> int:
    """Return for how many epochs shares are given; those of the last one hold on."""
    return max(1, max(len(part.shares) for part in parts))


def mix_name(mix: Sequence[str]) -> str:
    """Return what `source` is for a mixture."""
    return f"<mix of {len(mix)} sources>"


def name_source(options: dict[str, Any]) -> None:
    """Give checked options with a `mix` the name of it as their source.

    Raises:
        ConfigError: if they name another source too.
    """
    name = mix_name(options["mix"])
    if options.get("source", name) not in (None, name):
        raise ConfigError(
            f"cannot use mix together with the source {options['source']!r}: give it a share in the mix, or leave one "
            "of them out"
        )
    options["source"] = name


def absolute_mix(mix: Sequence[str]) -> tuple[str, ...]:
    """Return the option with absolute paths; sources in memory stay as they are."""
    texts = []
    for part, text in zip(parse_mix(mix), mix, strict=True):
        texts.append(text if text.startswith("<") else absolute_path(part.name) + text[len(part.name) :])
    return tuple(texts)


def renamed(text: str, name: str) -> str:
    """Return one source of the option with another name."""
    return name + text[len(parse_mix([text])[0].name) :]


def beside(folder: str, value: Any) -> Any:
    """Return the option as a TOML file in `folder` has it, with paths that start there."""
    if isinstance(value, Mapping):
        return {os.path.join(folder, os.path.expanduser(name)): share for name, share in value.items()}
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return [os.path.join(folder, os.path.expanduser(text)) for text in value]
    return value


def part_configs(config: Config) -> list[Config]:
    """Return the options of each source of a mixture: its path, and a seed for its augmentation.

    Equal numbers of two sources would else have the same random crops.
    """
    return [
        dataclasses.replace(
            config, source=part.name, seed=(config.seed + number * _SEED_STEP) % _SEEDS, mix=(), mix_temperature=None,
            stop="first", epoch_samples=None, where=(), split=None,
        )
        for number, part in enumerate(parse_mix(config.mix))
    ]  # fmt: skip


# Options that mean nothing for several sources at once, and what to give instead.
_OTHERWISE_WITH_MIX = {
    "subset": "where or split, which hold for each source",
    "order": "where or split, which hold for each source",
    "limit": "epoch_samples for a shorter epoch",
    "weights": "a share to each source",
    "labels": ".npz files, which hold x and y",
    "offsets": "one source",
}


def check_mix(config: Config) -> None:
    """Raise `ConfigError` for options that a mixture does not take, or that only it takes."""
    if not config.mix:
        for name in ("mix_temperature", "stop"):
            if getattr(config, name) != OPTIONS[name].default:
                raise ConfigError(f"cannot use {name} without mix; give the sources in it, or leave it out")
        return
    for name, instead in _OTHERWISE_WITH_MIX.items():
        if getattr(config, name) is not None:
            raise ConfigError(f"cannot use {name} together with mix; give {instead}")
    if config.mix_temperature is not None and parse_mix(config.mix)[0].shares:
        raise ConfigError("cannot use mix_temperature with shares, which it would make of the sizes; give one of them")
    if config.stop == "last" and config.epoch_samples is not None:
        raise ConfigError(
            "cannot use stop together with epoch_samples, which says where an epoch ends; give one of them"
        )
