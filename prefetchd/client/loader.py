"""The loader that users iterate over: a position in the sequence of batches, and a session with a daemon.

Made by `prefetchd.batches` (`api`). When the daemon dies the loop gets `DaemonLost`, or with `reconnect` goes on with
the next batch of another daemon. When the loader is dropped, a private daemon ends with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Generator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from prefetchd.client.batch import Batch
from prefetchd.client.iteration import BaseLoader, PassEnded, superseded
from prefetchd.client.session import Endpoint, Sessions
from prefetchd.client.sharing import make_shard
from prefetchd.client.state import MAX_EPOCH, Position, Progress, make_state, read_index, read_state
from prefetchd.errors import ConfigError, DaemonLost
from prefetchd.ipc import system

if TYPE_CHECKING:
    import mmap
    from typing import TypeVar

    from prefetchd.client.connection import Connection
    from prefetchd.ipc.messages import Attached

    T = TypeVar("T")


class Loader(BaseLoader[Batch]):
    """A re-iterable source of batches; made by `batches`. Close it with `close()`, `with`, or by dropping it.

    Arrays that it delivered stay valid after it was closed, after the daemon ended, and for as long as they are held.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        rank: int = 0,
        world_size: int = 1,
        epochs: int | None = 1,
        copy_when_held: bool = False,
        reconnect: bool = False,
        join: bool = False,
    ) -> None:
        self._endpoint = endpoint
        self._epochs = epochs
        self._copy_when_held = copy_when_held
        self._join = join
        self._sessions = Sessions(endpoint, reconnect=reconnect)
        try:
            self._shard = make_shard(self._info, rank, world_size)
        except ConfigError:
            self._sessions.close()
            raise
        self._lock = system.lock()  # around the change from one iteration to another
        self._serial = 0  # of the newest iteration
        self._progress = Progress(Position(0, 0, 0))
        self._next_epoch = 0
        self._next: Position | None = None  # where the next iteration begins, if the user has chosen

    @property
    def _connection(self) -> Connection:
        return self._sessions.current.connection

    @property
    def _info(self) -> Attached:
        return self._connection.info

    def __len__(self) -> int:
        """Batches in an epoch, as this rank sees it; of a member of a group, all that the members see together."""
        return self._shard.steps()

    def __repr__(self) -> str:
        info, state = self._info, "open" if self._sessions.is_open else "closed"
        rank = f" of rank {self._shard.rank} of {self._shard.world_size}" if self._shard.world_size > 1 else ""
        return (
            f"<prefetchd.Loader of {info.n_samples} samples, {len(self)} batches an epoch{rank}, "
            f"daemon {info.name!r} pid {info.pid}, next epoch {self._next_start.epoch}, {state}>"
        )

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied or pickled: two of it would close each other's session."""
        raise ConfigError(
            "cannot copy or pickle a loader: it belongs to the process and the place that made it; call "
            "prefetchd.batches() there, with load_state_dict(loader.state_dict()) to go on from here"
        )

    @property
    def epochs(self) -> int | None:
        """Epochs that one iteration runs over; `None` for ever."""
        return self._epochs

    @property
    def serves_images(self) -> bool:
        """Whether x is made of images, rather than rows of arrays."""
        return "decoder" in self._info.versions

    def status(self) -> dict[str, Any]:
        """Return what the daemon says of itself, as `prefetchd status --json` prints it.

        Raises:
            DaemonLost: if it is gone.
        """
        return self._connection.status()

    # --- where it is

    @property
    def position(self) -> Position:
        """Where the loop is, for `state_at`: the position in `state_dict`, at hardly any cost."""
        return self._progress.position(self._shard)

    @property
    def _next_start(self) -> Position:
        return self._next or Position(self._next_epoch, 0, self._next_epoch)

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration begin with `epoch`. A running iteration goes on, and the state stays its own.

        Raises:
            ConfigError: if it is no epoch's number.
        """
        epoch = read_index("epoch", epoch, MAX_EPOCH + 1)
        self._next = Position(epoch, 0, epoch)
        if self._running is None:
            self._progress = Progress(self._next)

    def state_dict(self) -> dict[str, Any]:
        """Return where the loop is, as plain JSON values, to be given to `load_state_dict` of a loader like this.

        It counts the batches that the loop was given, the present one included. All ranks have the same state at the
        same step.

        Raises:
            ConfigError: for a member of a group, which has no position of its own.
        """
        return self.state_at(self.position)

    def state_at(self, position: Position) -> dict[str, Any]:
        """Return the `state_dict` of the loop at `position`: for loops that run ahead of their user's."""
        self._refuse_in_group("save the state of")
        return make_state(self._info, position)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on from `state`. A running iteration ends, and raises if it is asked again.

        The next iteration is the rest of the one that was interrupted. The number of readers, the daemon, the world
        size and `batch_size` may differ from those at the time of the state. Where no batch begins with the next
        sample, the first batch, of rank 0 alone, is the rest of the one that has it.

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
        if (position.batch or position.row) and not self._shard.steps(
            position.batch
        ):  # what is left gives no rank a step
            position = position.next_epoch()
        with self._lock:
            self._supersede()
            self._next, self._progress = position, Progress(position)

    def _refuse_in_group(self, what: str) -> None:
        if self._endpoint.group is not None:
            raise ConfigError(
                f"cannot {what} a member of the group {self._endpoint.group!r}: which batches it gets depends on when "
                "it and the others ask; save the epoch that you are in, or use rank= and world_size="
            )

    # --- the loop

    def __iter__(self) -> Generator[Batch, None, None]:
        """Return a generator over the next `epochs` epochs. An earlier one ends, and raises if it is asked again.

        After `load_state_dict` it is the rest of the iteration that was interrupted.
        """
        with self._lock:
            self._supersede()
            start = self._next_start
            join = self._join and self._next is None
            first_epoch, stop_epoch = start.iteration(self._epochs)
            self._next, self._next_epoch = None, start.epoch + 1
            self._serial += 1
            start = dataclasses.replace(start, first_epoch=first_epoch)
            self._progress = Progress(start, 0, self._serial, stop_epoch, join)
            run = self._run_in_group if self._endpoint.group is not None else self._run
            return self._begin(run(self._progress))

    def _run(self, progress: Progress) -> Generator[Batch, None, None]:
        def take(connection: Connection) -> Batch:
            return connection.next_batch(progress.serial, self._copy_when_held)

        try:
            self._open_cursor(progress)
            if progress.join:
                begins = self._ask(progress, lambda connection: connection.wait_until_open(progress.serial))
                progress.start = Position(begins.epoch, 0, begins.epoch, begins.rotation)
                progress.stop_epoch = None if self._epochs is None else begins.epoch + self._epochs
                progress.join = False
            start = progress.start
            shard = dataclasses.replace(self._shard, rotation=start.rotation)
            # Looked up once: after a pause nothing is in the processor's caches, and each attribute is a miss.
            serial, copy_when_held, next_batch = progress.serial, self._copy_when_held, self._connection.next_batch
            while start.epoch != progress.stop_epoch:
                self._next_epoch = max(self._next_epoch, start.epoch + 1)
                progress.start, progress.steps = start, 0
                n_seen = 0 if shard.rank else start.row
                for step in range(1, shard.steps(start.batch) + 1):
                    # In a list that is emptied as it is yielded: a name would hold the batch while the user has it.
                    try:
                        ready = [next_batch(serial, copy_when_held)]
                    except DaemonLost:
                        ready = [self._ask(progress, take)]
                        next_batch = self._connection.next_batch
                    progress.steps = step
                    if n_seen:
                        ready, n_seen = [ready.pop().from_row(n_seen)], 0
                    yield ready.pop()
                start = start.next_epoch()
        finally:
            self._connection.close_cursor(progress.serial)

    def _run_in_group(self, progress: Progress) -> Generator[Batch, None, None]:
        try:
            self._open_cursor(progress)
            while True:
                yield self._connection.next_batch(progress.serial, self._copy_when_held)
        except PassEnded:
            return
        except DaemonLost:
            self._endpoint.clear_up_after_lost()
            raise
        finally:
            self._connection.close_cursor(progress.serial)

    def _ask(self, progress: Progress, question: Callable[[Connection], T]) -> T:
        return self._sessions.ask(question, lambda: self.position, lambda: self._open_cursor(progress))

    def _open_cursor(self, progress: Progress) -> None:
        at = progress.position(self._shard)
        shard = dataclasses.replace(self._shard, rotation=at.rotation)
        with self._lock, contextlib.suppress(DaemonLost):  # the wait for the first batch raises it
            if progress.serial != self._serial:
                raise superseded()
            self._connection.open_cursor(
                progress.serial, shard, at.epoch, at.batch, progress.stop_epoch, join=progress.join
            )

    def _supersede(self) -> None:
        """End the running iteration, also one that another thread waits in."""
        running = self._running
        if running is not None:
            running.supersede()
            self._connection.close_cursor(self._serial)

    # --- single batches

    def peek(self) -> Batch:
        """Return the batch that the loop gets next, in memory of its own; the loop and its position stay as they are.

        Where no loop runs it is the first batch of the next iteration.

        Raises:
            ConfigError: for a member of a group, which has no position of its own.
            PrefetchdError: as `batch_at`.
        """
        return self.peek_at(self.position if self._running is not None else self._next_start)

    def peek_at(self, position: Position) -> Batch:
        """Return the batch that a loop at `position` gets next: for loops that run ahead of their user's."""
        self._refuse_in_group("peek at the next batch of")
        shard = dataclasses.replace(self._shard, rotation=position.rotation)
        batch = self.batch_at(position.epoch, shard.batch(0, position.batch)[0])
        return batch.from_row(position.row) if position.row and not shard.rank else batch

    def batch_at(self, epoch: int, index: int) -> Batch:
        """Return batch number `index` of `epoch` over all ranks, in memory of its own.

        The batch is read by a cursor of its own: a loop that runs, and its position, stay as they are.

        Raises:
            ConfigError: if there is no such batch.
            SampleError: if it cannot be made.
            BudgetError: if the ring has no slot for a second cursor.
            DaemonLost: if the daemon is gone.
        """
        epoch = read_index("epoch", epoch, MAX_EPOCH + 1)
        index = read_index("index", index, self._info.batches_per_epoch)
        return self._endpoint.read_batch(self._connection, epoch, index)

    # --- the connection

    @property
    def is_ready(self) -> bool:
        """Whether the loop's next batch is most likely here, so that `next()` will not wait for it."""
        return self._connection.is_ready

    @property
    def maps(self) -> Collection[mmap.mmap]:
        """The maps of the ring's slots as they are now; none with `writable`, where each batch has one of its own."""
        return self._connection.maps

    def _end_session(self) -> None:
        self._sessions.close()
