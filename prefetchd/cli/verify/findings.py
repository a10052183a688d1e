"""The results of an inspection: facts of each sample, bad samples, and what they say about the data set.

`inspection` makes `Inspected`. `summarise` makes plain values of it (`verify --json` prints them), `describe` lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.cli.verify.buckets import describe_buckets
from prefetchd.cli.views.charts import histogram, short_duration
from prefetchd.config.units import format_bytes, format_count
from prefetchd.data.images.headers.header import FORMATS
from prefetchd.errors import one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.data.images.source import ImageSource
    from prefetchd.data.manifest.dialect import MalformedLine

# Edges of the histograms, the same for every data set, so that two can be compared.
SIDE_EDGES_PX = (32, 64, 128, 224, 256, 384, 512, 768, 1024, 2048, 4096)
ASPECT_EDGES = (1 / 3, 1 / 2, 2 / 3, 0.8, 0.95, 1.05, 1.25, 1.5, 2, 3)
_LISTED_GROUPS = 1000
_SHOWN_GROUPS = 5
_SHOWN_BAD = 1000
_SHOWN_CLASSES = 12
_MANY_LABELS = 10_000


# The facts that are kept of each sample, in fewer bytes than readers deliver them in.
KEPT = np.dtype(
    [
        ("seen", "?"), ("digest", "i8"), ("n_bytes", "u4"), ("width_px", "u4"), ("height_px", "u4"), ("channels", "u1"),
        ("bits", "u1"), ("format", "u1"), ("progressive", "?"), ("label", "i8"),
    ]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bad:
    """A bad sample.

    Attributes:
        sample_id: its number.
        line: its line in the manifest, from 1; 0 where there is none.
        path: the file, or the shard, that it is in.
        where: path and line, in words.
        reason: why it cannot be delivered.
        judged: whether the content is at fault; otherwise the machine prevented the decode.
    """

    sample_id: int
    line: int
    path: str
    where: str
    reason: str
    judged: bool


@dataclass(frozen=True, slots=True)
class Inspected:
    """What an inspection found.

    Attributes:
        source: the samples; owned by the holder of this object.
        malformed: lines of a list file that are not samples.
        facts: (n samples,) `KEPT`; `seen` is false for samples that are bad or were not reached.
        verdicts: the reason of each bad sample, and whether its content is at fault, by number.
        interrupted: whether it was stopped before the end.
        took_s: duration in seconds.
        n_readers: how many readers decoded.
        n_samples: how many samples the options choose.
    """

    source: ImageSource
    malformed: list[MalformedLine]
    facts: NDArray[Any]
    verdicts: dict[int, tuple[str, bool]]
    interrupted: bool
    took_s: float
    n_readers: int
    n_samples: int

    def bad(self) -> Iterator[Bad]:
        """Yield the bad samples by number: a wrong `--root` makes millions of them."""
        records = self.source.records
        for sample_id in sorted(self.verdicts):
            reason, judged = self.verdicts[sample_id]
            sample = records.samples([sample_id])[0]
            path = one_line(sample.path)
            yield Bad(sample_id, sample.line, path, records.where(sample), reason, judged)


def summarise(
    facts: NDArray[Any], image_size: tuple[int, int], classes: Sequence[str] | None, *, has_classes: bool
) -> dict[str, Any]:
    """Return what `facts` (`KEPT`) say about the samples that were seen.

    Args:
        facts: a row a sample.
        image_size: (height, width) in pixels, as delivered; smaller images are counted.
        classes: names of the classes by number, if they have any.
        has_classes: whether the labels are whole numbers.
    """
    seen_ids = np.flatnonzero(facts["seen"])
    seen = facts[seen_ids]
    height_px, width_px = seen["height_px"].astype(np.int64), seen["width_px"].astype(np.int64)
    short_px = np.minimum(height_px, width_px)
    aspect = width_px / np.maximum(height_px, 1)
    summary: dict[str, Any] = {
        "good_samples": len(seen),
        "encoded_bytes": int(seen["n_bytes"].sum(dtype=np.int64)),
        "formats": {FORMATS[number]: count for number, count in _counts(seen["format"])},
        "channels": {str(number): count for number, count in _counts(seen["channels"])},
        "bits": {str(number): count for number, count in _counts(seen["bits"])},
        "progressive": int(seen["progressive"].sum()),
        "short_side_px": _binned(short_px, SIDE_EDGES_PX),
        "aspect": _binned(aspect, ASPECT_EDGES),
        "median_size_px": [int(np.median(height_px)), int(np.median(width_px))] if len(seen) else None,
        "smaller_than_delivered": int(((height_px < image_size[0]) | (width_px < image_size[1])).sum()),
        "duplicates": _duplicates(seen, seen_ids, has_classes=has_classes),
        "classes": _balance(seen["label"], classes) if has_classes else None,
    }
    return summary


def _counts(values: NDArray[Any]) -> list[tuple[int, int]]:
    numbers, counts = np.unique(values, return_counts=True)
    return sorted(zip(numbers.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1])


def _binned(values: NDArray[Any], edges: Sequence[float]) -> list[dict[str, Any]]:
    """Return the bins from the first to the last with a count: from, to (exclusive; `None` for no bound), count."""
    counts = np.bincount(np.digitize(values, edges), minlength=len(edges) + 1)
    bounds = [None, *(round(edge, 3) for edge in edges), None]
    filled = np.flatnonzero(counts)
    if not len(filled):
        return []
    return [
        {"from": bounds[number], "to": bounds[number + 1], "count": int(counts[number])}
        for number in range(filled[0], filled[-1] + 1)
    ]


def _duplicates(seen: NDArray[Any], seen_ids: NDArray[np.int64], *, has_classes: bool) -> dict[str, Any]:
    """Find samples whose encoded bytes are the same, by digest and length."""
    order = np.lexsort((seen_ids, seen["n_bytes"], seen["digest"]))
    same = (seen["digest"][order][1:] == seen["digest"][order][:-1]) & (
        seen["n_bytes"][order][1:] == seen["n_bytes"][order][:-1]
    )
    starts = np.flatnonzero(np.concatenate(([True], ~same))) if len(order) else np.empty(0, np.int64)
    lengths = np.diff(np.append(starts, len(order)))
    groups, conflicting, listed = 0, 0, []
    for start, length in zip(starts[lengths > 1].tolist(), lengths[lengths > 1].tolist(), strict=True):
        members = order[start : start + length]
        groups += 1
        conflict = has_classes and len(set(seen["label"][members].tolist())) > 1
        conflicting += conflict
        listed.append((not conflict, seen_ids[members].tolist()))
    listed.sort()  # those whose labels differ first
    return {
        "groups": groups,
        "superfluous_samples": int((lengths - 1).sum()),
        "groups_with_different_labels": conflicting,
        "sample_ids": [ids for _, ids in listed[:_LISTED_GROUPS]],
    }


def _balance(labels: NDArray[np.int64], classes: Sequence[str] | None) -> dict[str, Any] | None:
    """Return how many good samples each class has; `None` for too many numbers to be classes."""
    numbers, counts = np.unique(labels, return_counts=True)
    if classes is None and len(numbers) > _MANY_LABELS:
        return None
    by_number = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    if classes is not None:
        by_number = {number: by_number.get(number, 0) for number in range(len(classes))}
    rows = [
        {"class": number, "name": None if classes is None else classes[number], "count": count}
        for number, count in by_number.items()
    ]
    return {"n_classes": len(rows), "empty": sum(not row["count"] for row in rows), "counts": rows}


def describe(report: dict[str, Any]) -> list[str]:
    """Return the lines that `prefetchd verify` prints for the report that `--json` prints."""
    rate = report["verified"] / report["took_s"] if report["took_s"] else 0
    lines = [
        f"{'stopped after' if report['interrupted'] else 'verified'} {report['verified']:,} of "
        f"{report['n_samples']:,} samples of {report['source']} in {short_duration(report['took_s'])} "
        f"({rate:,.0f}/s, {format_count(report['readers'], 'reader')})"
    ]
    lines += _describe_malformed(report["malformed"])
    lines += _describe_bad(report["bad"])
    if not report["good_samples"]:
        return [*lines, f"  hint        {report['hint']}"] if report.get("hint") else lines
    lines += [
        "",
        f"  files       {report['good_samples']:,} good, {format_bytes(report['encoded_bytes'])}, "
        f"{_shares(report['formats'])}" + _some(report["progressive"], "progressive or interlaced"),
        f"  channels    {_shares(report['channels'])}; bits {_shares(report['bits'])}",
    ]
    height_px, width_px = report["median_size_px"]
    smaller = _some(report["smaller_than_delivered"], "smaller than delivered, so enlarged")
    lines.append(f"  size        median {width_px}x{height_px}{smaller}; shorter side in px:")
    lines += [f"    {line}" for line in histogram(_bin_rows(report["short_side_px"]))]
    lines.append("  aspect      width / height:")
    lines += [f"    {line}" for line in histogram(_bin_rows(report["aspect"]))]
    if report.get("buckets") is not None:
        lines += describe_buckets(report["buckets"])
    lines += _describe_duplicates(report["duplicates"])
    if report["classes"] is not None:
        lines += _describe_classes(report["classes"])
    return lines


def _describe_malformed(malformed: Sequence[dict[str, Any]]) -> list[str]:
    if not malformed:
        return []
    lines = [f"  malformed   {format_count(len(malformed), 'line')}"]
    lines += [f"    line {line['number']}: {line['reason']}" for line in malformed[:_SHOWN_BAD]]
    if len(malformed) > _SHOWN_BAD:
        lines.append(f"    and {len(malformed) - _SHOWN_BAD:,} more; --json lists them all")
    return lines


def _describe_bad(bad: Sequence[dict[str, Any]]) -> list[str]:
    if not bad:
        return ["  bad         none"]
    unjudged = sum(not sample["judged"] for sample in bad)
    lines = [
        f"  bad         {len(bad):,}"
        + (f", of which {unjudged:,} could not be judged (the machine's doing)" if unjudged else "")
    ]
    lines += [f"    {sample['where']}: {sample['reason']}" for sample in bad[:_SHOWN_BAD]]
    if len(bad) > _SHOWN_BAD:
        lines.append(f"    and {len(bad) - _SHOWN_BAD:,} more; --json lists them all")
    return lines


def _describe_duplicates(duplicates: dict[str, Any]) -> list[str]:
    if not duplicates["groups"]:
        return ["  duplicates  none (by content)"]
    conflicting = duplicates["groups_with_different_labels"]
    lines = [
        f"  duplicates  {format_count(duplicates['groups'], 'group')} of equal files, "
        f"{format_count(duplicates['superfluous_samples'], 'sample')} more than needed"
        + (f"; {conflicting:,} with different labels" if conflicting else "")
    ]
    shown = duplicates["sample_ids"][:_SHOWN_GROUPS]
    lines += [f"    {_list(places)}" for places in duplicates.get("where", [])[:_SHOWN_GROUPS]]
    if duplicates["groups"] > len(shown):
        lines.append(f"    and {duplicates['groups'] - len(shown):,} more; --json lists them")
    return lines


def _describe_classes(classes: dict[str, Any]) -> list[str]:
    rows = sorted(classes["counts"], key=lambda row: (-row["count"], row["class"]))
    most, least = rows[0]["count"], rows[-1]["count"]
    empty = f"; {classes['empty']:,} without a good sample" if classes["empty"] else ""
    sizes = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    lines = [f"  classes     {classes['n_classes']:,}, of {sizes} samples each{empty}:"]
    if len(rows) > _SHOWN_CLASSES:
        half = _SHOWN_CLASSES // 2
        shown = [*rows[:half], None, *rows[-half:]]
    else:
        shown = list(rows)
    named = [(_name(row), row["count"]) for row in shown if row is not None]
    drawn = histogram(named)
    if len(rows) > _SHOWN_CLASSES:
        drawn.insert(_SHOWN_CLASSES // 2, f"... {len(rows) - _SHOWN_CLASSES:,} classes between")
    return lines + [f"    {line}" for line in drawn]


def _name(row: dict[str, Any]) -> str:
    name = str(row["class"]) if row["name"] is None else str(row["name"])
    return name if len(name) <= 24 else name[:23] + "…"


def _bin_rows(bins: Sequence[dict[str, Any]]) -> list[tuple[str, int]]:
    rows = []
    for found in bins:
        if found["from"] is None:
            name = f"below {found['to']:g}"
        elif found["to"] is None:
            name = f"{found['from']:g} and more"
        else:
            name = f"{found['from']:g} to {found['to']:g}"
        rows.append((name, found["count"]))
    return rows


def _shares(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in counts.items())


def _some(count: int, what: str) -> str:
    return f"; {count:,} {what}" if count else ""


def _list(places: Sequence[str]) -> str:
    shown = " = ".join(places[:4])
    return shown + (f" = {len(places) - 4} more" if len(places) > 4 else "")
