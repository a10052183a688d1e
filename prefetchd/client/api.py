"""`prefetchd.batches`: from what the user asks for to a loader."""

from __future__ import annotations

import contextlib
import operator
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

from prefetchd.client.loader import Loader
from prefetchd.client.ranks import choose_rank
from prefetchd.client.session import Endpoint
from prefetchd.config.options import (
    OPTIONS,
    PATH_OPTIONS,
    Color,
    Dtype,
    End,
    Interpolation,
    Layout,
    Lengths,
    OnError,
    Resize,
    Target,
    wire_options,
)
from prefetchd.config.validate import check_options, make_config
from prefetchd.errors import ConfigError
from prefetchd.ipc.run_directory import choose_name


def batches(
    source: str | bytes | os.PathLike[str] | None = None,
    *,
    daemon: str | None = None,
    dataset: str | None = None,
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
    config: str | os.PathLike[str] | None = None,
    root: str | os.PathLike[str] | None = None,
    label_columns: int | None = None,
    x_column: str | int | None = None,
    y_column: str | int | Sequence[str | int] | None = None,
    labels: str | bytes | os.PathLike[str] | None = None,
    offsets: str | bytes | os.PathLike[str] | None = None,
    max_length: int | None = None,
    padding: End | None = None,
    truncating: End | None = None,
    pad_value: float | None = None,
    lengths: Lengths | None = None,
    batch_size: int | None = None,
    image_size: int | str | tuple[int, int] | None = None,
    color: Color | None = None,
    dtype: Dtype | None = None,
    scale: float | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    layout: Layout | None = None,
    resize: Resize | None = None,
    interpolation: Interpolation | None = None,
    shrink_on_load: bool | None = None,
    augment: str | Sequence[str] | None = None,
    transform: str | Callable[..., Any] | None = None,
    target_transform: str | Callable[..., Any] | None = None,
    target: Target | None = None,
    mask_border: int | None = None,
    python_path: str | Sequence[str] | None = None,
    shuffle: bool | None = None,
    seed: int | None = None,
    drop_last: bool | None = None,
    on_error: OnError | None = None,
    max_image_pixels: int | None = None,
    num_workers: int | str | None = None,
    memory_budget: str | int | None = None,
    reader_timeout: float | None = None,
    patience: float | None = None,
    consumers: int | None = None,
    cache: str | bytes | os.PathLike[str] | None = None,
    cache_size: str | int | None = None,
    cache_image_size: int | str | tuple[int, int] | None = None,
) -> Loader:
    """Return a loader of batches `x, y`, zero-copy views of memory that a daemon fills ahead of the loop.

    With a `source`, a private daemon is started, which ends with the loader or with this process. Without one the
    loader attaches to the daemon called `daemon`, whose configuration decides the pixels: an option given here that
    contradicts it is refused.

    Each `x` has shape (rows, height, width, channels) (or as `layout` says) and the configured dtype, each `y` shape
    (rows,) or (rows, k), int64 or float32; from arrays, both have their array's row shape and dtype. Both are
    read-only. The loop may keep what it likes for as long as it likes, as far as the ring's slots go: an array never
    changes while it is held.

    Args:
        source: a list file (`path label` a line; `.csv`, `.tsv`), a directory with a folder per class, or arrays: a
            `.npy` or `.npz` file, or a directory of `.npy` shards.
        daemon: name of the daemon to attach to; `PREFETCHD_NAME` or `default` if not given.
        dataset: which of the daemon's data sets, where it serves several (`serve train=train.txt val=val.txt`).
        epochs: epochs that one `for` loop runs over; `None` for ever. Every `iter()` goes on with the next epoch.
        rank: this trainer's share of the batches, `rank` of `world_size`: batches rank, rank + world_size, ... Every
            rank takes as many steps; batches past the end wrap round and are marked `.repeated`, or with `drop_last`
            the steps that not every rank can take are left out. "env" takes both numbers from torchrun's variables.
        world_size: how many ranks there are.
        reconnect: when the daemon is lost, wait up to `timeout` seconds for it to come back (a private one is started
            again) and go on with the exact next batch.
        timeout: seconds to wait for a daemon that is still starting.
        on_hold: what happens when the loop holds more batches than the ring can spare: `wait` up to `hold_timeout`
            seconds and raise `RingExhausted`, or deliver private copies (`copy`).
        hold_timeout: seconds.
        writable: deliver arrays that may be written; what is written stays private.
        share: with a `source`, use one daemon for all processes of this user that ask for the same with the same
            options. The first starts it, it outlives whoever did, and ends some seconds after the last loader. `None`
            shares among the processes of one torchrun (`LOCAL_WORLD_SIZE` more than 1) and nobody else.
        group: loaders that name the same group share each pass: every batch goes to exactly one of them, whoever asks.
        join: `now` begins where those that run already are: the same epoch, its batches rotated to begin there
            (`.index` tells). `start` (default) begins at the first batch.
        start_together: how many loaders begin their first epoch together, as in a sweep; waited for up to `timeout`.
        config: a TOML file with options; those given here win. With `daemon`, the file's `source` is the daemon's.
        root: folder that relative paths start from; the manifest's own by default.
        label_columns: how many trailing fields of a text line are labels; found out by default.
        x_column: name or number (from 0) of the path's column, for CSV and TSV; in an `.npz`, the name of x.
        y_column: names or numbers of the label columns, for CSV and TSV; in an `.npz`, the name of y.
        labels: for arrays, a `.npy` file with a row of y for each row of x, or a directory of such shards.
        offsets: for ragged sequences, a `.npy` file of n + 1 positions; number i is `source[offsets[i]:offsets[i+1]]`.
        max_length: length that sequences are padded or truncated to; the longest one's by default.
        padding: `pre` (default) or `post`, the end at which a shorter sequence is padded.
        truncating: `pre` (default) or `post`, the end at which a longer sequence is cut.
        pad_value: what is padded with (0).
        lengths: `x` puts each sequence's length before it, `y` behind its label; `none` (default) leaves it out.
        batch_size: samples in a batch (32).
        image_size: pixels of the delivered images: a number or (height, width) (224).
        color: `rgb` (default), `bgr` or `gray`.
        dtype: `uint8` (default), `float32` or `float16`.
        scale: what a pixel from 0 to 255 is multiplied by, such as 1/255.
        mean: what is subtracted after scaling, one number or one a channel.
        std: what is divided by after that, one number or one a channel.
        layout: `nhwc` (default) or `nchw`.
        resize: `stretch` (default), `crop` the centre, or `pad` with black.
        interpolation: `nearest`, `linear` (default), `cubic`, `area` or `lanczos`.
        shrink_on_load: let JPEG decode at 1/2, 1/4 or 1/8 where that is at least the target (true).
        augment: `random_resized_crop`, `hflip`, `vflip`, `rotate`, `affine`, `color_jitter`, in a list or separated by
            commas, with parameters as in `"rotate(degrees=10)"`; other pixels each epoch (none).
        transform: a function `(image, rng) -> image` that a module has, or its name `"package.module:name"`, or the
            name of an Albumentations pipeline; it runs in the readers, after `augment`.
        target_transform: a function `(label, rng) -> label`, likewise; what it returns decides `y`'s shape and dtype.
        target: what labels are: `label` (default), numbers or classes; `mask`, the paths of mask images.
        mask_border: what a mask holds where `pad`, `rotate` or `affine` leave it empty (0).
        python_path: folders in which the readers find the modules of the functions; this process's `sys.path`.
        shuffle: a new order each epoch (false).
        seed: decides the orders and the augmentation (0).
        drop_last: leave out a shorter last batch (false).
        on_error: what a bad sample does: `raise` (default), `skip` or `substitute`.
        max_image_pixels: larger images are bad samples (250 million).
        num_workers: reader processes; `"auto"`, or 0 (default), begins with the usable cores and follows the loops.
        memory_budget: `auto` (default), or bytes such as `512MiB` or `25%`.
        reader_timeout: seconds without progress after which a reader is replaced (60).
        patience: seconds in all that loops on the same data wait for a slower one in one of its epochs, so that it
            finds what was decoded for them (10); 0 never, `math.inf` always. Then they go on without it.
        consumers: loops at different batches, such as ranks, that an automatic budget has slots for (1).
        cache: folder that decoded images are kept in, for later epochs, runs and trainers (none). Batches are the same.
        cache_size: most bytes of the whole folder, such as `50GiB`; `auto` (default) leaves 5% of its disk free.
        cache_image_size: fit images into this size first, cached or not: a number or (height, width). Random crops and
            turns can be cached only with it (none).

    Raises:
        ConfigError: for an option that is wrong, or contradicts the daemon's.
        ManifestError: if the source cannot be served.
        BudgetError: if the memory budget cannot work, or has no slots for another loader.
        DaemonNotFound: if no daemon answers within `timeout`.

    Example:
        >>> for x, y in prefetchd.batches("train.txt", batch_size=64, shuffle=True):  # doctest: +SKIP
        ...     train(x, y)
    """
    given = locals()
    options = {name: given[name] for name in _CONFIG_OPTIONS if given[name] is not None}
    for name in PATH_OPTIONS:
        if isinstance(options.get(name), bytes | os.PathLike):  # what is no path is refused with the other options
            options[name] = os.fsdecode(options[name])
    if "memory_budget" in options:
        options["memory_budget"] = str(options["memory_budget"])
    if config is not None:
        from prefetchd.config.datasets import read_config_file  # loads a TOML parser, which few need

        from_file, tables = read_config_file(os.fspath(config))
        if tables:
            from_file.update(_table(os.fspath(config), tables, dataset))
            dataset = None if "source" in from_file and daemon is None else dataset
        daemon = daemon or (from_file.pop("name", None) if "source" not in from_file else None)
        if daemon is not None:
            from_file.pop("source", None)  # the file is the daemon's own: attach to what it serves
        options = {**from_file, **options}
    for name, value in (("daemon", daemon), ("dataset", dataset)):
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"cannot use {name}={value!r}: it must be a name")
    epochs = _check_arguments(epochs, timeout=timeout, hold_timeout=hold_timeout, on_hold=on_hold)
    shard = choose_rank(rank, world_size)
    if "source" in options:
        for what, value in (("daemon", daemon), ("data set", dataset)):
            if value is not None:
                raise ConfigError(
                    f"cannot serve {options['source']!r} from the {what} {value!r}: a source starts a private daemon; "
                    "give one or the other"
                )
    private = "source" in options
    if share is not None and not isinstance(share, bool):
        raise ConfigError(f"cannot use share={share!r}: it must be True, False or None")
    if share and not private:
        raise ConfigError("cannot use share=True without a source: a daemon that has a name is shared anyhow")
    shared = private and _is_shared(share)
    if shared and "consumers" not in options:
        options["consumers"] = min(shard[1], _ranks_here() or shard[1])
    _check_sharing(group, join, start_together, shard[1], reconnect=reconnect, alone=private and not shared)
    endpoint = Endpoint(
        config=make_config(**options) if private else None,
        daemon=choose_name(daemon),
        dataset=dataset,
        expected={} if private else _expected(options),
        timeout_s=timeout,
        guaranteed_slots=3 if on_hold == "copy" else 2,
        writable=writable,
        hold_timeout_s=hold_timeout,
        shared=shared,
        group=group,
        start_together=start_together or 0,
    )
    return Loader(
        endpoint,
        rank=shard[0],
        world_size=shard[1],
        epochs=epochs,
        copy_when_held=on_hold == "copy",
        reconnect=reconnect,
        join=join == "now",
    )


# The daemon's name is `daemon` here.
_CONFIG_OPTIONS = tuple(name for name in OPTIONS if name != "name")


def _check_arguments(epochs: Any, *, on_hold: object, **seconds: object) -> int | None:
    """Refuse what cannot be; return `epochs`, which may be any whole number, as Python's own."""
    if on_hold not in ("wait", "copy"):
        raise ConfigError(f"cannot use on_hold={on_hold!r}: it must be 'wait' or 'copy'")
    number = None
    if epochs is not None:
        with contextlib.suppress(TypeError):
            number = None if isinstance(epochs, bool) else operator.index(epochs)
        if number is None or not 1 <= number < 1 << 31:
            raise ConfigError(
                f"cannot use epochs={epochs!r}: it must be a whole number from 1 to 2**31, or None for ever"
            )
    for name, value in seconds.items():
        if not isinstance(value, int | float) or not 0 <= value < 1e9:
            raise ConfigError(f"cannot use {name}={value!r}: it must be a number of seconds, 0 or more")
    return number


def _is_shared(share: bool | None) -> bool:
    if share is not None:
        return share
    return _ranks_here() > 1


def _ranks_here() -> int:
    """How many ranks torchrun runs on this machine; 0 if it does not say."""
    here = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(here) if here.isascii() and here.isdecimal() else 0


def _check_sharing(
    group: object, join: object, start_together: object, world_size: int, *, reconnect: bool, alone: bool
) -> None:
    if join not in ("start", "now"):
        raise ConfigError(f"cannot use join={join!r}: it must be 'start' or 'now'")
    if join == "now" and world_size > 1:
        raise ConfigError(
            f"cannot use join='now' with world_size={world_size}: ranks that begin at different batches would not see "
            "every batch once; leave join out"
        )
    if group is not None and (not isinstance(group, str) or not 1 <= len(group) <= 200):
        raise ConfigError(f"cannot use group={group!r}: it must be a name")
    for name, value in (("reconnect", reconnect), ("world_size", world_size > 1), ("join", join == "now")):
        if group is not None and value:
            raise ConfigError(
                f"cannot use {name}= with group={group!r}: its members have no places of their own in the pass; "
                f"leave one of them out"
            )
    is_count = isinstance(start_together, int) and not isinstance(start_together, bool)
    if start_together is not None and not (is_count and 1 <= int(str(start_together)) <= 1024):
        raise ConfigError(f"cannot use start_together={start_together!r}: it must be a whole number from 1 to 1024")
    if alone and (group is not None or start_together not in (None, 1)):
        what = f"group={group!r}" if group is not None else f"start_together={start_together}"
        raise ConfigError(
            f"cannot use {what} with a private daemon, which serves this loader alone; pass share=True, or attach to a "
            "daemon"
        )


def _table(path: str, tables: dict[str, dict[str, Any]], dataset: str | None) -> dict[str, Any]:
    if dataset not in tables:
        known = ", ".join(map(repr, tables))
        what = "several data sets" if dataset is None else f"no data set {dataset!r}"
        raise ConfigError(f"cannot use the configuration {path}: it has {what}; choose dataset= one of {known}")
    return tables[dataset]


def _expected(options: dict[str, Any]) -> dict[str, Any]:
    """Return `options` checked and in the form in which the daemon compares them with its own."""
    checked = check_options(options)
    for name in PATH_OPTIONS:
        if name != "source" and checked.get(name) is not None:
            checked[name] = os.path.abspath(os.path.expanduser(checked[name]))
    return wire_options(checked)
