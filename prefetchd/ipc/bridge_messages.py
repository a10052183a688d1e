"""The messages between the daemon and the bridge, its process that speaks with agents on other machines.

    daemon:  Setup, OpenDataset ... Start   MapSlot, UnmapSlots, Give, Repeat, Recall, Place
    bridge:  NodeUp ... NodeDown            Answer, Returned, Seen

A *node* is an agent that has joined, by a number of the daemon's. To the daemon it is one reader with many hands: what
it was given it answers, or gives back. Both ends always have the same version.
"""

from __future__ import annotations

import msgspec

from prefetchd.ipc.messages import Count, Message
from prefetchd.ipc.reader_messages import Done, Fill, MapSlot, OpenDataset, UnmapSlots

# --- daemon to bridge


class Setup(Message, frozen=True):
    """The first message: which agents to ask, and how, and what Ray is to place.

    `token` comes as bytes, so that the bridge reads the file once, as it was at the daemon's start. `allow_code` and
    `python_path` are for agents that Ray places.
    """

    agents: list[str]
    token: bytes
    tls_cert: str | None
    tls_key: str | None
    tls_ca: str | None
    reader_timeout: float
    ray: str | None = None
    remote_workers: Count = 0
    allow_code: bool = False
    python_path: list[str] = msgspec.field(default_factory=list)


class Travels(Message, frozen=True):
    """Follows each `OpenDataset`: the most rows of a task, a reader's own memory, and what decides bytes besides.

    `files` are paths of some of the data's files, to be compared with those of an agent.
    """

    chunk_rows: Count
    reader_bytes: Count
    digest: str
    versions: dict[str, str]
    files: list[bytes]


class Start(Message, frozen=True):
    """All data sets were sent."""


class Give(Message, frozen=True):
    """Have a node do these tasks, in this order."""

    node: Count
    fills: list[Fill]


class Repeat(Message, frozen=True):
    """Have another node do the task `of` too, into the same rows: the first answer counts, the other is dropped.

    If `of` is done or lost already, this one is given back. One of the two writes at a time: if rows of one begin to
    come while the other's are half there, that one is given back.
    """

    node: Count
    fill: Fill
    of: Count


class Recall(Message, frozen=True):
    """Give these tasks back, each with `Returned`, unless it was answered. An answer that comes later is dropped."""

    tasks: list[Count]


class Place(Message, frozen=True):
    """Have Ray place agents on so many nodes, for automatic `remote_workers`; until the first of these on one."""

    n_nodes: Count


# --- bridge to daemon


class NodeUp(Message, frozen=True):
    """An agent has joined, placed by Ray or not, or has another number of readers for this daemon now."""

    node: Count
    name: str
    n_readers: Count
    is_placed: bool


class NodeDown(Message, frozen=True):
    """A node is gone, and why; nothing of it is written any more, and what it was given is lost. 0: it never joined.

    Attributes:
        is_left_out: the agent is asked no more: fewer nodes are wanted, or Ray has placed another instead.
    """

    node: Count
    name: str
    reason: str
    is_left_out: bool = False


class Answer(Message, frozen=True):
    """A node has done tasks; their rows are in their slots."""

    node: Count
    done: list[Done]


class Returned(Message, frozen=True):
    """A task was not done: it was recalled, or the reader that was at it ended. Nothing is written for it any more."""

    node: Count
    task: Count
    exit_code: int = 0
    suspect: bool = False


class Seen(Message, frozen=True):
    """What the bridge has seen of a node: bytes received, the round trip in seconds, the agent's own memory.

    `quiet_s` says for how long the last question has been without an answer; 0 if it has one.
    """

    node: Count
    received_bytes: Count
    round_trip_s: float
    memory_bytes: Count
    budget_bytes: Count
    crashes: Count
    quiet_s: float


ToBridge = Setup | OpenDataset | Travels | Start | Give | Repeat | Recall | Place | MapSlot | UnmapSlots
FromBridge = NodeUp | NodeDown | Answer | Returned | Seen

decode_to_bridge = msgspec.msgpack.Decoder(ToBridge).decode
decode_from_bridge = msgspec.msgpack.Decoder(FromBridge).decode
