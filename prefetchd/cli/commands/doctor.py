"""`prefetchd doctor`: what this machine is, what that means for prefetchd, and whether an epoch gets through."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prefetchd.cli.arguments import Subparsers, add_debug

if TYPE_CHECKING:
    from prefetchd.cli.doctor.judge import Finding

_WIDTH = 100
_MARKS = {"ok": " ", "note": "!", "bad": "X"}


def add(commands: Subparsers, datasets: Iterable[str]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "doctor",
        help="tell what this machine means for prefetchd; for bug reports",
        description="Look at this machine: kernel, limits, memory, cores, control groups, versions, GPU. Say what each "
        "means for prefetchd here, and serve one epoch of four images. Lines that begin with ! are worth knowing; with "
        "X, something will not work, and the exit status is 1.",
    )
    parser.add_argument("--json", action="store_true", help="print the facts and findings as JSON")
    parser.add_argument("--quick", action="store_true", help="look only, and serve nothing")
    add_debug(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; return 1 if something will not work."""
    from prefetchd.cli.doctor.facts import gather
    from prefetchd.cli.doctor.judge import judge

    facts = gather()
    findings = judge(facts)
    if not arguments.quick:
        findings.append(_trial())
    n_bad = sum(each.level == "bad" for each in findings)
    if arguments.json:
        listed = [
            {"name": each.name, "level": each.level, "found": each.found, "meaning": each.meaning} for each in findings
        ]
        print(json.dumps({"facts": facts, "findings": listed}, indent=2))
    else:
        print("\n".join(_lines(findings)))
    return 1 if n_bad else 0


def _trial() -> Finding:
    """Serve one epoch of four small images by a private daemon."""
    from prefetchd.cli.doctor.judge import Finding
    from prefetchd.errors import PrefetchdError, one_line

    try:
        import cv2
        import numpy as np

        from prefetchd.client.api import batches

        with tempfile.TemporaryDirectory() as folder:
            for number in range(4):
                _, encoded = cv2.imencode(".png", np.full((8, 8, 3), number, np.uint8))
                with open(os.path.join(folder, f"{number}.png"), "wb") as file:
                    file.write(encoded.tobytes())
            with open(os.path.join(folder, "list.txt"), "w") as file:
                file.writelines(f"{number}.png {number}\n" for number in range(4))
            with batches(os.path.join(folder, "list.txt"), batch_size=2, image_size=8, num_workers=1) as loader:
                labels = [label for _, y in loader for label in y.tolist()]
                segments = str(loader.status().get("segments", ""))
    except (PrefetchdError, OSError, ImportError) as error:
        return Finding("trial", "bad", "four images could not be served", one_line(str(error)))
    if labels != [0, 1, 2, 3]:
        return Finding("trial", "bad", f"four images came as {labels}", "report this, with all that stands above")
    where = f" ({segments})" if segments else ""
    return Finding("trial", "ok", f"four images were served by a private daemon{where}", "prefetchd works here")


def _lines(findings: list[Finding]) -> list[str]:
    width = max(len(each.name) for each in findings)
    indent = " " * (width + 4)
    lines = []
    for each in findings:
        text = f"{_MARKS[each.level]} {each.name:<{width}}  {each.found}"
        lines += textwrap.wrap(text, _WIDTH, subsequent_indent=indent, break_on_hyphens=False)
        lines += textwrap.wrap(
            each.meaning, _WIDTH, initial_indent=indent + "-> ", subsequent_indent=indent + "   ",
            break_on_hyphens=False, break_long_words=False,
        )  # fmt: skip
    counts = {level: sum(each.level == level for each in findings) for level in ("bad", "note")}
    if counts["bad"]:
        lines.append(f"{counts['bad']} of {len(findings)} will not work (X)")
    else:
        lines.append("everything works" + (f"; {counts['note']} worth knowing (!)" if counts["note"] else ""))
    return lines
