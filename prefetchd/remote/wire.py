"""What daemon and agent say to each other over TCP: frames, and the messages in them. Pure.

    | magic 4 | checksum of the head 4 | head bytes 4 | body bytes 8 | checksum of the body 8 | head | body |

The head is one message, typed and validated as it arrives (msgpack). The body is bytes that need no validation: rows
of a batch, or a piece of an index. Both have a bound that the receiver sets before it takes memory for them. Nothing is
unpickled or imported. A frame that makes no sense ends the connection.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import msgspec
import xxhash

from prefetchd.ipc.messages import Count, Message
from prefetchd.ipc.messages import DecodeError as DecodeError
from prefetchd.ipc.messages import encode as encode
from prefetchd.ipc.reader_messages import Fault

PROTOCOL = 4
MAGIC = b"pfr\x01"
HEADER = struct.Struct("<4sIIQQ")
MAX_HELLO_BYTES = 4096  # of a head, before the peer has proved that it has the token
MAX_HEAD_BYTES = 8 << 20
PIECE_BYTES = 1 << 20  # of an index, in one frame
MAX_BODY_BYTES = 1 << 40
new_checksum = xxhash.xxh3_64  # of a body; four times as fast as zlib's CRC in this place


class BadFrame(Exception):
    """The peer sent what is no frame of ours, or its bytes changed on the way."""


# --- before the proofs


class Hello(Message, frozen=True):
    """The daemon's first message."""

    protocol: int
    nonce: bytes


class Challenge(Message, frozen=True):
    """The agent's answer; `tls` says whether both speak TLS once they have proved, and greet inside it once more."""

    protocol: int
    nonce: bytes
    tls: bool


class Proof(Message, frozen=True):
    """That the sender has the token; see `prefetchd.ipc.trust`."""

    proof: bytes


# --- after them: agent to daemon


class Marks(Message, frozen=True):
    """What decides the bytes that an agent makes: versions, and checksums of the probe, by name."""

    versions: dict[str, str]
    probe: dict[str, str]
    allows_code: bool


class Joined(Message, frozen=True):
    """The agent has all data sets and readers for them; of each data set its digest and versions, as it has them."""

    n_readers: Count
    digests: list[str]
    versions: list[dict[str, str]]


class Refused(Message, frozen=True):
    """The agent cannot serve this daemon, and why."""

    text: str


class Readers(Message, frozen=True):
    """How many readers the agent has for this daemon from now on, as others come and go."""

    n_readers: Count


class Rows(Message, frozen=True):
    """A task is done; see `reader_messages.Done`. The body has the rows of each field in turn, then the sample ids."""

    task: Count
    faults: list[Fault]
    took_s: float
    read_s: float
    rows_left: Count
    waited_s: float


class Lost(Message, frozen=True):
    """The reader of a task ended: its exit code, or minus the signal; whether it was at work on this one."""

    task: Count
    exit_code: int
    suspect: bool


class Pong(Message, frozen=True):
    """The answer to `Ping`: what the agent takes, and its budget for this daemon, in bytes."""

    number: Count
    memory_bytes: Count
    budget_bytes: Count
    crashes: Count


# --- daemon to agent


class FileState(msgspec.Struct, frozen=True, array_like=True):
    """A file of the data as it is on the daemon's machine.

    The path is bytes, which need not be UTF-8. The time is in whole seconds: many archives keep no more of it.
    """

    path: bytes
    n_bytes: Count
    modified_s: int


class RemoteDataset(msgspec.Struct, frozen=True):
    """A data set, as readers get it, and the bytes of each of its descriptors, which follow as `Piece`s.

    `layouts` are those of a batch, one or several. `chunk_rows` is the most rows of a task. `versions` are the
    daemon's. `files` are some of the data's, at the moment of joining.
    """

    config: dict[str, Any]
    source: dict[str, Any]
    layouts: list[dict[str, Any]]
    order: dict[str, Any]
    fd_bytes: list[Count]
    chunk_rows: Count
    reader_bytes: Count
    versions: dict[str, str]
    files: list[FileState] = msgspec.field(default_factory=list)


class Join(Message, frozen=True):
    """What to serve."""

    datasets: list[RemoteDataset]
    reader_timeout: float


class Piece(Message, frozen=True):
    """The body is the next piece of a descriptor; they come in order, and begin with the first data set's first."""


class Task(msgspec.Struct, frozen=True, array_like=True):
    """Some rows of a batch to make; see `reader_messages.Fill`."""

    task: Count
    dataset: Count
    epoch: Count
    batch: Count
    first_row: Count
    n_rows: Count
    layout: Count


class Tasks(Message, frozen=True):
    """Tasks, to be begun in this order."""

    tasks: list[Task]


class Drop(Message, frozen=True):
    """These tasks are not needed any more: those that are not begun need no answer."""

    tasks: list[Count]


class Ping(Message, frozen=True):
    """To be answered at once."""

    number: Count


FromStranger = Hello | Proof
FromStrangeAgent = Challenge | Proof | Refused
FromDaemon = Join | Piece | Tasks | Drop | Ping
FromAgent = Marks | Joined | Refused | Readers | Rows | Lost | Pong
Frame = FromStranger | FromStrangeAgent | FromDaemon | FromAgent

decode_from_stranger = msgspec.msgpack.Decoder(FromStranger).decode
decode_from_strange_agent = msgspec.msgpack.Decoder(FromStrangeAgent).decode
decode_from_daemon = msgspec.msgpack.Decoder(FromDaemon).decode
decode_from_agent = msgspec.msgpack.Decoder(FromAgent).decode


def checksum(parts: Sequence[memoryview]) -> int:
    """Return a checksum of 64 bits of the length and bytes of each of `parts` that has any."""
    so_far = new_checksum()
    for part in filter(len, parts):
        so_far.update(length_bytes(part))
        so_far.update(part)
    return so_far.intdigest()


def length_bytes(part: memoryview) -> bytes:
    """Return what stands for a part's length in a checksum."""
    return len(part).to_bytes(8, "little")


def frame_head(message: Frame, parts: Sequence[memoryview] = ()) -> bytes:
    """Return header and head of a frame whose body is `parts`, one after the other."""
    head = encode(message)
    n_bytes = sum(map(len, parts))
    return HEADER.pack(MAGIC, zlib.crc32(head), len(head), n_bytes, checksum(parts) if n_bytes else 0) + head


def read_header(data: bytes | bytearray, most_head_bytes: int, most_body_bytes: int) -> tuple[int, int, int, int]:
    """Return the head's checksum and length, the body's length and checksum.

    Raises:
        BadFrame: if it is no header, or announces more than is allowed.
    """
    magic, head_sum, head_bytes, body_bytes, body_sum = HEADER.unpack(data)
    if magic != MAGIC:
        raise BadFrame("it does not speak prefetchd's protocol")
    if not head_bytes:
        raise BadFrame("it sent a frame without a message")
    if head_bytes > most_head_bytes or body_bytes > most_body_bytes:
        raise BadFrame(
            f"it announced a frame of {head_bytes} and {body_bytes} bytes, where {most_head_bytes} and "
            f"{most_body_bytes} are allowed"
        )
    return head_sum, head_bytes, body_bytes, body_sum


def check_head(head: bytes | bytearray | memoryview, head_sum: int) -> None:
    """Raise `BadFrame` if the bytes of a head changed on the way."""
    if zlib.crc32(head) != head_sum:
        raise BadFrame("the bytes of a message changed on the way")
