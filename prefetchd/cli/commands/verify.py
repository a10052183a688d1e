"""`prefetchd verify`: decode every sample once; report what is broken, and sizes, duplicates and classes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from prefetchd.cli.arguments import EPILOG, Subparsers, add_source_options, config_of

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
    from prefetchd.cli.verify import clean_manifest
    from prefetchd.cli.verify.inspection import inspect
    from prefetchd.cli.views.charts import Progress

    if arguments.write_clean is not None:
        clean_manifest.check_target(config.source, arguments.write_clean)
    with Progress("verifying", sys.stderr) as progress:
        inspected = inspect(
            config, lambda done, total, bad: progress.update(done, total, f"{bad:,} bad" if bad else "")
        )
    report = _report(config, inspected)
    if arguments.write_clean is not None:
        report["clean"] = _write_clean(config, inspected, arguments.write_clean)
    if arguments.json:
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
        "n_samples": len(records),
        "verified": summary["good_samples"] + len(inspected.verdicts),
        "interrupted": inspected.interrupted,
        "took_s": round(inspected.took_s, 3),
        "readers": inspected.n_readers,
        "malformed_lines": len(inspected.malformed),
        "malformed": [line._asdict() for line in inspected.malformed],
        "bad_samples": len(inspected.verdicts),
        "bad": [asdict(bad) for bad in inspected.bad()],
        **summary,
    }


def _write_clean(config: Config, inspected: Inspected, target: str) -> dict[str, Any]:
    """Write the clean manifest, if every sample was judged; return what was done."""
    from prefetchd.cli.verify.clean_manifest import write_clean

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
