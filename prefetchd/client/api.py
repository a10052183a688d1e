"""`prefetchd.batches`: from what the user asks for to a loader."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import operator
import os
import sys
import textwrap
from typing import TYPE_CHECKING, Any, Literal

from prefetchd.batch_options import DataOptions
from prefetchd.client.loader import Loader
from prefetchd.client.session import Endpoint
from prefetchd.client.sharing import check_sharing, choose_rank, is_shared, ranks_here
from prefetchd.client.user_warnings import warn_user
from prefetchd.columns.passed import SOURCE, name_of_option
from prefetchd.config.contradictions import doubts
from prefetchd.config.convert import absolute_path, coerce, plain
from prefetchd.config.options import NUMBER_OPTIONS, OPTIONS, PATH_OPTIONS, Config, wire_options
from prefetchd.config.validate import check_options, make_config
from prefetchd.errors import ConfigError
from prefetchd.ipc.run_directory import choose_name

if TYPE_CHECKING:
    from typing import Unpack

    from prefetchd.columns.passed import PassedTable


def batches(
    source: str | bytes | os.PathLike[str] | Any | None = None,
    *,
    daemon: str | None = None,
    dataset: str | None = None,
    name: str | None = None,
    epochs: int | None = 1,
    rank: int | Literal["env"] | None = None,
    world_size: int | None = None,
    reconnect: bool = False,
    timeout: float = 30.0,
    on_hold: Literal["wait", "copy"] = "wait",
    hold_timeout: float = 10.0,
    writable: bool = False,
    share: bool | None = None,
    group: str | None = None,
    join: Literal["start", "now"] = "start",
    start_together: int | None = None,
    log_every: int | Literal["epoch"] | None = None,
    config: str | os.PathLike[str] | None = None,
    **options: Unpack[DataOptions],
) -> Loader:
    """Return a loader of batches `x, y`, zero-copy views of memory that a daemon fills ahead of the loop.

    With a `source`, a private daemon is started, which ends with the loader or with this process. Without one the
    loader attaches to the daemon called `daemon`, whose configuration decides the pixels: an option given here that
    contradicts it is refused.

    Each `x` has shape (rows, height, width, channels) (or as `layout` says) and the configured dtype, each `y` shape
    (rows,) or (rows, k), int64 or float32; from arrays, both have their array's row shape and dtype. Both are
    read-only. The loop may keep any batches for any time, as far as the ring's slots go: an array never changes while
    it is held.

    Args:
        source: a list file (`path label` a line; `.csv`, `.tsv`, `.jsonl`), a directory with a folder per class, tar
            shards, Parquet or Arrow files, COCO or YOLO annotations, or arrays: a `.npy` or `.npz` file, or a directory
            of `.npy` shards. Or what is in memory: a list of `(path, label)`
            pairs, columns (a dict, a pandas or polars DataFrame, a pyarrow table, a Hugging Face `Dataset`), a
            torchvision `ImageFolder`, or arrays `(x, y)`. It is copied once into shared memory; relative paths start
            in the working directory, or in `root`.
        daemon: name of the daemon to attach to; `PREFETCHD_NAME` or `default` if not given.
        dataset: which of the daemon's data sets, where it serves several (`serve train=train.txt val=val.txt`).
        name: what `prefetchd status` and log lines call this loader; the name of the script if not given.
        epochs: epochs that one `for` loop runs over; `None` for ever. Every `iter()` goes on with the next epoch.
        rank: this trainer's share of the batches, `rank` of `world_size`: batches rank, rank + world_size, ... Every
            rank takes as many steps; batches past the end wrap round and are marked `.repeated`, or with `drop_last`
            the steps that not every rank can take are left out. "env" takes both numbers from torchrun's variables.
        world_size: number of ranks.
        reconnect: when the daemon is lost, wait up to `timeout` seconds for it to come back (a private one is started
            again) and go on with the exact next batch.
        timeout: seconds to wait for a daemon that is still starting.
        on_hold: what happens when the loop holds more batches than the ring can spare: `wait` up to `hold_timeout`
            seconds and raise `RingExhausted`, or deliver private copies (`copy`).
        hold_timeout: seconds.
        writable: deliver arrays that may be written; what is written stays private.
        share: with a `source`, use one daemon for all processes of this user that ask for the same with the same
            options. The first starts it. It outlives that process, and ends some seconds after the last loader. `None`
            shares among the processes of one torchrun (`LOCAL_WORLD_SIZE` more than 1) only.
        group: loaders that name the same group share each pass: every batch goes to exactly one of them, in the order
            in which they ask.
        join: `now` begins where the running loops are: the same epoch, its batches rotated to begin there (`.index`
            has their numbers). `start` (default) begins at the first batch.
        start_together: how many loaders begin their first epoch together, as in a sweep; waited for up to `timeout`.
        log_every: write a line every so many batches, and one at the end of each epoch (`"epoch"`: that alone),
            with the rate and the share of waiting: to the log `prefetchd` where it takes INFO, else to stderr.
        config: a TOML file with options; those given here win. With `daemon`, the file's `source` is the daemon's.
        **options: the options of the data set and its daemon, `prefetchd.batch_options.DataOptions`.

    Raises:
        ConfigError: for an option that is wrong or does not exist, or contradicts the daemon's.
        ManifestError: if the source cannot be served.
        BudgetError: if the memory budget cannot work, or has no slots for another loader.
        DaemonNotFound: if no daemon answers within `timeout`.

    Example:
        >>> for x, y in prefetchd.batches("train.txt", batch_size=64, shuffle=True):  # doctest: +SKIP
        ...     train(x, y)
    """
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    in_memory = source is not None and not _is_path(source)
    if source is not None:
        given["source"] = f"<{type(source).__name__}>" if in_memory else source
    if config is not None:
        from_file, daemon, dataset = _read_file(config, daemon, dataset)
        given = {**from_file, **given}
    for what, value in (("daemon", daemon), ("dataset", dataset), ("name", name)):
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"cannot use {what}={value!r}: it must be a name")
    if on_hold not in ("wait", "copy"):
        raise ConfigError(f"cannot use on_hold={on_hold!r}: it must be 'wait' or 'copy'")
    timeout, hold_timeout = _seconds("timeout", timeout), _seconds("hold_timeout", hold_timeout)
    shard = choose_rank(rank, world_size)
    mixed: dict[int, Any] = {}
    if given.get("mix") and daemon is None and dataset is None:
        from prefetchd.client.in_memory.mixed import name_mix

        given["mix"], mixed = name_mix(given["mix"])
    private = "source" in given or ("mix" in given and daemon is None and dataset is None)
    for what, value in (("daemon", daemon), ("dataset", dataset)):
        if private and value is not None:
            raise ConfigError(
                f"cannot serve {given.get('source', 'a mix')!r} with {what}={value!r}: a source starts a private "
                "daemon; give one or the other"
            )
    shared = is_shared(share, private=private)
    if shared and "consumers" not in given:
        given["consumers"] = min(shard[1], ranks_here() or shard[1])
    start_together = check_sharing(
        group, join, start_together, shard[1], reconnect=reconnect, alone=private and not shared
    )
    numbers = {name: given[name] for name in NUMBER_OPTIONS if name in given and not _is_path(given[name])}
    for option, value in numbers.items():
        if not private:
            raise ConfigError(
                f"cannot attach with {option} from memory: the daemon's configuration decides; leave the option out"
            )
        given[option] = f"<{len(value)} numbers>" if hasattr(value, "__len__") else f"<{type(value).__name__}>"
    checked = check_options(given, others=_LOADER_OPTIONS)
    made = make_config(**checked) if private else None
    if made is not None and (doubt := doubts(made)):
        warn_user(doubt)
    n_epochs, lines_every, daemon_name = _epochs(epochs), _log_every(log_every), choose_name(daemon)
    with contextlib.ExitStack() as unless_made:
        tables: dict[str, PassedTable] = {}
        if made is not None:
            made, tables = _take_in(made, source if in_memory else None, numbers, mixed, unless_made)
        endpoint = Endpoint(
            config=made,
            daemon=daemon_name,
            dataset=dataset,
            expected={} if private else _expected(checked),
            name=(os.path.basename(sys.argv[0]) or "python" if name is None else name)[:_MAX_NAME],
            timeout_s=timeout,
            guaranteed_slots=3 if on_hold == "copy" else 2,
            writable=writable,
            hold_timeout_s=hold_timeout,
            shared=shared,
            group=group,
            start_together=start_together,
            tables=tables,
        )
        unless_made.pop_all()  # the loader closes them from here on
    return Loader(
        endpoint,
        rank=shard[0],
        world_size=shard[1],
        epochs=n_epochs,
        copy_when_held=on_hold == "copy",
        reconnect=reconnect,
        join=join == "now",
        log_every=lines_every,
    )


_MAX_NAME = 200
_EXPLICIT = [
    parameter
    for parameter in inspect.signature(batches).parameters.values()
    if parameter.kind is not inspect.Parameter.VAR_KEYWORD
]
_LOADER_OPTIONS = tuple(parameter.name for parameter in _EXPLICIT if parameter.name != "source")


def _show_options() -> None:
    """Write the options of data sets into the signature and docstring of `batches`, from the one place for each."""
    hints = {name: getattr(hint, "__forward_arg__", hint) for name, hint in DataOptions.__annotations__.items()}
    kind = inspect.Parameter.KEYWORD_ONLY
    more = [inspect.Parameter(name, kind, default=None, annotation=hint) for name, hint in hints.items()]
    batches.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*_EXPLICIT, *more], return_annotation=batches.__annotations__["return"]
    )
    if batches.__doc__ is not None:
        wrapper = textwrap.TextWrapper(116, initial_indent=" " * 4, subsequent_indent=" " * 8)
        lines = [wrapper.fill(f"{name}: {OPTIONS[name].metadata['help']}.") for name in hints]
        # Without its indentation, which Python 3.13 strips as it compiles.
        before, raises, after = inspect.cleandoc(batches.__doc__).partition("\n\nRaises:")
        batches.__doc__ = before + "\n" + "\n".join(lines) + raises + after


_show_options()


def _is_path(value: Any) -> bool:
    return isinstance(value, str | bytes | os.PathLike)


def _read_file(config: Any, daemon: str | None, dataset: str | None) -> tuple[dict[str, Any], str | None, str | None]:
    """Return the options of a TOML file, and the daemon and the data set to attach to.

    A file with a `source` or `mix` serves it, unless `daemon` is given: then the file is that daemon's own. One without
    either names the daemon.
    """
    from prefetchd.config.datasets import read_config_file  # loads a TOML parser, which few need

    if not isinstance(config, str | os.PathLike):
        raise ConfigError(
            f"cannot use config of the type {type(config).__name__}: it names a TOML file; "
            "give options as keywords, batches(source, **options)"
        )
    options, tables = read_config_file(os.fspath(config))
    if tables:
        options.update(_table(os.fspath(config), tables, dataset))
    has_source = "source" in options or "mix" in options
    if has_source and tables and daemon is None:
        dataset = None  # its options are the file's own now
    daemon = daemon or (None if has_source else options.pop("name", None))
    if daemon is not None:
        options = {name: value for name, value in options.items() if name not in ("source", "mix")}
    return options, daemon, dataset


def _take_in(
    config: Config, source: Any, numbers: dict[str, Any], mixed: dict[int, Any], unless_made: contextlib.ExitStack
) -> tuple[Config, dict[str, PassedTable]]:
    """Copy what is in memory into tables, which `unless_made` closes; return the options with their names, and them.

    Args:
        config: the options of the private daemon.
        source: the source; `None` if it is not in memory.
        numbers: options that are lists of numbers, by name.
        mixed: sources of a mixture, by number.
        unless_made: closes the tables that were made if a later one cannot be.
    """
    tables: dict[str, PassedTable] = {}

    def add(name: str, table: PassedTable) -> None:
        tables[name] = table
        unless_made.callback(table.close)

    if numbers:
        from prefetchd.client.in_memory.numbers import take_in_numbers  # loads numpy

        for option, each in numbers.items():
            add(name_of_option(SOURCE, option), take_in_numbers(option, each))
    if mixed:
        from prefetchd.client.in_memory.mixed import take_in_mixed

        config, taken = take_in_mixed(mixed, config)
        for name, table in taken.items():
            add(name_of_option(SOURCE, name), table)
    if source is not None:
        from prefetchd.client.in_memory.recognize import take_in  # loads numpy

        add(SOURCE, take_in(source, config))
        config = dataclasses.replace(config, source=tables[SOURCE].name)
    return config, tables


def _epochs(epochs: Any) -> int | None:
    """Return `epochs` as Python's own whole number, or `None`."""
    if epochs is None:
        return None
    if not (number := _count(epochs)):
        raise ConfigError(
            f"cannot use epochs={epochs!r}: it must be a whole number from 1 to 2**31 - 1, or None for ever"
        )
    return number


def _count(value: Any) -> int:
    """Return a whole number from 1 on, below 2**31, as Python's own; 0 for another value."""
    number = 0
    with contextlib.suppress(TypeError):
        number = 0 if isinstance(value, bool) else operator.index(value)
    return number if 1 <= number < 1 << 31 else 0


def _log_every(value: Any) -> int | None:
    """Return the batches between two lines: 0 for one at the end of each epoch alone, `None` for no lines."""
    if value is None or value == "epoch":
        return None if value is None else 0
    if not (number := _count(value)):
        raise ConfigError(f"cannot use log_every={value!r}: it must be a number of batches, 1 or more, or 'epoch'")
    return number


def _seconds(name: str, value: Any) -> float:
    value = plain(value)
    if isinstance(value, str) or not 0 <= coerce(name, value, float) < 1e9:
        raise ConfigError(f"cannot use {name}={value!r}: it must be a number of seconds, 0 or more")
    return float(value)


def _table(path: str, tables: dict[str, dict[str, Any]], dataset: str | None) -> dict[str, Any]:
    if dataset not in tables:
        known = ", ".join(map(repr, tables))
        what = "several data sets" if dataset is None else f"no data set {dataset!r}"
        raise ConfigError(f"cannot use the configuration {path}: it has {what}; choose dataset= one of {known}")
    return tables[dataset]


def _expected(checked: dict[str, Any]) -> dict[str, Any]:
    """Return checked options in the form in which the daemon compares them with its own."""
    paths: dict[str, Any] = {
        name: absolute_path(checked[name])
        for name in PATH_OPTIONS
        if name != "source" and checked.get(name) is not None
    }
    if checked.get("mix"):
        from prefetchd.config.mix import absolute_mix

        paths["mix"] = absolute_mix(checked["mix"])
    return wire_options({**checked, **paths})
