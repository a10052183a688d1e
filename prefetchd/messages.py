"""The typed messages that cross processes, and their one codec: tagged MessagePack arrays, validated as they arrive.

Nothing is pickled. Every message is one datagram of a `SOCK_SEQPACKET` socket, so there is no framing to get out of
step; file descriptors travel beside the bytes (`control.send`, `control.receive`). There are three conversations, each
with its own decoder, so that a consumer cannot speak a reader's lines: consumer and daemon, daemon and reader, daemon
and zygote. `PROTOCOL` changes with any of the messages that a consumer sees.

What never changes, so that any two versions can tell each other that they do not fit: `Attach`, `AskStatus` and
`AskStop` begin with the protocol (`Attach` then with the version), `Attached` with the version; `Fatal` is as it is.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

PROTOCOL = 4
MAX_RELEASED = 64
Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Position = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """Base of every message."""


# --- consumer to daemon


class Attach(Message, frozen=True):
    """The first line of a consumer: what it speaks, which data set it wants, what it expects of its configuration.

    `dataset` is `None` where the daemon is expected to serve just one. Members of a `group` share their passes. The
    first loop waits until `start_together` loaders have begun theirs, for `start_timeout_s` seconds.
    """

    protocol: Count
    version: str
    dataset: str | None
    options: dict[str, Any]
    guaranteed_slots: Annotated[int, msgspec.Meta(ge=2, le=16)]
    group: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None
    start_together: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0
    start_timeout_s: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0


class OpenCursor(Message, frozen=True):
    """Serve from (epoch, batch) as rank `rank` of `world_size`; replaces the connection's earlier cursor.

    The first batch is `batch + rank`: all ranks resume from the same `batch`, however many they were before. It runs
    on from epoch to epoch, up to and without `stop_epoch` (`None`: for ever). Epochs begin at batch `rotation` and wrap
    round. With `join` the daemon chooses epoch (from `epoch` on) and rotation, so that it begins where others are, and
    `stop_epoch` moves along.
    Leases after `taken` were granted to the earlier cursor and not taken; they end with this.
    """

    serial: Count
    taken: Count
    epoch: Position
    batch: Position
    stop_epoch: Position | None
    rank: Count
    world_size: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    rotation: Position = 0
    join: bool = False


class CloseCursor(Message, frozen=True):
    """The loop has ended; leases after `taken` were not taken and end with this."""

    serial: Count
    taken: Count


class Want(Message, frozen=True):
    """The loop waits for its next batch; `taken` is the last lease that it took (0 for none)."""

    serial: Count
    taken: Count


class Release(Message, frozen=True):
    """The last views of leases died (it also tells the last lease taken, so that most loops need no `Want`)."""

    leases: Annotated[list[Count], msgspec.Meta(max_length=MAX_RELEASED)]
    taken: Count


class AskStatus(Message, frozen=True):
    """What `prefetchd status` sends instead of `Attach`."""

    protocol: Count


class AskStop(Message, frozen=True):
    """What `prefetchd stop` sends instead of `Attach`."""

    protocol: Count


class ChangeOptions(Message, frozen=True):
    """What `prefetchd set` sends instead of `Attach`: options to change, and their values as text."""

    protocol: Count
    options: dict[str, str]


class Configure(Message, frozen=True):
    """What the parent of a private daemon sends first: the whole configuration, by data set."""

    datasets: dict[str, dict[str, Any]]


# --- daemon to consumer


class Attached(Message, frozen=True):
    """The answer to `Attach`: everything a loader must know.

    Its descriptors are the mailbox, the page for returned leases and, where labels are text, the class names.
    """

    version: str
    pid: int
    name: str
    dataset: str
    layout: dict[str, Any]
    n_samples: Count
    batches_per_epoch: Count
    drop_last: bool
    config: dict[str, Any]
    config_digest: str
    manifest_digest: str
    versions: dict[str, str]


class SlotOpened(Message, frozen=True):
    """A slot that grants may name from now on; its descriptor comes with the message."""

    slot: Count
    slot_bytes: Count


class SlotClosed(Message, frozen=True):
    """The daemon gave the slot up; the consumer drops its map once no view needs it."""

    slot: Count


class Mail(Message, frozen=True):
    """A loop that said `Want` has a grant in its mailbox (`mailbox`) now."""

    serial: Count


class Ended(Message, frozen=True):
    """The group's pass is over: every batch was given, and everybody is done."""

    serial: Count


class Stalled(Message, frozen=True):
    """No slot can be spared for this cursor's next batch; `holders` says who holds what."""

    serial: Count
    holders: str


class Failed(Message, frozen=True):
    """The cursor's next batch cannot be made, or the request cannot be met."""

    serial: Count
    error: str
    text: str


class Fatal(Message, frozen=True):
    """The daemon refuses this consumer or is ending, and why."""

    error: str
    text: str


class StatusReport(Message, frozen=True):
    """The answer to `AskStatus`."""

    report: dict[str, Any]


class OptionsChanged(Message, frozen=True):
    """The answer to `ChangeOptions`: the plan that is in force from now on, in words."""

    text: str


class Stopping(Message, frozen=True):
    """The answer to `AskStop`."""

    pid: int


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


# --- daemon and zygote


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


# --- daemon and trial


class TrialDone(Message, frozen=True):
    """What the users' functions give: y's shape and dtype, a digest of each one's code, bytes they take in a reader."""

    y_shape: list[Count]
    y_dtype: str
    code: dict[str, str]
    reader_bytes: Count


class TrialFailed(Message, frozen=True):
    """The functions cannot be used, and why."""

    text: str


ToDaemon = Attach | OpenCursor | CloseCursor | Want | Release | AskStatus | AskStop | ChangeOptions | Configure
ToConsumer = (
    Attached
    | SlotOpened
    | SlotClosed
    | Mail
    | Ended
    | Stalled
    | Failed
    | Fatal
    | StatusReport
    | OptionsChanged
    | Stopping
)
ToReader = OpenDataset | Boot | MapSlot | UnmapSlots | Fills | FillOne | Compact | Retire | MemoryGranted | MemoryDenied
FromReader = ReaderReady | AllDone | NeedMemory | Outgrown | BootFailed
FromZygote = Spawned | Exited
FromTrial = TrialDone | TrialFailed


class Introduction(msgspec.Struct, frozen=True):
    """What every version's first line begins with, whatever follows: its tag, then the protocol, then the version."""

    what: str
    protocol: int
    version: str | None


def read_introduction(data: bytes | memoryview) -> Introduction | None:
    """Return how a peer of any version introduces itself, or `None` if this is no first line of a consumer."""
    try:
        words = msgspec.msgpack.decode(data)
    except DecodeError:
        return None
    match words:
        case ["Attach" | "AskStatus" | "AskStop" as what, int(protocol), *more]:
            return Introduction(what, protocol, more[0] if more and isinstance(more[0], str) else None)
        case ["Attached", str(version), *_]:
            return Introduction("Attached", 0, version)
    return None


_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
decode_to_daemon = msgspec.msgpack.Decoder(ToDaemon).decode
decode_to_consumer = msgspec.msgpack.Decoder(ToConsumer).decode
decode_to_reader = msgspec.msgpack.Decoder(ToReader).decode
decode_from_reader = msgspec.msgpack.Decoder(FromReader).decode
decode_to_zygote = msgspec.msgpack.Decoder(Spawn).decode
decode_from_zygote = msgspec.msgpack.Decoder(FromZygote).decode
decode_from_trial = msgspec.msgpack.Decoder(FromTrial).decode
# Text that is no UTF-8 is an error of its own.
DecodeError = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
