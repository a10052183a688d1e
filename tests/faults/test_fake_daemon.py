"""The client against daemons that lie: whatever comes, it is a `PrefetchdError`, and nothing of it is kept open."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import socket
import warnings
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import prefetchd
from prefetchd.client.connection import connect
from prefetchd.ipc import messages, sockets
from prefetchd.ring.queues import GrantWriter, ReturnReader
from prefetchd.sampling.sharding import Shard

LAYOUT = {"batch_size": 2, "fields": [["x", [4], "uint8"], ["y", [], "int64"]]}
SLOT_BYTES = 4096


def attached(**changes: Any) -> messages.Attached:
    fields: dict[str, Any] = {
        "version": "0.1.0", "pid": 1, "name": "default", "dataset": "", "layout": LAYOUT, "n_samples": 4,
        "batches_per_epoch": 2, "drop_last": False, "config": {"on_error": "raise"}, "config_digest": "",
        "manifest_digest": "", "versions": {},
    }  # fmt: skip
    return messages.Attached(**{**fields, **changes})


def memfd(n_bytes: int) -> int:
    fd = os.memfd_create("fake")
    os.ftruncate(fd, n_bytes)
    return fd


@dataclasses.dataclass(frozen=True)
class Grant:
    """What the daemon leaves in the grant queue."""

    slot: int = 1
    rows: int = 2
    told: int = 2
    lease: int = 1
    epoch: int = 0
    batch: int = 0


Words = list[tuple[bytes, list[int]] | Grant]


def consume(words: Words, *, writable: bool = False) -> str:
    """Attach to a daemon that says `words` and ends; take what batches it grants; return how that ended."""
    ours, theirs = sockets.socket_pair()
    writer, grants = GrantWriter.create()
    returned, returns = ReturnReader.create()
    pages = {GRANTS: grants, RETURNS: returns}
    writer.open(1)
    for word in words:
        if isinstance(word, Grant):
            writer.write(word.lease, word.slot, word.epoch, word.batch, word.rows, repeated=False, n_sent=word.told)
        else:
            data, fds = word
            sockets.send(theirs, data, [pages.get(fd, fd) for fd in fds])
    theirs.shutdown(socket.SHUT_WR)
    connection = None
    try:
        request = messages.Attach(messages.PROTOCOL, "0", None, {}, 2)
        connection = connect(ours, os.getpid(), request, 1.0, writable=writable, hold_timeout_s=0.1)
        connection.open_cursor(1, Shard(2), 0, 0, None)
        while True:
            batch = connection.next_batch(1, False)
            assert batch.x.nbytes <= SLOT_BYTES
            batch.x.sum(), batch.y.sum(), batch.sample_ids.sum()
            del batch
    except prefetchd.PrefetchdError as error:
        return str(error)
    except sockets.ConnectionEnded:
        assert connection is None, "only attaching lets it out: the session knows how the daemon was started"
        return "it ended before it answered"
    finally:
        if connection is not None:
            connection.close(at_once=True)
        theirs.close()
        writer.close()
        returned.close()
        sockets.close_all([grants, returns])


GRANTS, RETURNS = -1, -2  # stand for the descriptors of the two pages
ATTACHED = messages.encode(attached()), [GRANTS, RETURNS]
OPENED = messages.encode(messages.SlotOpened(1, SLOT_BYTES))


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([(messages.encode(attached(layout={})), [GRANTS, RETURNS])], "layout makes no sense"),
        (
            [(messages.encode(attached(layout={**LAYOUT, "batch_size": 2**62})), [GRANTS, RETURNS])],
            "layout makes no sense",
        ),
        (
            [(messages.encode(attached(layout={**LAYOUT, "fields": [["x", "abc", "uint8"]]})), [GRANTS, RETURNS])],
            "layout makes no sense",
        ),
        (
            [(messages.encode(attached(layout={**LAYOUT, "fields": [["x", [4], "object"]]})), [GRANTS, RETURNS])],
            "layout makes no sense",
        ),
        ([(messages.encode(attached(batches_per_epoch=0)), [GRANTS, RETURNS])], "no batches"),
        ([(OPENED, [4096])], "SlotOpened before its answer"),
        ([ATTACHED, (OPENED, [])], "smaller than was agreed"),
        ([ATTACHED, (OPENED, [100])], "the segment has 100 bytes"),
        ([ATTACHED, (OPENED, [4096, 4096])], "smaller than was agreed"),
        ([ATTACHED, Grant(told=1)], "slot 1, which it never opened"),
        ([ATTACHED, (OPENED, [4096]), Grant(slot=2)], "slot 2, which it never opened"),
        ([ATTACHED, (OPENED, [4096]), Grant(rows=3)], "3 rows were granted of 2"),
        ([ATTACHED, (OPENED, [4096]), Grant(rows=2**63)], f"{2**63} rows were granted of 2"),
        ([ATTACHED, (b"\xdd\xff\xff\xff\xff", []), Grant()], "no message of ours"),
        ([(messages.encode(attached()), [])], "cannot attach"),  # no grant queue
        ([(messages.encode(attached()), [5, RETURNS])], "cannot attach"),  # one that is too small
        ([(messages.encode(attached()), [GRANTS])], "cannot attach"),  # no page for what it returns
        ([(messages.encode(attached()), [GRANTS, 5])], "cannot attach"),  # one that is too small
        ([(messages.encode(attached()), [GRANTS, GRANTS])], "cannot attach"),  # one that it cannot write to
        ([(messages.encode(attached()), [GRANTS, RETURNS, 5])], "cannot attach"),  # class names that are no JSON
        ([ATTACHED, (OPENED, [4096]), Grant()], "ended"),  # all well, to its end
    ],
)
def test_lies(words: Words, error: str, writable: bool) -> None:
    opened: list[int] = []

    def open_all(sizes: list[int]) -> list[int]:
        fds = [size if size < 0 else memfd(size) for size in sizes]
        opened.extend(fd for fd in fds if fd >= 0)
        return fds

    try:
        said = [word if isinstance(word, Grant) else (word[0], open_all(word[1])) for word in words]
        assert error in consume(said, writable=writable)
    finally:
        sockets.close_all(opened)


counts = st.integers(0, 2**62) | st.integers(0, 3)
WORDS = st.one_of(
    st.binary(min_size=1, max_size=100),
    st.just(messages.encode(attached())),
    st.builds(
        lambda layout, n: messages.encode(attached(layout={**LAYOUT, **layout}, batches_per_epoch=n)),
        st.dictionaries(
            st.sampled_from(tuple(LAYOUT)),
            st.integers(-(2**63), 2**63) | st.text(max_size=5) | st.lists(st.integers(-5, 2**62), max_size=4),
        ),
        counts,
    ),
    st.builds(messages.SlotOpened, counts, counts).map(messages.encode),
    st.builds(messages.SlotClosed, counts).map(messages.encode),
    st.builds(messages.Opened, counts, counts, counts).map(messages.encode),
    st.builds(messages.GrantReady, counts).map(messages.encode),
    st.builds(messages.Stalled, counts, st.text(max_size=9)).map(messages.encode),
    st.builds(messages.Failed, st.just(1), st.text(max_size=9), st.text(max_size=9)).map(messages.encode),
    st.builds(messages.StatusReport, st.dictionaries(st.text(max_size=7), st.integers(0, 9))).map(messages.encode),
    st.recursive(st.none() | st.integers(-9, 9), lambda inner: st.lists(inner, max_size=3)).map(msgspec.msgpack.encode),
)
DESCRIPTORS = st.lists(st.sampled_from(("grants", "returns", "segment", "short", "pipe", "folder")), max_size=3)


@settings(max_examples=400, suppress_health_check=list(HealthCheck))
@given(
    begins=st.booleans(),
    words=st.lists(st.tuples(WORDS, DESCRIPTORS) | st.builds(Grant, *[counts] * 6), max_size=8),
    writable=st.booleans(),
)
def test_fuzzed(begins: bool, words: list[tuple[bytes, list[str]] | Grant], writable: bool) -> None:
    before = len(os.listdir("/proc/self/fd"))
    pipe = os.pipe()
    have = {
        "grants": GRANTS,
        "returns": RETURNS,
        "segment": memfd(SLOT_BYTES),
        "short": memfd(1),
        "pipe": pipe[0],
        "folder": os.open("/", os.O_RDONLY),
    }
    try:
        first: Words = [ATTACHED, (OPENED, [have["segment"]]), Grant()] if begins else []
        said = [word if isinstance(word, Grant) else (word[0], [have[kind] for kind in word[1]]) for word in words]
        with contextlib.suppress(BlockingIOError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it may well be told that it waits for a slot
            consume(first + said, writable=writable)
    finally:
        sockets.close_all([fd for fd in (*have.values(), pipe[1]) if fd >= 0])
    if len(os.listdir("/proc/self/fd")) > before:
        gc.collect()  # an error may hold what it met
    assert len(os.listdir("/proc/self/fd")) <= before
