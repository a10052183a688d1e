"""prefetchd beside each loader that is installed: same photographs, same output, in turns, one table and one chart.

    pip install -r scripts/bench/peers.txt && python scripts/bench/peers.py MANIFEST --repeat 4 --rounds 5

Every loader delivers shuffled batches of 64 RGB images of 224x224, uint8, with two workers (processes or threads), from
files that are in the page cache; the loop reads a byte of every page of each batch and drops it. Every measurement has
an interpreter of its own, and the loaders take turns (A B C ... A B C ...); the figures are medians over the rounds.

  images/s     from the end of the first epoch to the end of the last: starting does not count, changing epochs does
  ratio        images/s over those of PyTorch's DataLoader with cv2, the median of the ratios within the rounds
  first batch  from making the loader, its library imported, to the first batch; and from the start of the interpreter
  ready batch  what next() takes (median) when the loop has slept long enough for a batch to be ready
  memory       private memory (Pss_Anon + SwapPss) of all processes, the loop's too, plus shared memory, in mid-epoch:
               what came since the library was imported, and the whole

A long run can be made in pieces: with `--results FILE` each call adds its rounds to the file, and the table is over all
that is in it (`--rounds 0` only reports). `--docs docs/performance.md` puts the table between the page's markers, and
the chart beside it, which has the loaders that decode: beside one that reads decoded pixels nothing else would show.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bar_chart import bar_chart
from loaders import LOADERS
from measure import MIB, measure_apart, setting, table

HERE = Path(__file__).resolve().parent
BASE = "torch_cv2"
BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"
CHART = "peers.svg"
MEASUREMENT_S = 240.0

Round = dict[str, dict[str, Any]]


def write_manifest(source: Path, folder: Path, repeat: int) -> Path:
    """Write the samples of the text manifest `source` `repeat` times over, with absolute paths and tabs."""
    lines = []
    for line in source.read_text().splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            path, _, label = line.strip().rpartition("\t" if "\t" in line else " ")
            file = source.parent.absolute() / path.strip()
            file.read_bytes()  # every loader finds it in the page cache
            lines.append(f"{file}\t{label}\n")
    manifest = folder / "manifest.tsv"
    manifest.write_text("".join(lines * repeat))
    return manifest


def measure_one(name: str, manifest: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one loader in a fresh interpreter; say what went wrong as its `problem`."""
    words = [sys.executable, str(HERE / "measure_loader.py"), name, str(manifest), "--folder", str(manifest.parent)]
    for option in ("epochs", "batch_size", "workers", "ready"):
        words += [f"--{option.replace('_', '-')}", str(getattr(options, option))]
    words += ["--started-s", repr(time.time())]
    return measure_apart(words, {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}, MEASUREMENT_S)


def facts(name: str) -> dict[str, Any]:
    """Return the constants of a loader's module, without importing what it measures."""
    tree = ast.parse((HERE / "loaders" / f"{name}.py").read_text())
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def is_installed(packages: tuple[str, ...]) -> bool:
    """Whether all of these distributions are there."""
    try:
        return all(importlib.metadata.version(package) for package in packages)
    except importlib.metadata.PackageNotFoundError:
        return False


def report(rounds: list[Round]) -> list[list[str]]:
    """Return the table, its head first, the fastest loader first."""

    def median(name: str, key: str, scale: float = 1.0) -> float:
        return statistics.median(found[name][key] for found in rounds if name in found) * scale

    def ratio(name: str) -> str:
        both = [found for found in rounds if name in found and BASE in found]
        if not both:
            return "-"
        return f"{statistics.median(each[name]['images_per_s'] / each[BASE]['images_per_s'] for each in both):.2f}"

    names = {name for found in rounds for name in found}
    rows = [["loader", "images/s", "ratio", "first batch", "from start", "ready batch", "memory added", "whole"]]
    for name in sorted(names, key=lambda name: -median(name, "images_per_s")):
        rows.append(
            [
                facts(name)["TITLE"],
                f"{median(name, 'images_per_s'):,.0f}",
                ratio(name),
                f"{median(name, 'first_s'):.2f} s",
                f"{median(name, 'first_from_start_s'):.2f} s",
                f"{median(name, 'ready_s', 1e3):.2f} ms",
                f"{median(name, 'added_bytes', 1 / MIB):.0f} MiB",
                f"{median(name, 'whole_bytes', 1 / MIB):.0f} MiB",
            ]
        )
    return rows


def best_in_bold(rows: list[list[str]]) -> list[list[str]]:
    """Mark the best figure of each column."""
    marked = [list(row) for row in rows]
    for column in range(1, len(rows[0])):
        values = [float(row[column].split()[0].replace(",", "")) for row in rows[1:] if row[column] != "-"]
        if values:
            best = max(values) if column <= 2 else min(values)
            for row in marked[1:]:
                if row[column] != "-" and float(row[column].split()[0].replace(",", "")) == best:
                    row[column] = f"**{row[column]}**"
    return marked


def write_docs(page: Path, rows: list[list[str]], names: list[str], ran: str, n_rounds: int) -> None:
    """Replace what is between the markers of `page`, and the chart beside it."""
    rounds = "One round" if n_rounds == 1 else f"Medians of {n_rounds} rounds"
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"cannot update {page}: it has no {BEGIN} ... {END}")
    command, versions = ran.split("\n", 1)
    lines = [f"    {command.removeprefix('$ ')}", ""]
    lines += [f"{rounds}; the best of each column in bold. {versions.strip()}.", ""]
    lines += ["| " + " | ".join(row) + " |" for row in best_in_bold(rows)]
    lines.insert(-len(rows) + 1, "|" + "---|" * len(rows[0]))
    lines += ["", f"![Images a second by loader]({CHART})", ""]
    lines += [f"- {facts(name)['TITLE']}: {facts(name)['DETAIL']}." for name in names]
    page.write_text(f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{after}")
    decoding = {facts(name)["TITLE"] for name in names if facts(name).get("DECODES", True)}
    bars = [
        (row[0], float(row[1].replace(",", "")), row[0].startswith("prefetchd"))
        for row in rows[1:]
        if row[0] in decoding
    ]
    (page.parent / CHART).write_text(bar_chart("images a second that are decoded, two workers each", bars))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, help="text manifest, `path label` a line; labels are numbers")
    parser.add_argument("--repeat", type=int, default=1, help="take the manifest so many times over (1)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each loader has its turn (3)")
    parser.add_argument("--epochs", type=int, default=2, help="timed epochs, after one that is not (2)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="processes or threads of each loader (2)")
    parser.add_argument("--ready", type=int, default=10, help="ready batches timed in a round (10)")
    parser.add_argument("--only", default=",".join(LOADERS), help="names of loaders with commas (all installed)")
    parser.add_argument("--results", type=Path, help="JSON file that rounds are added to, and reported from")
    parser.add_argument("--docs", type=Path, help="page to update between its markers")
    options = parser.parse_args()

    unknown = set(options.only.split(",")) - set(LOADERS)
    if unknown:
        parser.error(f"--only: there is no loader {', '.join(sorted(unknown))}; there are {', '.join(LOADERS)}")
    names = [name for name in options.only.split(",") if is_installed(facts(name)["PACKAGES"])]
    packages = dict.fromkeys(package for name in names for package in facts(name)["PACKAGES"])
    ran = setting(*packages)
    print(ran, flush=True)
    rounds: list[Round] = []
    if options.results is not None and options.results.exists():
        rounds = json.loads(options.results.read_text())
    with tempfile.TemporaryDirectory(prefix="prefetchd-bench-") as folder:
        manifest = write_manifest(options.manifest, Path(folder), options.repeat)
        for number in range(options.rounds):
            found: Round = {}
            for name in names:
                measured = measure_one(name, manifest, options)
                problem = measured.get("problem")
                print(f"round {number}: {name}: {problem or format(measured['images_per_s'], ',.0f')}", flush=True)
                if not problem:
                    found[name] = measured
            rounds.append(found)
            if options.results is not None:
                options.results.write_text(json.dumps(rounds))
    rows = report(rounds)
    if len(rows) == 1:
        raise SystemExit("cannot report: no loader was measured; install one, or see the lines above")
    print("\n" + table(rows))
    if options.docs is not None:
        shown = [name for name in names if any(name in found for found in rounds)]
        write_docs(options.docs, rows, shown, ran.replace(str(options.manifest), "MANIFEST"), len(rounds))


if __name__ == "__main__":
    main()
