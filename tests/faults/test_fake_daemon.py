"""The client against daemons that lie: whatever comes, it is a `PrefetchdError`, and nothing of it is kept open."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import prefetchd
from prefetchd import control, messages
from prefetchd.batch import Batch
from prefetchd.client import Connection
from prefetchd.shard import Shard

LAYOUT = {"batch_size": 2, "x_shape": [4], "x_dtype": "uint8", "y_shape": [], "y_dtype": "int64"}
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


def consume(words: list[tuple[bytes, list[int]]], *, writable: bool = False) -> str:
    """Attach to a daemon that says `words` and ends; take what batches it grants; return how that ended."""
    ours, theirs = control.socket_pair()
    connection = Connection(ours, os.getpid(), writable=writable, hold_timeout_s=0.1)
    for data, fds in words:
        control.send(theirs, data, fds)
    theirs.shutdown(socket.SHUT_WR)
    try:
        connection.attach(None, {}, 2, 1.0)
        connection.open_cursor(1, Shard(2), 0, 0, None)
        while True:
            grant = connection.next_grant(1)
            batch = Batch.of(grant, connection.root(grant), connection.layout)
            assert batch.x.nbytes <= SLOT_BYTES
            batch.x.sum(), batch.y.sum(), batch.sample_ids.sum()
            del batch
    except prefetchd.PrefetchdError as error:
        return str(error)
    finally:
        connection.close(at_once=True)
        theirs.close()


OPENED = messages.encode(messages.SlotOpened(1, SLOT_BYTES))
GRANT = messages.encode(messages.Grants(1, [messages.Granted(1, 1, 0, 0, 2, False)]))


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([(messages.encode(attached(layout={})), [])], "layout makes no sense"),
        ([(messages.encode(attached(layout={**LAYOUT, "batch_size": 2**62})), [])], "layout makes no sense"),
        ([(messages.encode(attached(layout={**LAYOUT, "x_shape": "abc"})), [])], "layout makes no sense"),
        ([(messages.encode(attached(layout={**LAYOUT, "x_dtype": "object"})), [])], "layout makes no sense"),
        ([(messages.encode(attached(batches_per_epoch=0)), [])], "no batches"),
        ([(OPENED, [4096])], "smaller than was agreed"),  # before it is attached
        ([(messages.encode(attached()), []), (OPENED, [])], "smaller than was agreed"),
        ([(messages.encode(attached()), []), (OPENED, [100])], "the segment has 100 bytes"),
        ([(messages.encode(attached()), []), (OPENED, [4096, 4096])], "smaller than was agreed"),
        ([(messages.encode(attached()), []), (GRANT, [])], "slot 1, which it never opened"),
        (
            [
                (messages.encode(attached()), []),
                (OPENED, [4096]),
                (messages.encode(messages.Grants(1, [messages.Granted(1, 1, 0, 0, 3, False)])), []),
            ],
            "3 rows were granted of 2",
        ),
        ([(messages.encode(attached()), []), (b"\xdd\xff\xff\xff\xff", [])], "no message of ours"),
        ([(messages.encode(attached()), [5])], "cannot attach"),  # class names that are no JSON
        ([(messages.encode(attached()), []), (OPENED, [4096]), (GRANT, [])], "ended"),  # all well, to its end
    ],
)
def test_lies(words: list[tuple[bytes, list[int]]], error: str, writable: bool) -> None:
    fds = [(data, [memfd(size) for size in sizes]) for data, sizes in words]
    try:
        assert error in consume(fds, writable=writable)
    finally:
        for _, opened in fds:
            control.close_all(opened)


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
    st.builds(
        messages.Grants, st.just(1), st.lists(st.builds(messages.Granted, *[counts] * 5, st.booleans()), max_size=2)
    ).map(messages.encode),
    st.builds(messages.Stalled, counts, st.text(max_size=9)).map(messages.encode),
    st.builds(messages.Failed, st.just(1), st.text(max_size=9), st.text(max_size=9)).map(messages.encode),
    st.builds(messages.StatusReport, st.dictionaries(st.text(max_size=7), st.integers(0, 9))).map(messages.encode),
    st.recursive(st.none() | st.integers(-9, 9), lambda inner: st.lists(inner, max_size=3)).map(msgspec.msgpack.encode),
)
DESCRIPTORS = st.lists(st.sampled_from(("segment", "short", "pipe", "folder")), max_size=3)


@settings(max_examples=400, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(begins=st.booleans(), words=st.lists(st.tuples(WORDS, DESCRIPTORS), max_size=8), writable=st.booleans())
def test_fuzzed(begins: bool, words: list[tuple[bytes, list[str]]], writable: bool) -> None:
    before = len(os.listdir("/proc/self/fd"))
    pipe = os.pipe()
    have = {"segment": memfd(SLOT_BYTES), "short": memfd(1), "pipe": pipe[0], "folder": os.open("/", os.O_RDONLY)}
    try:
        first = [(messages.encode(attached()), []), (OPENED, [have["segment"]]), (GRANT, [])] if begins else []
        with contextlib.suppress(BlockingIOError):
            consume(first + [(data, [have[kind] for kind in kinds]) for data, kinds in words], writable=writable)
    finally:
        control.close_all([*have.values(), pipe[1]])
    assert len(os.listdir("/proc/self/fd")) == before
