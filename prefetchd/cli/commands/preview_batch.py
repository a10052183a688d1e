"""`prefetchd preview --epoch E --batch B`: the sheet of one batch, of a manifest or of a running daemon."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from prefetchd.cli.arguments import config_of, names_manifest
from prefetchd.errors import ConfigError
from prefetchd.ipc.run_directory import choose_name

if TYPE_CHECKING:
    from prefetchd.client.batch import Batch
    from prefetchd.config.options import Config

Found = tuple["Batch", "Config", tuple[str, ...] | None, dict[str, tuple[str, ...]]]


def read(arguments: argparse.Namespace) -> Found:
    """Return the batch, the options it was delivered with, the names of its classes, and those of each field.

    Without a manifest it is read from the running daemon, with a manifest from a private one.

    Raises:
        PrefetchdError: if it cannot be made, or holds no images.
    """
    epoch, index = arguments.epoch or 0, arguments.batch or 0
    if arguments.augmented is not None:
        raise ConfigError("cannot use --augmented with --epoch or --batch: a batch is of one epoch; leave one out")
    if names_manifest(arguments):
        if arguments.dataset is not None:
            raise ConfigError("cannot use --dataset with a manifest: it names a data set of a running daemon")
        return _of_manifest(config_of(arguments, "preview"), epoch, index)
    from prefetchd.client.single import read_single
    from prefetchd.config.validate import make_config

    daemon = choose_name(getattr(arguments, "name", None))
    batch, served = read_single(daemon, arguments.dataset, epoch, index, name="prefetchd preview")
    config = make_config(**served.info.config)
    _check_images("decoder" in served.info.versions, config.source)
    return batch, config, served.classes, {}


def _of_manifest(config: Config, epoch: int, index: int) -> Found:
    from prefetchd.client.loader import Loader
    from prefetchd.client.session import Endpoint
    from prefetchd.client.state import read_index

    with Loader(Endpoint(config)) as loader:
        _check_images(loader.serves_images, config.source)
        index = read_index("batch", index, len(loader))
        batch, classes = loader.batch_at(epoch, index), loader.classes
    names: dict[str, tuple[str, ...]] = {}
    if config.fields:
        from prefetchd.data.fields.source import FieldsSource
        from prefetchd.data.mix.source import MixedSource
        from prefetchd.data.registry import open_source

        source = open_source(dataclasses.replace(config, bucket_sizes=(), bucket_file=None))
        if isinstance(source, FieldsSource | MixedSource):
            names = source.class_names()
    return batch, config, classes, names


def _check_images(is_images: bool, source: str) -> None:
    if not is_images:
        raise ConfigError(
            f"cannot preview {source}: its batches hold arrays, not images; give a list or a directory of images, "
            "without encoded_bytes"
        )
