"""Messages between the daemon and its own processes: the readers, the fork server that forks them, and the dry run.

    fork server: Spawn -> Spawned ... Exited
    reader:      OpenDataset ... Boot -> ReaderReady   MapSlot, Fills, FillOne, Compact -> AllDone
                 NeedMemory -> MemoryGranted, MemoryDenied
    dry run:     OpenDataset -> DryRunDone, DryRunFailed

Both ends are of one version, always. Sockets, descriptors and codec are those of `messages`; each direction has a
decoder of its own.
"""

from __future__ import annotations

import signal
from typing import Any

import msgspec

from prefetchd.ipc.messages import Count
from prefetchd.ipc.messages import DecodeError as DecodeError
from prefetchd.ipc.messages import Message as Message
from prefetchd.ipc.messages import encode as encode

# --- daemon to reader


class OpenDataset(Message, frozen=True):
    """The first lines to a reader: a data set's configuration, source handle and layout; its descriptors come along."""

    dataset: Count
    config: dict[str, Any]
    source: dict[str, Any]
    layout: dict[str, Any]


class Boot(Message, frozen=True):
    """All data sets were told; a decode may take `allowance_bytes` of working memory without asking.

    The whole process may take `share_bytes`, and map `slack_bytes` more that it does not touch.
    """

    allowance_bytes: Count
    share_bytes: Count
    slack_bytes: Count


class MapSlot(Message, frozen=True):
    """A slot to write into; its descriptor comes with the message."""

    slot: Count
    slot_bytes: Count


class UnmapSlots(Message, frozen=True):
    """These slots are given up."""

    slots: list[Count]


class Fill(msgspec.Struct, frozen=True, array_like=True):
    """Fill rows `first_row` onwards of a batch, in the order's own sequence."""

    task: Count
    slot: Count
    dataset: Count
    epoch: Count
    batch: Count
    first_row: Count
    n_rows: Count


class Fills(Message, frozen=True):
    """Several fills in one message, to be done in this order: a message costs as much as filling some cheap rows."""

    fills: list[Fill]


class FillOne(Message, frozen=True):
    """Fill one row with one named sample: a retry, a confirmation or a substitute."""

    task: Count
    slot: Count
    dataset: Count
    epoch: Count
    row: Count
    sample_id: Count


class Compact(Message, frozen=True):
    """Close the gaps that skipped samples left: move the rows that are kept to the front, in order.

    `skipped` has a bit a row, the first row in the lowest bit of the first byte.
    """

    task: Count
    slot: Count
    dataset: Count
    n_rows: Count
    skipped: bytes


class Retire(Message, frozen=True):
    """Do what was said before this, then end: another takes your place."""


class MemoryGranted(Message, frozen=True):
    """The answer to `NeedMemory`: go on."""


class MemoryDenied(Message, frozen=True):
    """The answer to `NeedMemory` where no budget can be made to fit: the reason."""

    reason: str


# --- reader to daemon


class ReaderReady(Message, frozen=True):
    """The reader has booted."""


class Fault(msgspec.Struct, frozen=True, array_like=True):
    """One row that could not be filled. `content` tells faults of the sample from those of the environment."""

    row: int
    sample_id: int
    where: str
    reason: str
    content: bool
    needs_fresh_reader: bool
    this_epoch: bool = False  # the verdict holds for this epoch only: what failed is random
    detail: str = ""  # for the log, such as a traceback; only where one row was asked for


class Done(msgspec.Struct, frozen=True, array_like=True):
    """A task's end, with the rows that failed and the seconds that it took, and that one read takes if reads are slow.

    Of the time that it took, `waited_s` went by in waiting for reads: more hands, not more time, make that less.
    The last `rows_left` rows were not begun: the reader has grown beyond its share, and another is to do them.
    """

    task: Count
    faults: list[Fault]
    took_s: float
    read_s: float = 0.0
    rows_left: Count = 0
    waited_s: float = 0.0


class AllDone(Message, frozen=True):
    """The ends of tasks, in their order; those of cheap ones travel together."""

    done: list[Done]


class NeedMemory(Message, frozen=True):
    """A decode needs more than the reader's allowance; it waits for the answer. 0 gives it back."""

    n_bytes: Count


class Outgrown(Message, frozen=True):
    """The reader takes `n_bytes`, which is more than its share, though it decodes nothing: it is to be replaced."""

    n_bytes: Count


class BootFailed(Message, frozen=True):
    """The reader cannot work, and why."""

    error: str
    text: str


# --- daemon and fork server


class Spawn(Message, frozen=True):
    """Fork a reader whose end of the socket comes with the message."""

    reader: Count


class Spawned(Message, frozen=True):
    """The reader's pid; a pidfd comes with the message."""

    reader: Count
    pid: int


class Exited(Message, frozen=True):
    """A reader ended: its exit code, or minus the signal."""

    reader: Count
    exit_code: int


# --- dry run to daemon


class DryRunDone(Message, frozen=True):
    """What the users' functions give: y's shape and dtype, a digest of each one's code, bytes they take in a reader."""

    y_shape: list[Count]
    y_dtype: str
    code: dict[str, str]
    reader_bytes: Count


class DryRunFailed(Message, frozen=True):
    """The functions cannot be used, and why."""

    text: str


ToReader = OpenDataset | Boot | MapSlot | UnmapSlots | Fills | FillOne | Compact | Retire | MemoryGranted | MemoryDenied
FromReader = ReaderReady | AllDone | NeedMemory | Outgrown | BootFailed
FromForkServer = Spawned | Exited
FromDryRun = DryRunDone | DryRunFailed

decode_to_reader = msgspec.msgpack.Decoder(ToReader).decode
decode_from_reader = msgspec.msgpack.Decoder(FromReader).decode
decode_to_fork_server = msgspec.msgpack.Decoder(Spawn).decode
decode_from_fork_server = msgspec.msgpack.Decoder(FromForkServer).decode
decode_from_dry_run = msgspec.msgpack.Decoder(FromDryRun).decode


def describe_exit(exit_code: int) -> str:
    """Say how a process ended: `exit status 3`, `killed by SIGSEGV`."""
    if exit_code >= 0:
        return f"exit status {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"killed by signal {-exit_code}"
