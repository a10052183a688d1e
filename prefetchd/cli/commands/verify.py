"""`prefetchd verify`: decode every sample once; report what is broken, and sizes, duplicates and classes."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Container, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO

from prefetchd.cli.arguments import EPILOG, Subparsers, add_source_options, config_of
from prefetchd.cli.spelling import as_flags
from prefetchd.errors import ConfigError, ManifestError

if TYPE_CHECKING:
    from prefetchd.cli.verify.findings import Inspected
    from prefetchd.config.options import Config

_SHOWN_WHERE = 1000


def add(commands: Subparsers, datasets: Iterable[str]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "verify",
        help="decode everything once and list what is broken",
        description="Decode every sample once, as it would be served with these options, and report: what is broken "
        "and why, malformed lines, sizes, aspects, channels, duplicates by content, class balance. The exit status is "
        "1 if anything is bad, 130 if it was interrupted.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "--write-clean", metavar="FILE", help="write the manifest without the bad lines, the others byte for byte"
    )
    parser.add_argument("--json", action="store_true", help="print everything, as JSON")
    add_source_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Verify and report."""
    config = config_of(arguments, "verify")
    if not config.mix:
        return _verify(config, arguments)
    from prefetchd.config.mix import part_configs

    _check_mix(config, arguments)
    # Each source is verified as it would be alone.
    parts = [replace(part, where=config.where, split=config.split) for part in part_configs(config)]
    if not arguments.json:
        return max(_verify(part, arguments) for part in parts)
    reports: list[dict[str, Any]] = []
    status = max(_verify(part, arguments, reports) for part in parts)
    print(json.dumps({"sources": reports}, indent=2))
    return status


def _check_mix(config: Config, arguments: argparse.Namespace) -> None:
    """Raise `ConfigError` for what means something else for one source of a mixture."""
    from prefetchd.config.selection import LABEL, parse_where

    if arguments.write_clean is not None:
        raise ConfigError("cannot use --write-clean with mix: it writes one list; verify each source alone")
    if LABEL in parse_where(config.where):
        raise ConfigError(
            f"cannot verify a mix with where={LABEL}: a class may have another number in each source; verify each alone"
        )


def _verify(config: Config, arguments: argparse.Namespace, reports: list[dict[str, Any]] | None = None) -> int:
    """Verify one source; print the report, or add it to `reports`."""
    from prefetchd.cli.verify.inspection import inspect
    from prefetchd.cli.views.charts import Progress

    if arguments.write_clean is not None:
        _refuse_part(config)
        check_target(config.source, arguments.write_clean)
    with Progress("verifying", sys.stderr) as progress:
        inspected = inspect(
            config, lambda done, total, bad: progress.update(done, total, f"{bad:,} bad" if bad else "")
        )
    report = _report(config, inspected)
    report["hint"] = "" if inspected.interrupted or report["good_samples"] else _hint(config, inspected)
    if arguments.write_clean is not None:
        report["clean"] = _write_clean(config, inspected, arguments.write_clean)
    if reports is not None:
        reports.append(report)
    elif arguments.json:
        print(json.dumps(report, indent=2))
    else:
        from prefetchd.cli.verify.findings import describe

        print("\n".join(describe(report)))
        if arguments.write_clean is not None:
            print(f"\n  clean       {report['clean']['said']}")
    return 130 if inspected.interrupted else int(bool(inspected.verdicts or inspected.malformed))


def _report(config: Config, inspected: Inspected) -> dict[str, Any]:
    """Return everything that `--json` prints."""
    from dataclasses import asdict

    from prefetchd.cli.verify.buckets import bucket_report
    from prefetchd.cli.verify.findings import summarise

    records = inspected.source.records
    first = records.samples([0])[0].label
    summary = summarise(
        inspected.facts,
        config.image_size,
        records.classes,
        has_classes=isinstance(first, int) and records.label_dtype == "int64",
    )
    duplicates = summary["duplicates"]
    duplicates["where"] = [
        [records.where(sample) for sample in records.samples(ids)] for ids in duplicates["sample_ids"][:_SHOWN_WHERE]
    ]
    return {
        "source": records.name,
        "n_samples": inspected.n_samples,
        "verified": summary["good_samples"] + len(inspected.verdicts),
        "interrupted": inspected.interrupted,
        "took_s": round(inspected.took_s, 3),
        "readers": inspected.n_readers,
        "malformed_lines": len(inspected.malformed),
        "malformed": [line._asdict() for line in inspected.malformed],
        "bad_samples": len(inspected.verdicts),
        "bad": [asdict(bad) for bad in inspected.bad()],
        **summary,
        "buckets": bucket_report(config, inspected.facts),
    }


def _hint(config: Config, inspected: Inspected) -> str:
    """Return what `serve` would say of a list whose files are all missing; empty if some are there."""
    from prefetchd.data.fields.source import FieldsSource
    from prefetchd.data.first_look import check_some_exist

    records = inspected.source.records
    if isinstance(inspected.source, FieldsSource) or records.is_far:
        return ""  # looked at when it was opened, and the reasons say it
    try:
        check_some_exist(records, config)
    except ManifestError as error:
        return as_flags(str(error).removeprefix(f"cannot serve {records.name}: "))
    return ""


def _write_clean(config: Config, inspected: Inspected, target: str) -> dict[str, Any]:
    """Write the clean manifest, if every sample was judged; return what was done."""
    unjudged = sum(not judged for _, judged in inspected.verdicts.values())
    if inspected.interrupted or unjudged:
        why = "it was interrupted" if inspected.interrupted else f"{unjudged:,} samples could not be judged"
        return {"written": False, "said": f"{target} was not written: {why}; verify again"}
    inspected.source.check_unchanged()
    malformed = {line.number for line in inspected.malformed}
    kept, left_out = write_clean(config.source, target, malformed | {bad.line for bad in inspected.bad()})
    said = f"{target} written: {kept:,} lines kept, {left_out:,} left out"
    said += f", {len(malformed):,} of them malformed" if malformed else ""
    home = os.path.dirname(os.path.abspath(config.source))
    if config.root is None and not os.path.samefile(home, os.path.dirname(os.path.abspath(target))):
        said += f"; its relative paths start from {home}: serve it with --root {home}"
    return {"written": True, "lines_kept": kept, "lines_left_out": left_out, "said": said}


def _refuse_part(config: Config) -> None:
    """Raise `ConfigError` where only a part of the samples is verified: the lines of the others are not known."""
    from prefetchd.data.order.plan import CHOOSING

    for name in CHOOSING:
        if getattr(config, name):
            raise ConfigError(
                f"cannot write a clean manifest with {name}: the other lines would not be verified; leave one of "
                "them out"
            )


# --- the manifest without its bad lines, all other bytes unchanged


def check_target(source: str, target: str) -> None:
    """Raise `ConfigError` unless `source` is a list file and `target` can be written beside it, not over it."""
    if not os.path.isfile(source):
        raise ConfigError(
            f"cannot write a clean manifest of {source}: it is not a list file; leave --write-clean out, and "
            "remove what is listed as bad"
        )
    if os.path.exists(target) and os.path.samefile(source, target):
        raise ConfigError(f"cannot write the clean manifest over {source} itself; name another file")
    if os.path.exists(target) and not os.path.isfile(target):
        raise ConfigError(f"cannot write {target}: it is not a regular file, and would be replaced; name another file")
    folder = os.path.dirname(os.path.realpath(target))
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise ConfigError(f"cannot write {target}: {folder} is not a writable folder; name another file")


def write_clean(source: str, target: str, bad_lines: Container[int]) -> tuple[int, int]:
    """Copy the lines of `source` whose numbers, from 1, are not in `bad_lines`; return how many were kept and left out.

    The new file gets its name only once it is complete, so a kill leaves an older one as it was. A symbolic link at
    `target` stays one: its target is replaced.

    Raises:
        ManifestError: if it cannot be written.
    """
    temporary = ""
    whole = os.path.realpath(target)
    try:
        with open(source, "rb") as lines:
            fd, temporary = tempfile.mkstemp(prefix=".prefetchd-", dir=os.path.dirname(whole))
            with os.fdopen(fd, "wb") as clean:
                counts = _copy(lines, clean, bad_lines)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, whole)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise ManifestError(f"cannot write {target}: {error.strerror}; check the disk and the permissions") from None
    return counts


def _copy(lines: BinaryIO, clean: BinaryIO, bad_lines: Container[int]) -> tuple[int, int]:
    kept = left_out = 0
    for number, line in enumerate(lines, 1):  # binary lines end with \n alone, as the manifest counts them
        if number in bad_lines:
            left_out += 1
        else:
            kept += 1
            clean.write(line)
    return kept, left_out
