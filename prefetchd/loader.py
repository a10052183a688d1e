"""`prefetchd.batches`: the loader that users iterate over. Ties a connection, its epochs and its life together."""

from __future__ import annotations

import contextlib
import os
import subprocess
import weakref
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from prefetchd import launch
from prefetchd.config import (
    Color,
    Dtype,
    Interpolation,
    Layout,
    OnError,
    Resize,
    Target,
    make_config,
)
from prefetchd.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prefetchd.client import Connection
    from prefetchd.layout import BatchLayout
    from prefetchd.messages import Granted

_END_S = 5.0


class Batch(tuple[Any, Any]):
    """One batch: unpacks as `x, y`, and tells where it stands in the epoch.

    It is made on the way of every batch, so it only keeps what it came with and looks things up when asked.
    """

    _grant: Granted
    _root: NDArray[np.uint8]
    _layout: BatchLayout

    @classmethod
    def of(cls, grant: Granted, root: NDArray[np.uint8], layout: BatchLayout) -> Batch:
        """Return the batch of `grant` over `root`, the bytes of its slot or a copy of them."""
        batch = cls(layout.xy(root, grant.rows))
        batch._grant, batch._root, batch._layout = grant, root, layout
        return batch

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the slot's bytes, once, with everything that the batch tells."""
        return Batch.of, (self._grant, self._root, self._layout)

    @property
    def epoch(self) -> int:
        """Number of the epoch, from 0."""
        return self._grant.epoch

    @property
    def index(self) -> int:  # type: ignore[override]  # hides tuple.index, on purpose
        """Number of the batch in the epoch, from 0, over all shards."""
        return self._grant.batch

    @property
    def repeated(self) -> bool:
        """Whether the batch was wrapped round past the end of the epoch, for even shards."""
        return self._grant.repeated

    @property
    def sample_ids(self) -> NDArray[np.int64]:
        """(rows,) int64: the number of each sample in the manifest, from 0."""
        return self._layout.sample_ids(self._root, self._grant.rows)

    @property
    def x(self) -> NDArray[Any]:
        """The samples: (rows, height, width, channels), or as the `layout` option says."""
        return self[0]  # type: ignore[no-any-return]

    @property
    def y(self) -> NDArray[Any]:
        """The labels: (rows,) or (rows, k), int64 or float32; masks; or what `target_transform` makes."""
        return self[1]  # type: ignore[no-any-return]


class Loader:
    """A re-iterable source of batches; made by `batches`. Close it with `close()`, `with`, or by dropping it.

    Arrays that it delivered stay valid after it was closed, after the daemon ended, and for as long as they are held.
    """

    def __init__(
        self,
        connection: Connection,
        process: subprocess.Popen[bytes] | None,
        *,
        epochs: int | None,
        on_hold: str,
    ) -> None:
        self._connection = connection
        self._epochs = epochs
        self._copy_when_held = on_hold == "copy"
        self._next_epoch = 0
        self._serial = 0
        self._current: weakref.ref[Generator[Batch, None, None]] | None = None
        self._end = weakref.finalize(self, _end, connection, process, os.getpid())

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._connection.info.batches_per_epoch

    def __repr__(self) -> str:
        info, state = self._connection.info, "open" if self._end.alive else "closed"
        return (
            f"<prefetchd.Loader of {info.n_samples} samples, {len(self)} batches an epoch, "
            f"daemon {info.name!r} pid {info.pid}, next epoch {self._next_epoch}, {state}>"
        )

    @property
    def n_samples(self) -> int:
        """Samples in the data set."""
        return self._connection.info.n_samples

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes by number, where the manifest's labels were text; else `None`."""
        return self._connection.classes

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of the daemon that serves this loader, by option name."""
        return dict(self._connection.info.config)

    def __iter__(self) -> Generator[Batch, None, None]:
        """Return a generator over the next `epochs` epochs; an earlier one of this loader ends."""
        self._end_current()
        self._serial += 1
        epoch = self._next_epoch
        self._next_epoch = epoch + 1
        generator = self._run(self._serial, epoch)
        self._current = weakref.ref(generator)
        return generator

    def _run(self, serial: int, first_epoch: int) -> Generator[Batch, None, None]:
        connection = self._connection
        steps = len(self)
        stop_epoch = None if self._epochs is None else first_epoch + self._epochs
        epoch = first_epoch
        try:
            connection.open_cursor(serial, first_epoch, stop_epoch)
            while epoch != stop_epoch:
                self._next_epoch = max(self._next_epoch, epoch + 1)
                for _ in range(steps):
                    yield self._batch(connection.next_grant(serial))
                epoch += 1
        finally:
            connection.close_cursor(serial)

    def _batch(self, grant: Granted) -> Batch:
        connection = self._connection
        copy = self._copy_when_held and connection.held >= 2
        root = connection.root(grant)
        return Batch.of(grant, root.copy() if copy else root, connection.layout)

    def _end_current(self) -> None:
        generator = self._current() if self._current is not None else None
        if generator is not None:
            with contextlib.suppress(ValueError):  # it is running in another thread
                generator.close()

    def close(self) -> None:
        """End the loader, and with it a private daemon. What was delivered stays valid."""
        self._end_current()
        self._end()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _end(connection: Connection, process: subprocess.Popen[bytes] | None, pid: int) -> None:
    """End a loader's connection and private daemon; nothing in a forked child, which owns neither."""
    if os.getpid() != pid:
        if process is not None:
            process.returncode = 0  # not ours to wait for: silences the warning of a copy being dropped
        return
    connection.close(at_once=process is not None)
    if process is not None:
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def batches(
    source: str | bytes | os.PathLike[str] | None = None,
    *,
    daemon: str | None = None,
    epochs: int | None = 1,
    timeout: float = 30.0,
    on_hold: Literal["wait", "copy"] = "wait",
    hold_timeout: float = 10.0,
    writable: bool = False,
    config: str | os.PathLike[str] | None = None,
    root: str | os.PathLike[str] | None = None,
    label_columns: int | None = None,
    x_column: str | int | None = None,
    y_column: str | int | Sequence[str | int] | None = None,
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
    num_workers: int | None = None,
    memory_budget: str | int | None = None,
    reader_timeout: float | None = None,
) -> Loader:
    """Return a loader of batches `x, y`, zero-copy views of memory that a daemon fills ahead of the loop.

    With a `source`, a private daemon is started, which ends with the loader or with this process. Without one the
    loader attaches to the daemon called `daemon`, whose configuration decides the pixels: an option given here that
    contradicts it is refused.

    Each `x` has shape (rows, height, width, channels) (or as `layout` says) and the configured dtype, each `y` shape
    (rows,) or (rows, k), int64 or float32; masks are (rows, height, width), uint8 or uint16. Both are read-only.
    The loop may keep what it likes for as long as it likes, as far as the ring's slots go: an array never changes while
    it is held.

    Args:
        source: a list file (`path label` a line; `.csv`, `.tsv`) or a directory with a folder per class.
        daemon: name of the daemon to attach to; `PREFETCHD_NAME` or `default` if not given.
        epochs: epochs that one `for` loop runs over; `None` for ever. Every `iter()` goes on with the next epoch.
        timeout: seconds to wait for a daemon that is still starting.
        on_hold: what happens when the loop holds more batches than the ring can spare: `wait` up to `hold_timeout`
            seconds and raise `RingExhausted`, or deliver private copies (`copy`).
        hold_timeout: seconds.
        writable: deliver arrays that may be written; what is written stays private.
        config: a TOML file with options; those given here win. With `daemon`, the file's `source` is the daemon's.
        root: folder that relative paths start from; the manifest's own by default.
        label_columns: how many trailing fields of a text line are labels; found out by default.
        x_column: name or number (from 0) of the path's column, for CSV and TSV.
        y_column: names or numbers of the label columns, for CSV and TSV.
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
        num_workers: reader processes; 0 (default) takes the usable cores.
        memory_budget: `auto` (default), or bytes such as `512MiB` or `25%`.
        reader_timeout: seconds without progress after which a reader is replaced (60).

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
    for name in ("source", "root", "memory_budget"):
        if name in options:
            options[name] = os.fsdecode(options[name]) if name != "memory_budget" else str(options[name])
    if config is not None:
        from prefetchd.config import read_config_file

        from_file = read_config_file(os.fspath(config))
        daemon = daemon or (from_file.pop("name", None) if "source" not in from_file else None)
        if daemon is not None:
            from_file.pop("source", None)  # the file is the daemon's own: attach to what it serves
        options = {**from_file, **options}
    if on_hold not in ("wait", "copy"):
        raise ConfigError(f"cannot use on_hold={on_hold!r}: it must be 'wait' or 'copy'")
    if epochs is not None and (not isinstance(epochs, int) or epochs < 1):
        raise ConfigError(f"cannot use epochs={epochs!r}: it must be a whole number from 1, or None for ever")
    for name, seconds in (("timeout", timeout), ("hold_timeout", hold_timeout)):
        if not isinstance(seconds, int | float) or not 0 <= seconds < 1e9:
            raise ConfigError(f"cannot use {name}={seconds!r}: it must be a number of seconds, 0 or more")
    if "source" in options and daemon is not None:
        raise ConfigError(
            f"cannot serve {options['source']!r} from the daemon {daemon!r}: a source starts a private daemon; "
            "give one or the other"
        )
    process = None
    attach_options: dict[str, Any] = {}
    timeout_s: float | None = None
    if "source" in options:
        sock, process = launch.start_private(make_config(**options))
    else:
        name = daemon or os.environ.get("PREFETCHD_NAME") or "default"
        attach_options = _expected(options)
        sock = launch.connect(name, timeout)
        timeout_s = timeout
    from prefetchd.client import Connection  # numpy is imported here, while a private daemon starts

    connection = Connection(sock, writable=writable, hold_timeout_s=hold_timeout)
    try:
        connection.attach(attach_options, 3 if on_hold == "copy" else 2, timeout_s)
    except BaseException:
        _end(connection, process, os.getpid())
        raise
    return Loader(connection, process, epochs=epochs, on_hold=on_hold)


_CONFIG_OPTIONS = (
    "source", "root", "label_columns", "x_column", "y_column", "batch_size", "image_size", "color", "dtype", "scale",
    "mean", "std", "layout", "resize", "interpolation", "shrink_on_load", "augment", "transform", "target_transform",
    "target", "mask_border", "python_path", "shuffle", "seed", "drop_last", "on_error", "max_image_pixels",
    "num_workers", "memory_budget", "reader_timeout",
)  # fmt: skip


def _expected(options: dict[str, Any]) -> dict[str, Any]:
    """Return `options` checked and in the form in which the daemon compares them with its own."""
    wire = make_config(source="-", **options).to_wire()
    return {name: list(wire[name]) if isinstance(wire[name], tuple) else wire[name] for name in options}
