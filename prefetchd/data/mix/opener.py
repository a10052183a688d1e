"""Opens the sources of a mixture in the daemon, attaches to them in a reader, and refuses those that do not fit.

Two sources fit if they deliver the same fields, and if a label means the same in both: numbers in both, or names of
classes, which get their numbers among the classes of all sources.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.columns.store import Columns
from prefetchd.columns.writer import ColumnsWriter
from prefetchd.config.fields import parse_fields
from prefetchd.config.mix import parse_mix, part_configs
from prefetchd.config.options import Config
from prefetchd.data.arrays.source import MappedSource
from prefetchd.data.fields.source import FieldsSource
from prefetchd.data.images.source import ImageSource
from prefetchd.data.kinds import InapplicableOption
from prefetchd.data.labels import sorted_classes
from prefetchd.data.mix.source import MixedSource, Renumbering
from prefetchd.data.source import Source, SourceFacts
from prefetchd.errors import ConfigError, ManifestError, one_line

if TYPE_CHECKING:
    from prefetchd.columns.passed import PassedTable
    from prefetchd.ring.layout import FieldLayout

_MOST_FDS = 250  # of one message
_BUFFER_BYTES = 512 << 10  # for the files of each source of images after the first, which every reader has
Classes = dict[str, "tuple[str, ...] | None"]  # names by number, of each field that has labels; `None`: numbers


def open_mix(config: Config, passed: Mapping[str, PassedTable], open_source: Callable[..., Source]) -> MixedSource:
    """Return the sources of a mixture as one.

    Args:
        config: the options.
        passed: the sources that are in the starter's memory, as `mix/NUMBER`; owned.
        open_source: the registry's.

    Raises:
        ConfigError: if an option means nothing for one of them, or their fields differ.
        ManifestError: if one cannot be served, or labels of one mean something else than those of another.
    """
    names = [one_line(part.name) for part in parse_mix(config.mix)]
    parts: list[Source] = []
    for number, own in enumerate(part_configs(config)):
        try:
            parts.append(open_source(own, table=passed.get(f"mix/{number}")))
        except InapplicableOption as error:
            raise ConfigError(str(error)) from None
    for name, part in zip(names[1:], parts[1:], strict=True):
        _check_fields(names[0], parts[0].facts.fields, name, part.facts.fields)
    n_fds = sum(len(part.handle()[1]) for part in parts)
    if n_fds > _MOST_FDS:
        raise ConfigError(
            f"cannot mix {len(parts)} sources: they have {n_fds} files, and {_MOST_FDS} at most fit; mix fewer"
        )
    has_labels = _check_labelled(config, names, parts)
    if not has_labels and config.target_transform is not None:
        raise ConfigError(
            f"cannot mix {names[0]} with target_transform: its samples have no labels, and a function would see the "
            "number of a sample in its own source; label them, or leave target_transform out"
        )
    classes = _all_classes(config, names, parts)
    firsts = np.cumsum([0, *(part.facts.n_samples for part in parts)]).tolist()
    numbers = {layout.name: number for number, layout in enumerate(parts[0].facts.fields)}
    renumbered = [
        {
            numbers[name]: np.array([position[each] for each in own], np.int64)
            for name, own in _classes(config, part).items()
            if own is not None and (union := classes[name]) is not None and own != union[: len(own)]
            for position in [{each: number for number, each in enumerate(union)}]
        }
        for part in parts
    ]
    labels = [name for name, own in classes.items() if own is not None]
    return MixedSource(
        parts,
        _facts(parts, list(zip(names, firsts[:-1], strict=True)), classes, labels),
        renumbered,
        first_label=_first_label(config, numbers),
        label_classes=classes.get(_label_name(config)),
        numbers_rows=not has_labels and _y_is_label(config),
        columns=_write(renumbered),
        named={name: own for name, own in classes.items() if own is not None} if config.fields else None,
    )


def attach_mix(
    config: Config, handle: dict[str, Any], fds: list[int], attach_source: Callable[..., Source]
) -> MixedSource:
    """Return, in a reader, the source that the daemon opened; owns `fds`. `attach_source` is the registry's."""
    parts: list[Source] = []
    at = 0
    for own, (part, n_fds) in zip(part_configs(config), handle["parts"], strict=True):
        parts.append(attach_source(own, part, fds[at : at + n_fds]))
        at += n_fds
    renumbered: list[dict[int, Any]] = [{} for _ in parts]
    if handle["table"] is not None:
        with Columns.attach(handle["table"], fds[at]) as columns:  # the map goes on without the descriptor
            for name in columns:
                part, number = map(int, name.split("/"))
                renumbered[part][number] = columns[name].values[0]
    firsts = np.cumsum([0, *(part.facts.n_samples for part in parts)]).tolist()
    sources = [(str(number), first) for number, first in enumerate(firsts[:-1])]
    return MixedSource(parts, _facts(parts, sources, {}, []), renumbered, numbers_rows=handle["numbers_rows"])


def _facts(
    parts: Sequence[Source], sources: list[tuple[str, int]], classes: Classes, labels: Sequence[str]
) -> SourceFacts:
    facts = [part.facts for part in parts]
    n_more = max(0, sum(isinstance(part, ImageSource) for part in parts) - 1)
    versions: dict[str, str] = {}
    for each in facts:
        for name, version in each.versions.items():
            versions[name] = version if versions.get(name, version) == version else f"{versions[name]}; {version}"
    digest = hashlib.blake2b(" ".join(each.digest for each in facts).encode(), digest_size=8).hexdigest()
    return SourceFacts(
        n_samples=sum(each.n_samples for each in facts),
        digest=digest,
        versions=versions,
        fields=facts[0].fields,
        classes=classes[labels[0]] if labels else None,
        shared_bytes=sum(each.shared_bytes for each in facts),
        reader_bytes=sum(each.reader_bytes for each in facts) + _BUFFER_BYTES * n_more,
        max_task_rows=min(each.max_task_rows for each in facts),
        answers_together=all(each.answers_together for each in facts),
        sources=tuple(sources),
        is_far=any(each.is_far for each in facts),
    )


def _write(renumbered: Sequence[Renumbering]) -> Columns | None:
    """Return the new numbers of classes in a sealed memfd, which the caller owns; `None` where there are none."""
    if not any(renumbered):
        return None
    with ColumnsWriter(1) as writer:
        for part, tables in enumerate(renumbered):
            for number, table in tables.items():
                writer.add_numbers(f"{part}/{number}", table[np.newaxis])
        return Columns.attach(*writer.finish())


def _check_fields(name: str, fields: Sequence[FieldLayout], other: str, others: Sequence[FieldLayout]) -> None:
    for field, another in zip(fields, others, strict=False):
        if field != another:
            raise ConfigError(
                f"cannot mix {other} with {name}: {another.name} is {another.dtype}{list(another.shape)} in the one, "
                f"and {field.name} is {field.dtype}{list(field.shape)} in the other; give all the same columns and "
                "lengths (y_column, label_columns, max_boxes, max_length)"
            )
    if len(fields) != len(others):
        raise ConfigError(
            f"cannot mix {other} with {name}: a sample has {len(others)} arrays in the one and {len(fields)} in the "
            "other; give the same to all"
        )


def _y_is_label(config: Config) -> bool:
    """Return whether y is the label as the source has it."""
    return not config.fields and config.target == "label" and config.target_transform is None


def _label_name(config: Config) -> str:
    """Return the name of the array with the first labels; empty for none."""
    if not config.fields:
        return "y"
    return next((name for name, field in parse_fields(config.fields).items() if field.kind == "label"), "")


def _first_label(config: Config, numbers: Mapping[str, int]) -> int:
    """Return the number of the array with the first labels; -1 for none."""
    return numbers.get(_label_name(config), -1)


def _check_labelled(config: Config, names: Sequence[str], parts: Sequence[Source]) -> bool:
    """Return whether samples have labels; refuse a mixture of some that have and some that have not."""
    if config.fields or config.target != "label":
        return True
    found = [_is_labelled(part) for part in parts]
    if len(set(found)) > 1:
        raise ManifestError(
            f"cannot mix {names[found.index(False)]} with {names[found.index(True)]}: the one has no labels, and the "
            "other has; label all of them, or give label_columns=0"
        )
    return found[0]


def _is_labelled(part: Source) -> bool:
    if isinstance(part, MappedSource):
        return part.has_labels
    assert isinstance(part, ImageSource)
    return part.records.samples([0])[0].label is not None


def _classes(config: Config, part: Source) -> Classes:
    """Return the names of the classes of each array of a part that holds labels or classes of objects."""
    if isinstance(part, FieldsSource):
        found = part.class_names()
        return {
            name: found.get(name)
            for name, field in parse_fields(config.fields).items()
            if field.kind in ("label", "boxes", "keypoints")
        }
    return {"y": part.facts.classes}


def _all_classes(config: Config, names: Sequence[str], parts: Sequence[Source]) -> Classes:
    """Return the classes of all parts together, by field.

    Raises:
        ManifestError: if the number of a class would mean different classes in the batches.
    """
    all_classes: Classes = {}
    every = [_classes(config, part) for part in parts]
    for name in every[0]:
        found = [each[name] for each in every]
        all_classes[name] = found[0]
        if all(own == found[0] for own in found):
            continue
        at = next(number for number, own in enumerate(found) if own != found[0])
        what = "" if name == "y" else f" of the field {name}"
        if None in found:
            numbers, named = found.index(None), next(number for number, own in enumerate(found) if own is not None)
            raise ManifestError(
                f"cannot mix {names[numbers]} with {names[named]}: the labels{what} are numbers in the one, and names "
                "of classes in the other; write them alike"
            )
        why = _why_not_renumbered(config, name, parts)
        if why:
            raise ManifestError(
                f"cannot mix {names[at]} with {names[0]}: their classes{what} are not the same, so a number means "
                f"different ones, and {why}; give all of them the same classes"
            )
        all_classes[name] = tuple(sorted_classes({each for own in found if own is not None for each in own}))
    return all_classes


def _why_not_renumbered(config: Config, name: str, parts: Sequence[Source]) -> str:
    """Return why classes of a field cannot get numbers among those of all parts; empty if they can."""
    layout = next((each for each in parts[0].facts.fields if each.name == name), None)
    if layout is None or layout.shape or layout.dtype != "int64":
        return "they are not one class a sample, int64"
    functions = [option for option in ("transform", "target_transform") if getattr(config, option) is not None]
    seen = [option for option in functions if config.fields or option == "target_transform"]
    return f"{seen[0]} would see the number of its own source" if seen else ""
