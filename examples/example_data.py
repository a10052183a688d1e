"""What the examples have alike: their command line, data where none is named, and the number of classes in it.

DATA is anything that `prefetchd.batches` serves with one class a sample: a list of images (train.txt, .csv, .jsonl), a
folder with a folder a class, tar shards, Parquet files, or a bucket (s3://...). Without it, photographs are made in
code. Their label is the name of their tint, which a small network learns in a few epochs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import prefetchd

CHECKOUT = Path(__file__).resolve().parent.parent


def parser(description: str | None, *, epochs: int = 5) -> argparse.ArgumentParser:
    """Return the command line that all examples have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("data", nargs="?", metavar="DATA", help="list, class folder, shards or bucket (made in code)")
    made.add_argument("--epochs", type=int, default=epochs, help=f"({epochs})")
    made.add_argument("--batch-size", type=int, default=16, help="(16)")
    made.add_argument("--image-size", type=int, default=64, help="side of the images in pixels (64)")
    made.add_argument("--classes", type=int, help="number of classes; found out if not given")
    return made


def arguments(description: str | None, made: argparse.ArgumentParser | None = None) -> argparse.Namespace:
    """Return the parsed command line, with data and the number of classes filled in."""
    options = (made or parser(description)).parse_args()
    options.data = options.data or str(photographs())
    options.classes = options.classes or count_classes(options.data)
    return options


def count_classes(data: str) -> int:
    """Return the number of classes: of their names, or one more than the largest label of a pass over small images."""
    with prefetchd.batches(data, batch_size=64, image_size=8) as loader:
        field = loader.layout.fields[-1]
        if field.shape or "int" not in field.dtype:
            sys.exit(f"cannot train on {data}: a label is {field.dtype} of shape {field.shape}, not one class a sample")
        if loader.classes is not None:
            return len(loader.classes)
        return 1 + max(int(y.max()) for _, y in loader)


def photographs() -> Path:
    """Return a list of photographs that are made in code."""
    sys.path.insert(0, str(CHECKOUT / "scripts"))
    from photographs import make_photographs

    print("making photographs in .demo ...", file=sys.stderr)
    return make_photographs(CHECKOUT / ".demo")
