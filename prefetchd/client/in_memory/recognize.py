"""What an object in memory is, by its shape; what cannot be served is refused with what to give instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np

from prefetchd.client.in_memory import arrays, frames, rows
from prefetchd.client.user_warnings import warn_user
from prefetchd.columns.passed import PassedTable
from prefetchd.config.options import Config
from prefetchd.errors import ConfigError, ManifestError
from prefetchd.ipc.failures import explained

_PAIRS = "the list of its (path, label) pairs, with augment= or transform= for what it does to images"


def take_in(source: Any, config: Config) -> PassedTable:
    """Return the columns of an object in memory.

    Args:
        source: the object.
        config: the options, but for the source's name.

    Raises:
        ManifestError: if it cannot be served, with the reason.
        ConfigError: if it is an object of a kind that cannot be served, with what to give instead.
    """
    with explained("copy the samples into shared memory"):
        take = next((take for has_shape, take in _KINDS if has_shape(source)), None)
        if take is None:
            raise _refusal(source)
        try:
            return take(source, config)
        except ValueError as error:
            raise ManifestError(str(error)) from None


def _has(*names: str) -> Any:
    return lambda source: not isinstance(source, type) and all(hasattr(source, name) for name in names)


def _of_mapping(source: Mapping[Any, Any], config: Config) -> PassedTable:
    splits = [name for name, value in source.items() if _has("column_names")(value) or _has("iloc", "columns")(value)]
    if splits:
        raise ConfigError(
            f"cannot serve this dictionary of {len(splits)} data sets; give one, as in data[{splits[0]!r}]"
        )
    found = None if config.fields else arrays.of_dict(source, config)  # fields take their columns from a table
    return found or frames.of_dict(source, config)


def _of_subset(source: Any, config: Config) -> PassedTable:
    """Serve a part of a data set that lists its samples, as `torch.utils.data.random_split` makes it."""
    whole, taken = source.dataset, [int(number) for number in source.indices]
    if _is_folder(whole):
        _check_folder(whole)
        return rows.of_folder([whole.samples[number] for number in taken], list(whole.classes), "subset")
    if _has("select", "features")(whole):
        return frames.of_hugging_face(whole.select(taken), config)
    if _has("tensors")(whole):
        return arrays.of_tuple(tuple(np.asarray(tensor)[taken] for tensor in whole.tensors), config)
    raise _refusal(whole)


def _is_folder(source: Any) -> bool:
    return bool(_has("samples", "classes")(source)) and isinstance(source.samples, Sequence)


def _loader(source: Any) -> Any:
    """Return the function that reads a file of a folder, if it is one of Python."""
    loader = getattr(source, "loader", None)
    return loader if callable(loader) else None


def _check_folder(source: Any) -> None:
    """Say what of an `ImageFolder` is not done here: a label that is changed in silence is refused."""
    if getattr(source, "target_transform", None) is not None:
        raise ConfigError(
            f"cannot use the target_transform of this {type(source).__name__}: readers run functions that they can "
            "import; make it without, and give target_transform='module:function'"
        )
    for name, function in (("__getitem__", getattr(type(source), "__getitem__", None)), ("loader", _loader(source))):
        module = str(getattr(function, "__module__", None))
        if function is not None and module.partition(".")[0] != "torchvision":
            warn_user(
                f"the {name} of this {type(source).__name__} is not called: a sample is the path and the label that "
                "its samples list"
            )
    if getattr(source, "transform", None) is not None:
        warn_user(
            f"the transform of this {type(source).__name__} is not applied: prefetchd decodes and resizes "
            "(image_size=, resize=), and augment= and transform= do the rest"
        )


def _of_folder(source: Any, config: Config) -> PassedTable:
    del config
    _check_folder(source)
    return rows.of_folder(source.samples, list(source.classes), type(source).__name__)


def _of_sequence(source: Any, config: Config) -> PassedTable:
    if isinstance(source, tuple) and arrays.are_arrays(source):
        return arrays.of_tuple(source, config)
    return rows.of_rows(source, config)


# By shape, the first that fits; `None` for what is refused, though it has the shape of a later one.
_KINDS: tuple[tuple[Callable[[Any], bool], Callable[[Any, Config], PassedTable] | None], ...] = (
    (lambda source: isinstance(source, Mapping), _of_mapping),
    (lambda source: _has("batch_sampler", "collate_fn")(source) or _has("element_spec")(source), None),
    (_has("iloc", "columns", "to_numpy"), frames.of_pandas),
    (_has("iloc", "tolist"), lambda source, config: rows.of_rows(source.tolist(), config)),
    (_has("get_columns", "height", "schema"), frames.of_polars),
    (_has("features", "column_names", "data", "_indices"), frames.of_hugging_face),
    (_has("schema", "column", "num_rows"), frames.of_arrow),
    (_is_folder, _of_folder),
    (_has("tensors", "__getitem__"), lambda source, config: arrays.of_tuple(tuple(source.tensors), config)),
    (_has("dataset", "indices"), _of_subset),
    (_has("__array__"), arrays.of_one),
    (lambda source: isinstance(source, Sequence) and not isinstance(source, bytearray | memoryview), _of_sequence),
)


def _refusal(source: Any) -> ConfigError:
    """Return the error for an object that cannot be served."""
    kind = type(source).__name__
    if isinstance(source, Set):
        return ConfigError(f"cannot serve this {kind}: it has no order; give sorted(...) of it")
    if _has("batch_sampler", "collate_fn")(source):
        return ConfigError(f"cannot serve this {kind}: prefetchd takes its place; give what its dataset reads from")
    if _has("element_spec")(source):
        return ConfigError(
            f"cannot serve this {kind}, a tf.data pipeline: its samples have no numbers; give the files that it reads, "
            "or a list of (path, label) pairs"
        )
    if _has("collect")(source):
        return ConfigError(f"cannot serve this {kind}: its rows are not computed yet; give its collect()")
    if isinstance(source, Iterator) or (hasattr(source, "__iter__") and not hasattr(source, "__len__")):
        return ConfigError(
            f"cannot serve this {kind}: its samples come one after another, and a shuffled, resumable order needs all "
            "of them by number; give list(...) of (path, label) pairs, or the files that it reads"
        )
    if hasattr(source, "__getitem__"):
        return ConfigError(
            f"cannot serve this {kind}: it makes samples in this process, one by one (__getitem__), and readers are "
            f"processes of their own; give {_PAIRS}"
        )
    return ConfigError(
        f"cannot serve an object of the type {kind}: give the name of a file or folder, a list of (path, label) "
        "pairs, columns (a dict, DataFrame, pyarrow table or Hugging Face Dataset), or arrays (x, y)"
    )
