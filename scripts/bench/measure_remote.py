"""One measurement of one loader whose work others may do: started by `remote.py`, answers with a line of JSON.

    python scripts/bench/measure_remote.py NAME MANIFEST --folder DIR [--epochs 4] [--batch-size 64]

Images a second, and processor time an image of this process and all below it, the loop's too. The first epoch is not
counted. The last line on standard output is the answer; what else libraries print goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import time
from collections.abc import Iterable
from typing import Any

import psutil
from loaders import LOADERS, Data, load
from measure_loader import loader_parser, touch
from remote import cpu_s


def take(batches: Iterable[tuple[Any, Any]]) -> int:
    """Go through an epoch; return how many images it has."""
    seen = 0
    for x, _ in batches:
        touch(x)
        seen += len(x)
    return seen


def main() -> None:
    parser = loader_parser(epochs=4)
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print

    samples = [line.rsplit("\t", 1) for line in options.manifest.read_text().splitlines()]
    paths, labels = [path for path, _ in samples], [int(label) for _, label in samples]
    data = Data(options.manifest, paths, labels, options.batch_size, 2, options.folder)
    loader = load(options.name) if options.name in LOADERS else importlib.import_module(f"elsewhere.{options.name}")
    with loader.epochs(data) as next_epoch:
        take(next_epoch())
        everything = {psutil.Process(), *psutil.Process().children(recursive=True)}
        before_s, began_s = cpu_s(list(everything)), time.perf_counter()
        seen = sum(take(next_epoch()) for _ in range(options.epochs))
        took_s = time.perf_counter() - began_s
        used_s = cpu_s(list(everything | set(psutil.Process().children(recursive=True)))) - before_s
        answers.write(json.dumps({"images_per_s": seen / took_s, "cpu_us": 1e6 * used_s / seen}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
