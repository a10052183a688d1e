"""The messages between consumers and the daemon.

    Attach -> Attached   OpenCursor -> Opened, SlotOpened ...   Want -> GrantReady, Ended, Stalled, Failed
    Release   CloseCursor   AddConnection (another consumer of the process, by a socket)
    in place of Attach: AskStatus -> StatusReport   AskBad -> BadSamples   AskStop -> Stopping
                        ChangeOptions -> OptionsChanged

Each message is one datagram of a `SOCK_SEQPACKET` socket, so there are no frames that could get out of step.
Descriptors travel beside the bytes (`sockets.send`, `sockets.receive`). Grants are not messages: they lie in shared
memory (`ring.queues`). Each direction has its own decoder, so a consumer cannot send a reader's message.

`PROTOCOL` changes with any of these messages. Some facts never change, so that any two versions can tell each other
that they do not fit: `Attach`, `AskStatus` and `AskStop` begin with the protocol; in `Attach` and `Attached` the
version comes next; `Fatal` keeps its fields.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from prefetchd.errors import PrefetchdError

Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Position = Annotated[int, msgspec.Meta(ge=0, le=2**53)]

# Text that is not UTF-8 raises an error of its own.
DecodeError = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """Base of every message, also of `reader_messages`: a tagged MessagePack array; the tag is the class's name.

    Nothing is pickled. A decoder returns one of the messages that it was made for, every field within its bounds, or
    raises one of `DecodeError`, for any bytes.
    """


encode = msgspec.msgpack.Encoder().encode

PROTOCOL = 8
MAX_RELEASED = 64


# --- consumer to daemon


class Attach(Message, frozen=True):
    """The first message of a consumer: its protocol, the data set that it wants, the options that it expects.

    `dataset` is `None` if the daemon is expected to serve only one. Members of a `group` share each pass. The first
    loop waits until `start_together` loaders have begun theirs, at most `start_timeout_s` seconds. People know the
    consumer by `name`.
    """

    protocol: Count
    version: str
    dataset: str | None
    options: dict[str, Any]
    guaranteed_slots: Annotated[int, msgspec.Meta(ge=1, le=16)]
    group: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None
    start_together: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0
    start_timeout_s: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0
    name: Annotated[str, msgspec.Meta(max_length=200)] = ""


class OpenCursor(Message, frozen=True):
    """Serve from (epoch, batch) as rank `rank` of `world_size`; replaces the connection's earlier cursor.

    The first batch is `batch + rank`: all ranks resume from the same `batch`, also if their number has changed. The
    cursor goes on from epoch to epoch and ends before `stop_epoch` (`None`: never). Epochs begin at batch `rotation`
    and wrap round. With `join` the daemon chooses the epoch (`epoch` or later) and the rotation, so that the loop
    begins where others are; `stop_epoch` moves by as much. Leases after `taken` were granted to the earlier cursor but
    not taken; this message ends them.
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


class AddConnection(Message, frozen=True):
    """Serve one more connection of this process, whose socket comes with the message, as another consumer."""


class CloseCursor(Message, frozen=True):
    """The loop has ended. Leases after `taken` were not taken; this message ends them."""

    serial: Count
    taken: Count


class Want(Message, frozen=True):
    """The loop waits for its next batch; `taken` is the last lease that it took (0 for none)."""

    serial: Count
    taken: Count


class Release(Message, frozen=True):
    """The last views of these leases died. `taken` is the last lease taken, so most loops need no `Want`."""

    leases: Annotated[list[Count], msgspec.Meta(max_length=MAX_RELEASED)]
    taken: Count


class AskStatus(Message, frozen=True):
    """What `prefetchd status` sends instead of `Attach`."""

    protocol: Count


class AskBad(Message, frozen=True):
    """What the dashboard sends instead of `Attach`: the bad samples of a data set, from number `first` of them on."""

    protocol: Count
    dataset: str
    first: Count


class AskStop(Message, frozen=True):
    """What `prefetchd stop` sends instead of `Attach`."""

    protocol: Count


class ChangeOptions(Message, frozen=True):
    """What `prefetchd set` sends instead of `Attach`: options to change, and their values as text."""

    protocol: Count
    options: dict[str, str]


class Configure(Message, frozen=True):
    """What the starter of a private or shared daemon sends first: the whole configuration, by data set.

    `tables` describes sources that are in the starter's memory, by data set; their memfds come with the message, in
    this order.
    """

    datasets: dict[str, dict[str, Any]]
    tables: dict[str, dict[str, Any]] = {}


# --- daemon to consumer


class Attached(Message, frozen=True):
    """The answer to `Attach`: everything a loader must know.

    `layouts` are those of the buckets, by number, of which `layout` is the largest; empty where all batches have one.
    Its descriptors are the grant queue, the return queue and, where labels are text, the class names.
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
    layouts: list[dict[str, Any]] = msgspec.field(default_factory=list)


class SlotOpened(Message, frozen=True):
    """A slot that grants may name from now on. Its descriptor comes with the message."""

    slot: Count
    slot_bytes: Count


class SlotClosed(Message, frozen=True):
    """The daemon gave the slot up. The consumer unmaps it once no view needs it."""

    slot: Count


class Opened(Message, frozen=True):
    """The answer to `OpenCursor`: the epoch that the cursor begins with, and the batch that its epochs begin at."""

    serial: Count
    epoch: Position
    rotation: Position


class GrantReady(Message, frozen=True):
    """The grant queue of a loop that sent `Want` has a grant now."""

    serial: Count


class Ended(Message, frozen=True):
    """The group's pass is over: every batch was delivered, and every member has finished with it."""

    serial: Count


class Stalled(Message, frozen=True):
    """No slot is free for this cursor's next batch; `holders` says who holds which. Empty: it waits for one no more."""

    serial: Count
    holders: str


class Failed(Message, frozen=True):
    """The cursor's next batch cannot be made, or a request cannot be met, and why."""

    serial: Count
    error: str
    text: str


class Fatal(Message, frozen=True):
    """The daemon refuses this consumer or is ending, and why."""

    error: str
    text: str

    @classmethod
    def of(cls, error: PrefetchdError) -> Fatal:
        """Return the message with which a consumer raises `error`."""
        return cls(type(error).__name__, str(error))


class StatusReport(Message, frozen=True):
    """The answer to `AskStatus`."""

    report: dict[str, Any]


class BadSamples(Message, frozen=True):
    """The answer to `AskBad`: how many are bad, how many of them are remembered, and some: (number, where, reason)."""

    n_bad: Count
    n_remembered: Count
    samples: list[tuple[Count, str, str]]


class OptionsChanged(Message, frozen=True):
    """The answer to `ChangeOptions`: the new plan, in words."""

    text: str


class Stopping(Message, frozen=True):
    """The answer to `AskStop`."""

    pid: int


ToDaemon = (
    Attach
    | OpenCursor
    | AddConnection
    | CloseCursor
    | Want
    | Release
    | AskStatus
    | AskBad
    | AskStop
    | ChangeOptions
    | Configure
)
ToConsumer = (
    Attached
    | SlotOpened
    | SlotClosed
    | Opened
    | GrantReady
    | Ended
    | Stalled
    | Failed
    | Fatal
    | StatusReport
    | BadSamples
    | OptionsChanged
    | Stopping
)

decode_to_daemon = msgspec.msgpack.Decoder(ToDaemon).decode
decode_to_consumer = msgspec.msgpack.Decoder(ToConsumer).decode


# --- any two versions


class Introduction(msgspec.Struct, frozen=True):
    """How the first message of any version begins: its tag, then the protocol, then the version."""

    what: str
    protocol: int
    version: str | None


def read_introduction(data: bytes | memoryview) -> Introduction | None:
    """Return the beginning of a first message of any version, or `None` if `data` is not one."""
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
