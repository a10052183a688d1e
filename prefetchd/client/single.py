"""One batch of a running daemon, for those that look at it and train nothing: `preview` and the dashboard.

It is read by a cursor of its own, as `loader.batch_at` reads: one slot, nothing ahead, given back at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefetchd._version import __version__
from prefetchd.client import launch
from prefetchd.client.state import MAX_EPOCH, read_index
from prefetchd.errors import DaemonLost
from prefetchd.ipc import sockets
from prefetchd.sampling.sharding import Shard

if TYPE_CHECKING:
    from prefetchd.client.batch import Batch
    from prefetchd.client.connection import Connection
    from prefetchd.ipc.messages import Attached

_SLOTS = 1  # an answer to `Attach` that promises no slot beside those of the loops
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Served:
    """What a daemon says of a data set.

    Attributes:
        info: the daemon's answer to `Attach`.
        classes: the names of the classes by number, where labels are text.
        daemon_pid: the daemon's process, as it is here.
    """

    info: Attached
    classes: tuple[str, ...] | None
    daemon_pid: int


def ask_served(daemon: str | int, dataset: str | None, *, name: str) -> Served:
    """Return what the daemon of this name or pid says of a data set; raises as `read_single`."""
    connection = _attach(daemon, dataset, name)
    try:
        return _served(connection)
    finally:
        connection.close(at_once=True)


def read_single(daemon: str | int, dataset: str | None, epoch: int, index: int, *, name: str) -> tuple[Batch, Served]:
    """Return batch number `index` of `epoch` over all ranks, in memory of its own, and what the daemon serves.

    Args:
        daemon: the daemon's name or pid.
        dataset: its data set; `None` where it serves just one.
        epoch: number of the epoch, from 0.
        index: number of the batch in it, from 0.
        name: what `status` calls the reader meanwhile.

    Raises:
        ConfigError: if there is no such data set or batch.
        SampleError: if it cannot be made.
        RingExhausted: if loops hold all slots for longer than ten seconds.
        DaemonNotFound: if no such daemon runs.
        DaemonLost: if it ends meanwhile.
    """
    connection = _attach(daemon, dataset, name)
    try:
        epoch = read_index("epoch", epoch, MAX_EPOCH + 1)
        index = read_index("batch", index, connection.info.batches_per_epoch)
        return read_over(connection, epoch, index), _served(connection)
    finally:
        connection.close(at_once=True)


def read_over(connection: Connection, epoch: int, index: int) -> Batch:
    """Return one batch, in memory of its own, over a connection that reads nothing else."""
    n_batches = connection.info.batches_per_epoch
    # As one rank of as many as there are batches, for one epoch: nothing is made ahead for this cursor.
    connection.open_cursor(1, Shard(n_batches, index, n_batches), epoch, 0, epoch + 1)
    return connection.next_batch(1, copy_when_held=False).copy()


def _attach(daemon: str | int, dataset: str | None, name: str) -> Connection:
    # A loader imports this module before it starts its daemon.
    from prefetchd.client.connection import connect
    from prefetchd.ipc import messages

    sock = launch.connect_to_pid(daemon) if isinstance(daemon, int) else launch.connect(daemon, timeout_s=0)
    request = messages.Attach(messages.PROTOCOL, __version__, dataset, {}, _SLOTS, name=name)
    try:
        return connect(sock, sockets.peer_pid(sock), request, _TIMEOUT_S, writable=False, hold_timeout_s=_TIMEOUT_S)
    except sockets.ConnectionEnded:
        raise DaemonLost(f"cannot read a batch: the daemon {daemon!r} ended just now; see its log") from None


def _served(connection: Connection) -> Served:
    return Served(connection.info, connection.classes, connection.daemon_pid)
