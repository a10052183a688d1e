"""The loader that users iterate over: a position in the sequence of batches, and a session with a daemon to read it by.

Made by `prefetchd.batches` (`api`). When the daemon dies the loop gets `DaemonLost`, or goes on with the next batch of
another daemon if it was told to (`reconnect`). When the loader is dropped, a private daemon ends with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import logging
import operator
import weakref
from collections.abc import Collection, Generator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from prefetchd.client.batch import Batch
from prefetchd.client.session import Endpoint
from prefetchd.client.state import MAX_EPOCH, Position, check_same, make_state, read_state
from prefetchd.client.user_warnings import warn_user
from prefetchd.errors import ConfigError, DaemonLost
from prefetchd.sampling.sharding import Shard

if TYPE_CHECKING:
    import mmap

    from prefetchd.ipc.messages import Attached
    from prefetchd.ring.layout import BatchLayout

log = logging.getLogger("prefetchd")

_MAX_LOST_IN_A_ROW = 5  # daemons that end before they deliver the next batch: it is the batch that ends them


class Loader:
    """A re-iterable source of batches; made by `batches`. Close it with `close()`, `with`, or by dropping it.

    Arrays that it delivered stay valid after it was closed, after the daemon ended, and for as long as they are held.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        rank: int,
        world_size: int,
        epochs: int | None,
        copy_when_held: bool,
        reconnect: bool,
        join: bool = False,
    ) -> None:
        self._endpoint = endpoint
        self._epochs = epochs
        self._copy_when_held = copy_when_held
        self._reconnect = reconnect
        self._join = join
        self._session = endpoint.open_again() if reconnect else endpoint.open()
        self._end = weakref.finalize(self, self._session.close)
        info = self._info
        self._shard = Shard(info.batches_per_epoch, rank, world_size, info.drop_last)
        if not self._shard.steps():
            self._end()
            raise ConfigError(
                f"cannot share {info.batches_per_epoch} batches among {world_size} ranks with drop_last: none has a "
                "step; lower batch_size, or leave drop_last out"
            )
        if world_size > 1 and info.config["on_error"] == "skip":
            warn_user(
                "on_error='skip' makes the batches of some ranks shorter than those of others, which can stop a "
                "collective step; use on_error='substitute'"
            )
        self._serial = 0
        self._current: weakref.ref[Generator[Batch, None, None]] | None = None
        # A position, and the steps that the loop has taken from there on, within an epoch.
        self._start, self._steps = Position(0, 0, 0), 0
        # The epoch that the next iteration begins with.
        self._next_epoch = 0
        self._resumed = False
        self._epoch_chosen = False

    @property
    def _info(self) -> Attached:
        return self._session.connection.info

    def __len__(self) -> int:
        """Batches in an epoch, as this rank sees it; of a member of a group, all that the members see together."""
        return self._shard.steps()

    def __repr__(self) -> str:
        info, state = self._info, "open" if self._end.alive else "closed"
        rank = f" of rank {self._shard.rank} of {self._shard.world_size}" if self._shard.world_size > 1 else ""
        return (
            f"<prefetchd.Loader of {info.n_samples} samples, {len(self)} batches an epoch{rank}, "
            f"daemon {info.name!r} pid {info.pid}, next epoch {self._next_epoch}, {state}>"
        )

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied or pickled: two of it would close each other's session."""
        raise ConfigError(
            "cannot copy or pickle a loader: it belongs to the process and the place that made it; call "
            "prefetchd.batches() there, with load_state_dict(loader.state_dict()) to go on from here"
        )

    @property
    def n_samples(self) -> int:
        """Samples in the data set."""
        return self._info.n_samples

    @property
    def epochs(self) -> int | None:
        """Epochs that one iteration runs over; `None` for ever."""
        return self._epochs

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes by number, where the manifest's labels were text; else `None`."""
        return self._session.connection.classes

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of the daemon that serves this loader, by option name."""
        return dict(self._info.config)

    @property
    def layout(self) -> BatchLayout:
        """Shapes (of one sample) and dtypes: `batch_size`, `x_shape`, `x_dtype`, `y_shape`, `y_dtype`."""
        return self._session.connection.layout

    @property
    def serves_images(self) -> bool:
        """Whether x is made of images, rather than rows of arrays."""
        return "decoder" in self._info.versions

    def status(self) -> dict[str, Any]:
        """Return what the daemon says of itself, as `prefetchd status --json` prints it.

        Raises:
            DaemonLost: if it is gone.
        """
        return self._session.connection.status()

    # --- where it is

    @property
    def _position(self) -> Position:
        """Where the loop is: what its next batch is."""
        start, steps = self._start, self._steps
        if not steps:
            return start
        return Position(*self._shard.after(start.epoch, steps, start.batch), start.first_epoch, start.rotation)

    @_position.setter
    def _position(self, position: Position) -> None:
        self._start, self._steps = position, 0

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration begin with `epoch`; one that runs now is not touched, and neither is its state.

        Raises:
            ConfigError: if it is no epoch's number.
        """
        if not hasattr(epoch, "__index__") or not 0 <= operator.index(epoch) <= MAX_EPOCH:
            raise ConfigError(f"cannot use epoch={epoch!r}: it must be a whole number from 0")
        self._next_epoch = operator.index(epoch)
        self._resumed, self._epoch_chosen = False, True
        running = self._current() if self._current is not None else None
        if running is None or inspect.getgeneratorstate(running) == inspect.GEN_CLOSED:
            self._position = Position(self._next_epoch, 0, self._next_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return where the loop is, as plain JSON values, to be given to `load_state_dict` of a loader like this.

        It counts the batches that the loop was given, the one that it is at work on included, and no others. All ranks
        have the same state at the same step.

        Raises:
            ConfigError: for a member of a group, whose batches are whatever the others leave.
        """
        return self.state_at(self._position)

    @property
    def position(self) -> Position:
        """Where the loop is, for `state_at`: what `state_dict` tells, at hardly any cost."""
        return self._position

    def state_at(self, position: Position) -> dict[str, Any]:
        """Return the `state_dict` of when the loop was at `position`: for loops that run ahead of their user's."""
        self._refuse_in_group("save the state of")
        return make_state(self._info, position)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on from `state`; an iteration that runs ends.

        It first finishes the iteration that was interrupted. The number of readers, the daemon and the world size may
        be others than those that the state was saved with.

        Raises:
            ConfigError: if it is no state, or one of other options.
            ManifestError: if it is of other data.
        """
        self._refuse_in_group("resume")
        position = read_state(state, self._info)
        if position.rotation and self._shard.world_size > 1:
            raise ConfigError(
                f"cannot resume: the state is of epochs that begin at batch {position.rotation} (join='now'), which "
                f"{self._shard.world_size} ranks cannot share; resume it with one loader, or begin anew"
            )
        if position.batch and not self._shard.steps(position.batch):  # what is left gives no rank a step
            position = dataclasses.replace(position, epoch=position.epoch + 1, batch=0)
        self._end_current()
        self._position = position
        self._resumed = True

    def _refuse_in_group(self, what: str) -> None:
        if self._endpoint.group is not None:
            raise ConfigError(
                f"cannot {what} a member of the group {self._endpoint.group!r}: which batches it gets depends on when "
                "it and the others ask; save the epoch that you are in, or use rank= and world_size="
            )

    # --- the loop

    def __iter__(self) -> Generator[Batch, None, None]:
        """Return a generator over the next `epochs` epochs; an earlier one of this loader ends.

        After `load_state_dict` it is the rest of the iteration that the state was saved in.
        """
        self._end_current()
        if not self._resumed:
            self._position = Position(self._next_epoch, 0, self._next_epoch)
        join = self._join and not self._resumed and not self._epoch_chosen
        self._resumed = self._epoch_chosen = False
        first_epoch, stop_epoch = self._position.iteration(self._epochs)
        self._position = dataclasses.replace(self._position, first_epoch=first_epoch)
        self._next_epoch = self._position.epoch + 1
        self._serial += 1
        run = self._run_in_group if self._endpoint.group is not None else self._run
        generator = run(self._serial, stop_epoch, join)
        self._current = weakref.ref(generator)
        return generator

    def _run(self, serial: int, stop_epoch: int | None, join: bool) -> Generator[Batch, None, None]:
        try:
            self._open_cursor(serial, stop_epoch, join=join)
            joined = [self._next_batch(0, serial, stop_epoch, join=True)] if join else []
            if joined:
                epoch, rotation = joined[0].epoch, joined[0].index
                self._position = Position(epoch, 0, epoch, rotation)
                stop_epoch = None if self._epochs is None else epoch + self._epochs
            first_epoch, rotation = self._position.first_epoch, self._position.rotation
            epoch, start = self._position.epoch, self._position.batch
            shard = dataclasses.replace(self._shard, rotation=rotation)
            while epoch != stop_epoch:
                self._next_epoch = max(self._next_epoch, epoch + 1)
                self._position = Position(epoch, start, first_epoch, rotation)
                for step in range(1, shard.steps(start) + 1):
                    # No name for the batch here: that would hold it.
                    yield self._take(joined, step) if joined else self._next_batch(step, serial, stop_epoch)
                epoch, start = epoch + 1, 0
        finally:
            self._session.connection.close_cursor(serial)

    def _take(self, joined: list[Batch], step: int) -> Batch:
        self._steps = step
        return joined.pop()

    def _run_in_group(self, serial: int, stop_epoch: int | None, join: bool) -> Generator[Batch, None, None]:
        from prefetchd.client.connection import PassEnded  # numpy is imported by now

        try:
            self._open_cursor(serial, stop_epoch)
            while True:
                try:
                    yield self._next_batch(0, serial, stop_epoch)
                except PassEnded:
                    return
        finally:
            self._session.connection.close_cursor(serial)

    @property
    def is_ready(self) -> bool:
        """Whether the loop's next batch is most likely here, so that `next()` will not wait for it."""
        return self._session.connection.is_ready

    @property
    def maps(self) -> Collection[mmap.mmap]:
        """The maps of the ring's slots as they are now; none with `writable`, where each batch has one of its own."""
        return self._session.connection.maps

    def _open_cursor(self, serial: int, stop_epoch: int | None, *, join: bool = False) -> None:
        position = self._position
        shard = dataclasses.replace(self._shard, rotation=position.rotation)
        with contextlib.suppress(DaemonLost):  # whoever asks for the first batch hears of it
            self._session.connection.open_cursor(serial, shard, position.epoch, position.batch, stop_epoch, join=join)

    def _next_batch(self, step: int, serial: int, stop_epoch: int | None, *, join: bool = False) -> Batch:
        # After a pause nothing of this is in the processor's caches, so what every batch takes is kept short.
        try:
            batch = self._session.connection.next_batch(serial, self._copy_when_held)
        except DaemonLost as lost:
            batch = self._next_after_loss(lost, serial, stop_epoch, join=join)
        self._steps = step
        return batch

    def _next_after_loss(self, lost: DaemonLost, serial: int, stop_epoch: int | None, *, join: bool) -> Batch:
        """Return the next batch of another daemon, if the loop is to go on with one."""
        for _ in range(_MAX_LOST_IN_A_ROW):
            if not self._reconnect:
                break
            self._open_session_again(lost)
            self._open_cursor(serial, stop_epoch, join=join)
            try:
                return self._session.connection.next_batch(serial, self._copy_when_held)
            except DaemonLost as again:
                lost = again
        self._endpoint.clear_up_after_lost()
        raise lost

    def _open_session_again(self, lost: DaemonLost) -> None:
        """Replace the session, whose daemon is gone; the loop goes on from `_position`, where it is."""
        log.warning(
            "the daemon is gone; waiting for it to come back for up to %g s (%s)", self._endpoint.timeout_s, str(lost)
        )
        before = make_state(self._info, self._position)
        session = self._endpoint.open_again()
        self._end.detach()
        self._session.close()
        self._session = session
        self._end = weakref.finalize(self, self._session.close)
        check_same(before, self._info, "the daemon that came back serves other batches")

    def _end_current(self) -> None:
        generator = self._current() if self._current is not None else None
        if generator is not None:
            with contextlib.suppress(ValueError):  # it is running in another thread
                generator.close()

    def close(self) -> None:
        """End the loader, and with it a private daemon. What was delivered stays valid.

        Another thread that waits for a batch of it gets a `PrefetchdError` that says so.
        """
        self._end_current()
        self._end()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
