"""From the options that a user gave to one validated `Config`, and whether two sets of options agree. Pure.

`make_config` converts each option (`convert`), checks its range (`options`) and refuses options that contradict each
other (`contradictions`). The command line, `prefetchd.batches`, the daemon and its readers all call it, so each checks
what it was sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prefetchd.config import augment, buckets, convert, fields, selection, store_options, views
from prefetchd.config.contradictions import check_together
from prefetchd.config.convert import wrong
from prefetchd.config.options import OPTION_TYPES, OPTIONS, Config
from prefetchd.config.order_options import BLOCKS, USUAL_BLOCK
from prefetchd.config.other_loaders import explain_unknown
from prefetchd.config.remote_options import canonical_agents, ray_address
from prefetchd.errors import ConfigError


def _mix(value: object) -> tuple[str, ...]:
    from prefetchd.config.mix import canonical_mix  # few need it

    return canonical_mix(value)


# Options without a converter of their own are converted by their type.
_CONVERTERS: dict[str, Callable[[object], Any]] = {
    "num_workers": convert.num_workers,
    "source": convert.path,
    "root": convert.root,
    "labels": convert.path_of("labels"),
    "offsets": convert.path_of("offsets"),
    "index": convert.path_of("index"),
    "subset": convert.path_of("subset"),
    "order": convert.path_of("order"),
    "weights": selection.canonical_weights,
    "where": selection.canonical_where,
    "split": selection.canonical_split,
    "mix": _mix,
    "image_size": convert.image_size,
    "bucket_sizes": buckets.bucket_sizes,
    "bucket_file": convert.local_path("bucket_file"),
    "length_buckets": buckets.length_buckets,
    "dtype": lambda value: convert.coerce("dtype", convert.dtype_name(value), OPTION_TYPES["dtype"]),
    "cache": convert.local_path("cache"),
    "cache_size": convert.size_limit("cache_size"),
    "keep": convert.local_path("keep"),
    "keep_size": convert.size_limit("keep_size"),
    "cache_image_size": convert.cache_image_size,
    "scale": convert.scale,
    "mean": convert.channel_numbers("mean"),
    "std": convert.channel_numbers("std"),
    "augment": augment.canonical,
    "views": views.canonical,
    "fields": fields.canonical,
    "transform": convert.function("transform"),
    "target_transform": convert.function("target_transform"),
    "python_path": convert.folders,
    "missing_label": convert.columns,
    "x_column": convert.columns,
    "y_column": convert.columns,
    "store_options": store_options.canonical,
    "name": convert.daemon_name,
    "agents": canonical_agents,
    "ray": ray_address,
    "remote_workers": lambda value: 0 if value == "auto" else convert.coerce("remote_workers", value, int),
    "token_file": convert.path_of("token_file"),
    "tls_ca": convert.path_of("tls_ca"),
    "tls_cert": convert.path_of("tls_cert"),
    "tls_key": convert.path_of("tls_key"),
}


def make_config(**options: Any) -> Config:
    """Return the validated configuration of `options`; values may be text as on a command line.

    Raises:
        ConfigError: for an unknown name, a value of the wrong kind or out of range, or a contradiction.
    """
    checked = check_options(options)
    if checked.get("mix"):
        from prefetchd.config.mix import name_source

        name_source(checked)
    if "source" not in checked:
        raise ConfigError("cannot find samples: no manifest was given; name a list, a folder or other data")
    if checked.get("shuffle_block") is not None:
        checked.setdefault("shuffle", True)
    if checked.get("channels") is not None:
        checked.setdefault("color", "unchanged")
    config = Config(**checked)
    check_together(config)
    return config


def check_options(options: Mapping[str, Any], *, others: Iterable[str] = ()) -> dict[str, Any]:
    """Return `options`, each as its one checked value. Contradictions between them are not looked for.

    Args:
        options: what a user gave, by name.
        others: more names that the user may have meant by an unknown one.

    Raises:
        ConfigError: for an unknown name, or a value of the wrong kind or out of range.
    """
    checked: dict[str, Any] = {}
    if isinstance(options.get("shuffle"), str) and options["shuffle"] == BLOCKS:
        options = {"shuffle_block": USUAL_BLOCK, **options, "shuffle": True}
    options = buckets.with_buckets(options)
    for name, value in options.items():
        if name not in OPTIONS:
            raise ConfigError(explain_unknown(name, (*OPTIONS, *others)))
        converter = _CONVERTERS.get(name)
        try:
            checked[name] = converter(value) if converter else convert.coerce(name, value, OPTION_TYPES[name])
        except (ValueError, OverflowError):  # from deep within: numbers of very many digits
            raise wrong(name, value, "a value of fewer digits") from None
        _check_limits(name, checked[name])
    return checked


def check_agrees(config: Config, options: Mapping[str, Any]) -> None:
    """Raise `ConfigError` where one of `options`, as a consumer sent them, contradicts `config`."""
    for name, wanted in check_options(options).items():
        served = getattr(config, name)
        if _comparable(name, served) != _comparable(name, wanted):
            if name == "bucket_sizes" and not wanted:
                name, wanted = "image_size", config.image_size  # one, of several that are served
            raise ConfigError(
                f"cannot attach with {name}={wanted!r}: the daemon {config.name!r} serves {name}={served!r}, "
                "and its configuration decides; leave the option out, or start a daemon with it"
            )


def _comparable(name: str, value: Any) -> Any:
    if name != "mix":
        return convert.comparable(name, value)
    from prefetchd.config.mix import absolute_mix

    return absolute_mix(value)


def _check_limits(name: str, value: Any) -> None:
    limits = OPTIONS[name].metadata["limits"]
    if limits is None or value is None:
        return
    low, high = limits
    if isinstance(value, int) and high == math.inf:
        high = 1 << 53 if value > 1 << 53 else high  # messages hold no others
    if low <= value <= high:
        return
    wanted = f"from {low} to {high}" if high != math.inf else f"{low} or more"
    raise wrong(name, value, f"{wanted}; {'raise' if value < low else 'lower'} it")
