"""The loader that users iterate over: a position in the sequence of batches, and a session with a daemon.

Made by `prefetchd.batches` (`api`). When the daemon dies the loop gets `DaemonLost`, or with `reconnect` goes on with
the next batch of another daemon. When the loader is dropped, a private daemon ends with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Generator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from prefetchd.client import description
from prefetchd.client.batch import Batch
from prefetchd.client.iteration import BaseLoader, PassEnded, superseded
from prefetchd.client.log_lines import with_lines
from prefetchd.client.meter import LoaderStats
from prefetchd.client.session import Endpoint, Sessions
from prefetchd.client.sharing import make_shard
from prefetchd.client.start import NextStart
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
        log_every: int | None = None,
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
        self.next = NextStart()
        self._log_every = log_every
        self._connection.meter.advice = description.adviser(self._info, is_private=endpoint.is_private)

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
        return f"<prefetchd.Loader {'; '.join(f'{name}: {text}' for name, text in self._facts().items())}>"

    def _repr_html_(self) -> str:
        """Return the facts as a table, and pictures of the next batch; the loop stays as it is."""
        from prefetchd.client.notebook import loader_html

        return loader_html("prefetchd.Loader", self._facts(), self, self.peek)

    def _facts(self) -> dict[str, str]:
        """Return what `repr` and notebooks show of it, by the word for each."""
        at = self.position if self._running is not None else self.next.position
        where = f"epoch {at.epoch}, batch {at.batch}" if self._sessions.is_open else "closed"
        is_private = self._endpoint.is_private
        return description.facts(self._info, self.layout, self._shard, is_private=is_private, next_batch=where)

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
        return description.noun(self._info) == "images"

    def status(self) -> dict[str, Any]:
        """Return what the daemon says of itself, as `prefetchd status --json` prints it.

        Raises:
            DaemonLost: if it is gone.
        """
        return self._connection.status()

    def stats(self) -> LoaderStats:
        """Return what the loops were given so far, and how long they waited for it."""
        return self._connection.meter.read()

    # --- where it is

    @property
    def position(self) -> Position:
        """Where the loop is, for `state_at`: the position in `state_dict`, at hardly any cost."""
        return self._progress.position(self._shard)

    def start_at(self, position: Position) -> None:
        """Let the next iteration begin at `position`, for adapters; does nothing in a group. A running one ends."""
        if self._endpoint.group is not None:
            return
        with self._lock:
            self._supersede()
            self.next.chosen, self._progress = position, Progress(position)

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration begin with `epoch`. A running iteration goes on, and the state stays its own.

        Raises:
            ConfigError: if it is no epoch's number.
        """
        epoch = read_index("epoch", epoch, MAX_EPOCH + 1)
        self.next.chosen = Position(epoch, 0, epoch)
        if self._running is None:
            self._progress = Progress(self.next.chosen)

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
        has_begun = position.batch or position.row
        if has_begun and not self._shard.steps(position.batch):  # what is left gives no rank a step
            position = position.next_epoch()
        self.start_at(position)

    def _refuse_in_group(self, what: str) -> None:
        if self._endpoint.group is not None:
            raise ConfigError(
                f"cannot {what} a member of the group {self._endpoint.group!r}: which batches it gets depends on when "
                "it and the others ask; save the epoch that you are in, or use rank= and world_size="
            )

    # --- the loop

    def __iter__(self) -> Generator[Batch, None, None]:
        """Return a generator over the next `epochs` epochs. An earlier one ends, and raises if it is asked again.

        After `load_state_dict` it is the rest of the iteration that was interrupted. One that was never asked for a
        batch uses nothing up: the one after it begins at the same place.
        """
        with self._lock:
            self._supersede()
            start, chosen = self.next.position, self.next.chosen
            join = self._join and chosen is None
            first_epoch, stop_epoch = start.iteration(self._epochs)
            self._serial += 1
            start = dataclasses.replace(start, first_epoch=first_epoch)
            self._progress = Progress(start, 0, self._serial, stop_epoch, join)
            run = self._run_in_group if self._endpoint.group is not None else self._run
            return self._begin(self._logged(run(self._progress, chosen)))

    def _logged(self, batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
        if self._log_every is None:
            return batches
        what, noun = description.name_of(self._info, self._shard), description.noun(self._info)
        return with_lines(batches, self._connection.meter, self._log_every, self._info.batches_per_epoch, what, noun)

    def _run(self, progress: Progress, chosen: Position | None) -> Generator[Batch, None, None]:
        def take(connection: Connection) -> Batch:
            return connection.next_batch(progress.serial, self._copy_when_held)

        self.next.use_up(chosen, progress.start.epoch)
        meter = self._connection.meter
        meter.begin_loop(progress.serial)
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
                self.next.reach(start.epoch)
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
            meter.end_loop(progress.serial)
            self._connection.close_cursor(progress.serial)

    def _run_in_group(self, progress: Progress, chosen: Position | None) -> Generator[Batch, None, None]:
        self.next.use_up(chosen, progress.start.epoch)
        meter = self._connection.meter
        meter.begin_loop(progress.serial)
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
            meter.end_loop(progress.serial)
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
        return self.peek_at(self.position if self._running is not None else self.next.position)

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
