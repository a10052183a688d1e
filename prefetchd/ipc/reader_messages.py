"""The messages between the daemon and its own processes: readers, the fork server, and the dry run of users' functions.

    fork server:  Spawn -> Spawned ... Exited
    reader:       OpenDataset ... Boot -> ReaderReady   MapSlot, Fills, FillOne, Compact -> AllDone
                  NeedMemory -> MemoryGranted, MemoryDenied
    dry run:      OpenDataset -> DryRunDone, DryRunFailed
    header pass:  OpenRecords, ReadHeaders ... -> HeadersRead ..., HeadersFailed

Both ends always have the same version. Each direction has its own decoder.
"""

from __future__ import annotations

from typing import Any

import msgspec

from prefetchd.ipc.messages import Count
from prefetchd.ipc.messages import DecodeError as DecodeError
from prefetchd.ipc.messages import Message as Message
from prefetchd.ipc.messages import encode as encode

# --- daemon to reader


class OpenDataset(Message, frozen=True):
    """The first messages to a reader: a data set's options, source handle and layout, with its descriptors.

    `order` is the handle of the order, whose descriptor comes last; empty for a plain order, which has none. `layouts`
    are those of the buckets, by number; empty where all batches have one. With
    `across_hosts` the data set was opened on another machine.
    """

    dataset: Count
    config: dict[str, Any]
    source: dict[str, Any]
    layout: dict[str, Any]
    order: dict[str, Any] = msgspec.field(default_factory=dict)
    layouts: list[dict[str, Any]] = msgspec.field(default_factory=list)
    across_hosts: bool = False


class Boot(Message, frozen=True):
    """All data sets were sent. A decode may take `allowance_bytes` of working memory without asking.

    The process may take `share_bytes` in all, and may map `slack_bytes` more that it does not touch.
    """

    allowance_bytes: Count
    share_bytes: Count
    slack_bytes: Count


class MapSlot(Message, frozen=True):
    """A slot to write into. Its descriptor comes with the message."""

    slot: Count
    slot_bytes: Count


class UnmapSlots(Message, frozen=True):
    """The daemon gave these slots up; unmap them."""

    slots: list[Count]


class Fill(msgspec.Struct, frozen=True, array_like=True):
    """Fill the rows of a batch from `first_row` on, with the samples that the order names.

    Here, in `FillOne` and in `Compact`, `layout` is the number of the batch's layout, where the data set has several.
    The slot begins `shift` rows into the batch: an agent's holds a chunk of it alone.
    """

    task: Count
    slot: Count
    dataset: Count
    epoch: Count
    batch: Count
    first_row: Count
    n_rows: Count
    layout: Count = 0
    shift: Count = 0


class Fills(Message, frozen=True):
    """Several fills, to be done in this order. They share a message, as one costs as much as some cheap rows."""

    fills: list[Fill]


class FillOne(Message, frozen=True):
    """Fill one row with one given sample: a retry, a confirmation or a substitute."""

    task: Count
    slot: Count
    dataset: Count
    epoch: Count
    row: Count
    sample_id: Count
    layout: Count = 0


class Compact(Message, frozen=True):
    """Close the gaps of skipped samples: move the rows that are kept to the front, in order.

    `skipped` has a bit a row, the first row in the lowest bit of the first byte.
    """

    task: Count
    slot: Count
    dataset: Count
    n_rows: Count
    skipped: bytes
    layout: Count = 0


class Retire(Message, frozen=True):
    """Finish the tasks sent before this message, then exit; another reader takes this one's place."""


class MemoryGranted(Message, frozen=True):
    """The answer to `NeedMemory`: decode."""


class MemoryDenied(Message, frozen=True):
    """The answer to `NeedMemory` if the budget can never hold the decode, and why."""

    reason: str


# --- reader to daemon


class ReaderReady(Message, frozen=True):
    """The reader has booted."""


class Fault(msgspec.Struct, frozen=True, array_like=True):
    """One row that could not be filled. `content` is true for a fault of the sample, false for the environment's."""

    row: int
    sample_id: int
    where: str
    reason: str
    content: bool
    needs_fresh_reader: bool
    this_epoch: bool = False  # the verdict holds for this epoch only, since what failed depends on random numbers
    detail: str = ""  # for the log, such as a traceback; only where one row was asked for
    over_budget: bool = False  # the daemon refused the memory: of several rows, one is too large


class Done(msgspec.Struct, frozen=True, array_like=True):
    """The end of a task: the rows that failed, the seconds that it took, and those of one read if reads are slow.

    Of `took_s`, the reader waited `waited_s` for reads; more readers shorten that. It did not begin the last
    `rows_left` rows, since it has outgrown its share; another reader must fill them.
    """

    task: Count
    faults: list[Fault]
    took_s: float
    read_s: float = 0.0
    rows_left: Count = 0
    waited_s: float = 0.0


class AllDone(Message, frozen=True):
    """The ends of tasks, in order. Those of cheap tasks share a message."""

    done: list[Done]


class NeedMemory(Message, frozen=True):
    """A decode needs `n_bytes`, more than the reader's allowance; it waits for the answer. 0 returns the grant."""

    n_bytes: Count


class Outgrown(Message, frozen=True):
    """The reader takes `n_bytes`, more than its share, while it decodes nothing; it must be replaced."""

    n_bytes: Count


class BootFailed(Message, frozen=True):
    """The reader cannot work, and why."""

    error: str
    text: str


# --- daemon and fork server


class Spawn(Message, frozen=True):
    """Fork a reader. Its end of the socket comes with the message."""

    reader: Count


class Stop(Message, frozen=True):
    """End: the daemon stops in order, and removes its files itself."""


class Spawned(Message, frozen=True):
    """The reader's pid. A pidfd comes with the message."""

    reader: Count
    pid: int


class Exited(Message, frozen=True):
    """A reader ended: its exit code, or minus the signal."""

    reader: Count
    exit_code: int


# --- dry run to daemon


class DryRunDone(Message, frozen=True):
    """What the users' functions return: y's shape and dtype; a digest of each one's code; their bytes in a reader."""

    y_shape: list[Count]
    y_dtype: str
    code: dict[str, str]
    reader_bytes: Count


class DryRunFailed(Message, frozen=True):
    """The functions cannot be used, and why."""

    text: str


# --- daemon and header pass


class OpenRecords(Message, frozen=True):
    """The records to read: options, and the source's handle, with its descriptors, and the table's and the kept sizes'.

    `part` is the number of the field that is the image; -1 where a sample has one. `n_kept` sizes are known.
    """

    config: dict[str, Any]
    source: dict[str, Any]
    part: int
    n_kept: Count


class ReadHeaders(Message, frozen=True):
    """Write the sizes of samples `first` to `stop` into the table."""

    first: Count
    stop: Count


class HeadersRead(Message, frozen=True):
    """It is done; so many headers were read."""

    n_read: Count


class HeadersFailed(Message, frozen=True):
    """The headers cannot be read, and why."""

    error: str
    text: str


ToReader = OpenDataset | Boot | MapSlot | UnmapSlots | Fills | FillOne | Compact | Retire | MemoryGranted | MemoryDenied
FromReader = ReaderReady | AllDone | NeedMemory | Outgrown | BootFailed
ToForkServer = Spawn | Stop
FromForkServer = Spawned | Exited
FromDryRun = DryRunDone | DryRunFailed
ToHeaderPass = OpenRecords | ReadHeaders
FromHeaderPass = HeadersRead | HeadersFailed

decode_to_reader = msgspec.msgpack.Decoder(ToReader).decode
decode_from_reader = msgspec.msgpack.Decoder(FromReader).decode
decode_to_fork_server = msgspec.msgpack.Decoder(ToForkServer).decode
decode_from_fork_server = msgspec.msgpack.Decoder(FromForkServer).decode
decode_from_dry_run = msgspec.msgpack.Decoder(FromDryRun).decode
decode_to_header_pass = msgspec.msgpack.Decoder(ToHeaderPass).decode
decode_from_header_pass = msgspec.msgpack.Decoder(FromHeaderPass).decode
