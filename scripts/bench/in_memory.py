"""Sources in memory with up to ten million rows: time from `prefetchd.batches(source)` to the first batch.

    python scripts/bench/in_memory.py MANIFEST --rows 10000000

Each form names the same few photographs over and over, with a label of a thousand. It is made before the clock starts.
Every measurement is an interpreter of its own; figures are medians over `--rounds`. Batches are 64 RGB images of
224x224, shuffled, with two readers.

  taken in      from the call until the source's columns are in shared memory, imports and all
  first batch   from the call until the first batch
  columns       bytes of shared memory that they take
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import MIB, manifest_or_photographs, setting, table

BATCH_SIZE = 64
SIZE_PX = 224
WORKERS = 2
Columns = tuple[list[str], list[int]]


def frame(library: str) -> Callable[[Columns], Any]:
    def make(columns: Columns) -> Any:
        paths, labels = columns
        module = importlib.import_module(library)
        return getattr(module, "table" if library == "pyarrow" else "DataFrame")({"path": paths, "label": labels})

    return make


def numpy_columns(columns: Columns) -> Any:
    import numpy as np

    return {"path": np.array(columns[0]), "label": np.array(columns[1])}


def hugging_face(columns: Columns) -> Any:
    import datasets

    return datasets.Dataset.from_dict({"path": columns[0], "label": columns[1]})


# What makes a source of columns, and the package that it needs.
FORMS: dict[str, tuple[str, Callable[[Columns], Any]]] = {
    "list of pairs": ("numpy", lambda columns: list(zip(*columns, strict=True))),
    "pairs with names": (
        "numpy", lambda columns: [(path, f"class {label}") for path, label in zip(*columns, strict=True)]
    ),
    "numpy columns": ("numpy", numpy_columns),
    "pandas": ("pandas", frame("pandas")),
    "polars": ("polars", frame("polars")),
    "pyarrow": ("pyarrow", frame("pyarrow")),
    "Dataset": ("datasets", hugging_face),
    "Dataset shuffled": ("datasets", lambda columns: hugging_face(columns).shuffle(seed=1)),
}  # fmt: skip


def measure_here(form: str, manifest: Path, n_rows: int) -> dict[str, float]:
    """Return one measurement, in this interpreter."""
    lines = [line.rsplit(None, 1) for line in manifest.read_text().splitlines() if line.strip()]
    paths = [str((manifest.parent / path).resolve()) for path, _ in lines]
    numbers = range(n_rows)
    source = FORMS[form][1](([f"{paths[number % len(paths)]}" for number in numbers], [n % 1000 for n in numbers]))
    started_s = time.perf_counter()
    import prefetchd
    from prefetchd.client import session
    from prefetchd.columns.passed import SOURCE

    taken: list[float] = []
    whole_open = session.Endpoint.open

    def noted_open(endpoint: Any) -> Any:
        taken.extend((time.perf_counter() - started_s, float(endpoint.tables[SOURCE].description["bytes"])))
        return whole_open(endpoint)

    session.Endpoint.open = noted_open  # type: ignore[method-assign]
    options: dict[str, Any] = {"batch_size": BATCH_SIZE, "image_size": SIZE_PX, "num_workers": WORKERS}
    with prefetchd.batches(source, shuffle=True, **options) as loader:
        next(iter(loader))
        return {"first_s": time.perf_counter() - started_s, "taken_s": taken[0], "bytes": taken[1]}


def measure(form: str, manifest: Path, n_rows: int) -> dict[str, float]:
    """Return one measurement, taken in a fresh interpreter."""
    command = [sys.executable, __file__, str(manifest), "--one", form, "--rows", str(n_rows)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{form} failed:\n{result.stderr}")
    found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, nargs="?", help="text manifest, `path label` a line (made in code)")
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of each source (10 million)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each form is measured (3)")
    parser.add_argument("--only", help="forms to measure, by commas (all whose library is installed)")
    parser.add_argument("--one", choices=FORMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure_here(options.one, options.manifest, options.rows)))
        return

    print(setting("prefetchd", "numpy", "pandas", "polars", "pyarrow", "datasets"), flush=True)
    forms = options.only.split(",") if options.only else list(FORMS)
    rows = [["source", "rows", "taken in s", "first batch s", "columns MiB"]]
    with manifest_or_photographs(options.manifest) as manifest:
        for form in forms:
            if importlib.util.find_spec(FORMS[form][0]) is None:
                continue
            found = [measure(form, manifest, options.rows) for _ in range(options.rounds)]
            medians = {name: statistics.median(one[name] for one in found) for name in found[0]}
            seconds = f"{medians['taken_s']:.2f}", f"{medians['first_s']:.2f}"
            rows.append([form, f"{options.rows:,}", *seconds, f"{medians['bytes'] / MIB:.0f}"])
    print(table(rows))


if __name__ == "__main__":
    main()
