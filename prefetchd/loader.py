"""The loader that users iterate over: a position in the sequence of batches, and a session with a daemon to read it by.

Made by `prefetchd.batches` (`api`). When the daemon dies the loop gets `DaemonLost`, or goes on with the next batch of
another daemon if it was told to (`reconnect`). When the loader is dropped, a private daemon ends with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import logging
import operator
import weakref
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

from prefetchd.batch import Batch
from prefetchd.errors import ConfigError, DaemonLost
from prefetchd.resume import MAX_EPOCH, Position, check_same, make_state, read_state
from prefetchd.session import Endpoint
from prefetchd.shard import Shard
from prefetchd.user_warnings import warn_user

if TYPE_CHECKING:
    from prefetchd.messages import Attached, Granted

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
        # Where the loop is (its next batch), and the epoch that the next iteration begins with.
        self._position = Position(0, 0, 0)
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

    @property
    def n_samples(self) -> int:
        """Samples in the data set."""
        return self._info.n_samples

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes by number, where the manifest's labels were text; else `None`."""
        return self._session.connection.classes

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of the daemon that serves this loader, by option name."""
        return dict(self._info.config)

    # --- where it is

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
        self._refuse_in_group("save the state of")
        return make_state(self._info, self._position)

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
        if position.batch and not self._shard.steps(position.batch):
            position = dataclasses.replace(
                position, epoch=position.epoch + 1, batch=0
            )  # what is left gives no rank a step
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
            self._open_cursor(serial, stop_epoch, join)
            first = self._next_grant(serial, stop_epoch, join) if join else None
            if first is not None:
                self._position = Position(first.epoch, 0, first.epoch, first.batch)
                stop_epoch = None if self._epochs is None else first.epoch + self._epochs
            first_epoch, rotation = self._position.first_epoch, self._position.rotation
            epoch, start = self._position.epoch, self._position.batch
            shard = dataclasses.replace(self._shard, rotation=rotation)
            while epoch != stop_epoch:
                self._next_epoch = max(self._next_epoch, epoch + 1)
                for step in range(1, shard.steps(start) + 1):
                    grant = first or self._next_grant(serial, stop_epoch)
                    first = None
                    self._position = Position(*shard.after(epoch, step, start), first_epoch, rotation)
                    yield self._batch(grant)
                epoch, start = epoch + 1, 0
        finally:
            self._session.connection.close_cursor(serial)

    def _run_in_group(self, serial: int, stop_epoch: int | None, join: bool) -> Generator[Batch, None, None]:
        from prefetchd.client import PassEnded  # numpy is imported by now

        try:
            self._open_cursor(serial, stop_epoch)
            while True:
                try:
                    grant = self._next_grant(serial, stop_epoch)
                except PassEnded:
                    return
                self._next_epoch = max(self._next_epoch, grant.epoch + 1)
                yield self._batch(grant)
        finally:
            self._session.connection.close_cursor(serial)

    def _open_cursor(self, serial: int, stop_epoch: int | None, join: bool = False) -> None:
        position = self._position
        shard = dataclasses.replace(self._shard, rotation=position.rotation)
        with contextlib.suppress(DaemonLost):  # whoever asks for the first batch hears of it
            self._session.connection.open_cursor(serial, shard, position.epoch, position.batch, stop_epoch, join=join)

    def _next_grant(self, serial: int, stop_epoch: int | None, join: bool = False) -> Granted:
        for attempt in itertools.count(1):
            try:
                return self._session.connection.next_grant(serial)
            except DaemonLost as lost:
                if not self._reconnect or attempt > _MAX_LOST_IN_A_ROW:
                    raise
                self._open_session_again(lost)
            self._open_cursor(serial, stop_epoch, join)
        raise AssertionError("counting does not end")

    def _open_session_again(self, lost: DaemonLost) -> None:
        """Replace the session, whose daemon is gone; the loop goes on from `_position`, where it is."""
        log.warning(
            "the daemon is gone; waiting for it to come back for up to %g s (%s)", self._endpoint.timeout_s, lost
        )
        before = make_state(self._info, self._position)
        session = self._endpoint.open_again()
        self._end.detach()
        self._session.close()
        self._session = session
        self._end = weakref.finalize(self, self._session.close)
        check_same(before, self._info, "the daemon that came back serves other batches")

    def _batch(self, grant: Granted) -> Batch:
        connection = self._session.connection
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
