"""What consumers and the daemon say to each other, and what any two versions understand of each other.

    Attach -> Attached   OpenCursor -> SlotOpened ...   Want -> Mail, Ended, Stalled, Failed   Release   CloseCursor
    in place of Attach: AskStatus -> StatusReport   AskStop -> Stopping   ChangeOptions -> OptionsChanged

Every message is one datagram of a `SOCK_SEQPACKET` socket, so there is no framing to get out of step; file descriptors
travel beside the bytes (`control.send`, `control.receive`). Grants are no messages: they lie in the `mailbox`. Each
direction has a decoder of its own, so that a consumer cannot speak a reader's lines (`reader_messages`).

`PROTOCOL` changes with any of these messages. What never changes, so that any two versions can tell each other that
they do not fit: `Attach`, `AskStatus` and `AskStop` begin with the protocol (`Attach` then with the version),
`Attached` with the version; `Fatal` is as it is.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Position = Annotated[int, msgspec.Meta(ge=0, le=2**53)]

# Text that is no UTF-8 is an error of its own.
DecodeError = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """Base of every message, also of `reader_messages`: a tagged MessagePack array; the tag is the class's name.

    Nothing is pickled. A decoder returns one of the messages that it was made for, every field within its bounds, or
    raises one of `DecodeError`, whatever bytes come.
    """


encode = msgspec.msgpack.Encoder().encode

PROTOCOL = 4
MAX_RELEASED = 64


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
    name: Annotated[str, msgspec.Meta(max_length=200)] = ""


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

decode_to_daemon = msgspec.msgpack.Decoder(ToDaemon).decode
decode_to_consumer = msgspec.msgpack.Decoder(ToConsumer).decode


# --- any two versions


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
