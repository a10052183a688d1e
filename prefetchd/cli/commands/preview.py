"""`prefetchd preview`: draw a contact sheet of samples as trainers get them."""

from __future__ import annotations

import argparse
import dataclasses
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from prefetchd.cli.arguments import EPILOG, Subparsers, add_source_options, config_of, names_manifest
from prefetchd.errors import ConfigError, one_line
from prefetchd.ipc.run_directory import choose_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prefetchd.cli.views.contact_sheet import Tile
    from prefetchd.client.batch import Batch
    from prefetchd.client.loader import Loader
    from prefetchd.config.options import Config
    from prefetchd.data.images.source import ImageSource
    from prefetchd.data.mix.source import MixedSource
    from prefetchd.sampling.order import Order

_COLUMNS = 6
_MAX_SAMPLES = 1000
_SHOWN_CLASSES = 16
_COUNTED_LABELS = 50_000
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_MOST_PX = {".webp": 16383, ".jpg": 65500, ".jpeg": 65500}  # the longest side that the encoder can write
_PNG_PX = 1_000_000


def add(commands: Subparsers, datasets: Iterable[str]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "preview",
        help="draw a contact sheet of what trainers will get",
        description="Draw samples spread evenly over the data set, as a trainer gets them with these options: "
        "decoded, cropped, augmented, transformed; normalisation is undone for display. Below them a histogram of the "
        "labels. With --epoch and --batch, one batch as trainers get it.",
        epilog=EPILOG,
    )
    parser.add_argument("-o", "--output", default="preview.png", metavar="FILE", help="the sheet (preview.png)")
    parser.add_argument("--samples", type=int, default=24, metavar="N", help="how many samples (24)")
    parser.add_argument(
        "--augmented",
        nargs="?",
        type=int,
        const=_COLUMNS,
        metavar="EPOCHS",
        help=f"show each sample as it is in so many epochs, side by side ({_COLUMNS}); give it after the manifest",
    )
    parser.add_argument("--epoch", type=int, metavar="E", help="show a batch of this epoch, with --batch (0)")
    parser.add_argument(
        "--batch",
        type=int,
        metavar="B",
        help="show this batch as trainers get it, in place of samples; without a manifest, that of the running daemon "
        "--name",
    )
    parser.add_argument("--dataset", metavar="NAME", help="with --batch: which data set of the running daemon")
    add_source_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Draw the sheet."""
    n_epochs = 1 if arguments.augmented is None else arguments.augmented
    for option, value, most in (("samples", arguments.samples, _MAX_SAMPLES), ("augmented", n_epochs, 64)):
        if not 1 <= value <= most:
            raise ConfigError(f"cannot use --{option} {value}: it must be from 1 to {most}")
    if not arguments.output.lower().endswith(_SUFFIXES):
        raise ConfigError(f"cannot write {arguments.output}: name a file that ends with one of {', '.join(_SUFFIXES)}")
    folder = os.path.dirname(os.path.abspath(arguments.output))
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"cannot write {arguments.output}: {folder} is not a writable folder")
    if arguments.epoch is not None or arguments.batch is not None:
        return _run_batch(arguments)
    if arguments.dataset is not None:
        raise ConfigError("cannot use --dataset without --batch: it names a data set of a running daemon")
    if not names_manifest(arguments):
        daemon = choose_name(getattr(arguments, "name", None))
        raise ConfigError(
            "cannot preview: no manifest was given; name a list, a folder or other data, or give --batch B, and "
            f"--epoch E, for a batch of the running daemon {daemon!r}"
        )
    config = config_of(arguments, "preview")
    from prefetchd.cli.views.contact_sheet import draw_sheet

    source = _open(config)
    tiles, bad, counts, seen = _tiles(config, source, arguments.samples, n_epochs)
    rows = tiles if n_epochs > 1 else _grid([row[0] for row in tiles])
    title = f"{_name(config)}: {len(tiles):,} of {seen:,} samples"
    title += f", epochs 0 to {n_epochs - 1}" if n_epochs > 1 else ""
    _write(arguments.output, draw_sheet(rows, _shown_size(config), title, counts))
    print(f"{arguments.output}: {title}")
    for found in bad:
        print(f"  bad: {found['where']}: {found['reason']}")
    if counts:
        from prefetchd.cli.views.charts import histogram

        print("\n".join(["  labels:", *(f"    {line}" for line in histogram(counts))]))
    return 0


def _name(config: Config) -> str:
    """Return the name of the data, without what may be a secret in a URL."""
    return os.path.basename(one_line(config.source))


def _run_batch(arguments: argparse.Namespace) -> int:
    """Draw the sheet of one batch."""
    from prefetchd.cli.commands.preview_batch import read
    from prefetchd.cli.views.contact_sheet import draw_sheet
    from prefetchd.cli.views.tiles import tile_of

    batch, config, classes, names = read(arguments)
    sample_ids = batch.sample_ids.tolist()
    tiles = [
        tile_of(batch.from_row(row), config, classes, names, f"sample {sample_id}")
        for row, sample_id in enumerate(sample_ids[:_MAX_SAMPLES])
    ]
    title = f"{_name(config)}: batch {batch.index} of epoch {batch.epoch}, {len(sample_ids)} samples"
    _write(arguments.output, draw_sheet(_grid(tiles), _shown_size(config), title, []))
    print(f"{arguments.output}: {title}")
    return 0


def _shown_size(config: Config) -> tuple[int, int]:
    """Return (height, width) of a tile's picture."""
    from prefetchd.config.views import groups

    if config.fields:
        from prefetchd.cli.views.fields_tile import shown_size

        return shown_size(config)
    height, width = map(max, zip(config.image_size, *config.bucket_sizes, strict=True))
    n_views = sum(group.count or 1 for group in groups(config))
    return (height, 2 * width) if config.target == "mask" else (height, n_views * width)


def _open(config: Config) -> ImageSource | MixedSource:
    """Open the source for its labels; the samples come from a daemon."""
    from prefetchd.data.images.source import ImageSource
    from prefetchd.data.mix.source import MixedSource
    from prefetchd.data.registry import open_source

    if config.encoded_bytes is not None:
        raise ConfigError(f"cannot preview {config.source} encoded: there are no pixels; leave encoded_bytes out")
    source = open_source(dataclasses.replace(config, bucket_sizes=(), bucket_file=None))
    parts = source.parts if isinstance(source, MixedSource) else (source,)
    if not all(isinstance(part, ImageSource) for part in parts):
        raise ConfigError(
            f"cannot preview {config.source}: it holds arrays, not images; give a list or a directory of images"
        )
    assert isinstance(source, ImageSource | MixedSource)
    return source


def _tiles(
    config: Config, source: ImageSource | MixedSource, n_samples: int, n_epochs: int
) -> tuple[list[list[Tile]], list[dict[str, Any]], list[tuple[str, int]], int]:
    """Return a row of tiles for each sample, the bad samples met, the counts of labels, and how many samples there are.

    A sample's content depends on seed, epoch and sample alone. So batches of one, taken with a stride, show what
    batches of any size and order hold.
    """
    from prefetchd.client.loader import Loader
    from prefetchd.client.session import Endpoint
    from prefetchd.data.fields.source import FieldsSource
    from prefetchd.data.mix.source import MixedSource
    from prefetchd.data.order.plan import plan_order

    single = dataclasses.replace(
        config, batch_size=1, shuffle=False, shuffle_block=None, drop_last=False, on_error="skip"
    )
    order = plan_order(dataclasses.replace(single, bucket_sizes=(), bucket_file=None), source).order
    names = source.class_names() if isinstance(source, FieldsSource | MixedSource) else {}
    total = order.n_samples
    stride = max(1, total // n_samples)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a rank with shorter batches: here that is a bad sample
        loader = Loader(Endpoint(single), world_size=stride)
    with loader:
        rows: list[list[Tile]] = [[] for _ in range(min(n_samples, -(-total // stride)))]
        for epoch in range(n_epochs):
            loader.set_epoch(epoch)
            batches = iter(loader)
            for row in rows:
                batch = next(batches)
                row.append(_tile(batch, loader, config, names, f"#{batch.index}"))
            batches.close()
        return rows, loader.status()["bad"], _counts(source, order, loader.classes), total


def _tile(row: Batch, loader: Loader, config: Config, class_names: Mapping[str, tuple[str, ...]], title: str) -> Tile:
    from prefetchd.cli.views.contact_sheet import Tile
    from prefetchd.cli.views.tiles import tile_of

    if not len(row.sample_ids):
        return Tile(None, f"{title} bad")
    return tile_of(row, config, loader.classes, class_names, title)


def _counts(source: ImageSource | MixedSource, order: Order, classes: tuple[str, ...] | None) -> list[tuple[str, int]]:
    """Count classes, most frequent first: those of all objects, or whole-number labels, of samples spread over many."""
    from prefetchd.data.mix.source import MixedSource
    from prefetchd.data.table.object_records import ObjectRecords

    total = order.n_samples
    if isinstance(source, MixedSource):
        return _shown_classes(_mixed_counts(source, order), classes)
    if isinstance(source.records, ObjectRecords):
        return _shown_classes(Counter(dict(enumerate(source.records.class_counts().tolist()))), classes)
    step = -(-total // _COUNTED_LABELS)
    counted: Counter[int] = Counter()
    for first in range(0, total, step * 256):
        places = range(first, min(total, first + step * 256), step)
        for sample in source.records.samples(int(order.sample_ids(0, place, 0, 1)[0]) for place in places):
            if not isinstance(sample.label, int):
                return []
            counted[sample.label] += step
    return _shown_classes(counted, classes)


def _mixed_counts(source: MixedSource, order: Order) -> Counter[int]:
    """Count the labels of an epoch of a mixture; none where they are no whole numbers."""
    import numpy as np

    from prefetchd.data.order.values import label_values

    try:
        labels = label_values(source, "preview")
    except ConfigError:
        return Counter()
    if not np.issubdtype(labels.dtype, np.integer):
        return Counter()
    n = min(order.n_samples, _COUNTED_LABELS)
    values, counts = np.unique(labels[order.sample_ids(0, 0, 0, n)], return_counts=True)
    return Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))


def _shown_classes(counted: Counter[int], classes: tuple[str, ...] | None) -> list[tuple[str, int]]:
    """Return the names and counts of the most frequent classes, the others as one."""
    rows = [
        (classes[number] if classes is not None and 0 <= number < len(classes) else str(number), count)
        for number, count in counted.most_common()
    ]
    if len(rows) > _SHOWN_CLASSES:
        rest = sum(count for _, count in rows[_SHOWN_CLASSES - 1 :])
        rows = [*rows[: _SHOWN_CLASSES - 1], (f"{len(rows) - _SHOWN_CLASSES + 1:,} others", rest)]
    return rows


def _grid(tiles: list[Tile]) -> list[list[Tile]]:
    return [tiles[first : first + _COLUMNS] for first in range(0, len(tiles), _COLUMNS)]


def _write(path: str, sheet: NDArray[np.uint8]) -> None:
    import cv2

    from prefetchd.cli.output_file import write_whole

    suffix = os.path.splitext(path)[1]
    height, width = sheet.shape[:2]
    if max(height, width) > _MOST_PX.get(suffix.lower(), _PNG_PX):
        raise ConfigError(
            f"cannot write {path}: a sheet of {width}x{height} px is too large for that format; name a .png, or show "
            "fewer --samples"
        )
    ok, encoded = cv2.imencode(suffix, sheet)
    assert ok, path
    try:
        write_whole(path, encoded.tobytes())
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; name another file with -o") from None
