"""What `prefetchd verify --json` has found, read from a file: sizes, duplicates, classes, what is broken.

The dashboard starts no verification itself: it only shows, and a verification would take the readers' cores. The file
is read again when it has changed, and need not be there when the dashboard starts.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import msgspec

from prefetchd.errors import ConfigError

_MOST_BYTES = 512 << 20
_SHOWN_GROUPS = 100
_SHOWN_BAD = 100
_SHOWN_CLASSES = 60


class Bin(msgspec.Struct, rename={"low": "from"}):
    """A bin of a histogram, up to `to` without it; `None` for no bound."""

    low: float | None
    to: float | None
    count: int


class Duplicates(msgspec.Struct):
    """Groups of samples whose files are equal; those whose labels differ come first."""

    groups: int
    superfluous_samples: int
    groups_with_different_labels: int
    sample_ids: list[list[int]]
    where: list[list[str]] = []


class ClassRow(msgspec.Struct):
    """How many good samples a class has."""

    name: str | None
    count: int
    number: int = msgspec.field(name="class")


class Classes(msgspec.Struct):
    """The class balance."""

    n_classes: int
    empty: int
    counts: list[ClassRow]


class Bad(msgspec.Struct):
    """A bad sample."""

    sample_id: int
    where: str
    reason: str


class Findings(msgspec.Struct):
    """What was found in one source. What else the file has is left out."""

    source: str
    n_samples: int
    verified: int
    interrupted: bool
    malformed_lines: int
    bad_samples: int
    good_samples: int
    encoded_bytes: int
    formats: dict[str, int]
    channels: dict[str, int]
    short_side_px: list[Bin]
    aspect: list[Bin]
    median_size_px: tuple[int, int] | None
    smaller_than_delivered: int
    duplicates: Duplicates
    classes: Classes | None
    bad: list[Bad]


class OfMixture(msgspec.Struct):
    """What was found in each source of a mixture."""

    sources: list[Findings]


class FindingsFiles:
    """The files that the user named, by data set; the empty name is for every other one.

    Args:
        paths: the path of each data set's file.
    """

    def __init__(self, paths: Mapping[str, str]) -> None:
        self._paths = {name: os.path.abspath(os.path.expanduser(path)) for name, path in paths.items()}
        self._read: dict[str, tuple[tuple[int, int], list[dict[str, Any]]]] = {}
        self._lock = threading.Lock()

    def find(self, dataset: str) -> tuple[list[dict[str, Any]] | None, str, float | None]:
        """Return what was found in each source of a data set, why that is not known, and the file's age in seconds."""
        path = self._paths.get(dataset) or self._paths.get("")
        if path is None:
            return None, "", None
        with self._lock:
            try:
                state = os.stat(path)
                found = self._load(path, (state.st_mtime_ns, state.st_size))
            except OSError as error:
                return None, f"cannot read {path}: {error.strerror}; write it with verify --json", None
            except ConfigError as error:
                return None, str(error), None
        return found, "", max(0.0, time.time() - state.st_mtime)

    def _load(self, path: str, identity: tuple[int, int]) -> list[dict[str, Any]]:
        known = self._read.get(path)
        if known is not None and known[0] == identity:
            return known[1]
        if identity[1] > _MOST_BYTES:
            raise ConfigError(f"cannot read {path}: it has {identity[1]:,} bytes, and {_MOST_BYTES:,} is the most")
        with open(path, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
        try:
            found: Findings | OfMixture
            try:
                found = msgspec.json.decode(content, type=Findings)
            except msgspec.ValidationError:
                found = msgspec.json.decode(content, type=OfMixture)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise ConfigError(
                f"cannot read {path}: it is not what prefetchd verify --json prints; it may not be complete yet"
            ) from None
        shown = [_shown(each) for each in (found.sources if isinstance(found, OfMixture) else [found])]
        self._read[path] = identity, shown
        return shown


def _shown(found: Findings) -> dict[str, Any]:
    """Return what the page shows, as plain values: of long lists the beginning."""
    twice = found.duplicates
    where = [*twice.where, *([] for _ in twice.sample_ids[len(twice.where) :])]
    classes = None
    if found.classes is not None:
        rows = sorted(found.classes.counts, key=lambda row: (-row.count, row.number))
        classes = {
            "n_classes": found.classes.n_classes,
            "empty": found.classes.empty,
            "classes": [{"name": row.name or str(row.number), "count": row.count} for row in rows[:_SHOWN_CLASSES]],
            "others": sum(row.count for row in rows[_SHOWN_CLASSES:]),
            "least": rows[-1].count if rows else 0,
        }
    return {
        "source": found.source,
        "n_samples": found.n_samples,
        "verified": found.verified,
        "interrupted": found.interrupted,
        "malformed_lines": found.malformed_lines,
        "bad_samples": found.bad_samples,
        "good_samples": found.good_samples,
        "encoded_bytes": found.encoded_bytes,
        "formats": found.formats,
        "channels": found.channels,
        "sides": [_bin(each) for each in found.short_side_px],
        "aspects": [_bin(each) for each in found.aspect],
        "median": found.median_size_px,
        "smaller": found.smaller_than_delivered,
        "classes": classes,
        "duplicates": {
            "groups": twice.groups,
            "superfluous": twice.superfluous_samples,
            "conflicting": twice.groups_with_different_labels,
            "shown": [
                [{"sample_id": number, "where": place} for number, place in zip_longest(ids[:8], places[:8])]
                for ids, places in zip(twice.sample_ids[:_SHOWN_GROUPS], where, strict=False)
            ],
        },
        "bad": [
            {"sample_id": bad.sample_id, "where": bad.where, "reason": bad.reason} for bad in found.bad[:_SHOWN_BAD]
        ],
    }


def _bin(each: Bin) -> dict[str, Any]:
    if each.low is None:
        name = f"below {each.to:g}" if each.to is not None else "all"
    else:
        name = f"{each.low:g} and more" if each.to is None else f"{each.low:g} to {each.to:g}"
    return {"name": name, "count": each.count}


def parse_findings(words: list[str], flag: str = "--findings") -> dict[str, str]:
    """Return the file of each data set from words of the command line after `flag`: FILE, or DATASET=FILE.

    Raises:
        ConfigError: if a data set has two.
    """
    paths: dict[str, str] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or "/" in name or os.path.exists(word):
            name, path = "", word
        if name in paths or not path:
            raise ConfigError(f"cannot use {flag} {word}: a data set has one file; give DATASET=FILE for each")
        paths[name] = path
    return paths
