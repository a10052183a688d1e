"""Simulated sockets behave as Linux's own: the same steps, on both, have the same ends."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import pytest

from prefetchd.ipc import sockets
from tests.simulation.kernel import Kernel
from tests.simulation.sockets import Network

Pair = tuple[Any, Any]


@pytest.fixture(params=["real", "simulated"])
def pair(request):
    if request.param == "real":
        ours, theirs = sockets.socket_pair()
        yield ours, theirs
        ours.close()
        theirs.close()
    else:
        kernel = Kernel(1)
        network = Network(kernel)
        ours, theirs = network.pair(kernel.process("us"))
        yield ours, theirs
        ours.close()
        theirs.close()
        network.close()


def outcome(step: Callable[[], object]) -> object:
    try:
        return step()
    except BlockingIOError:
        return "would block"
    except sockets.ConnectionEnded:
        return "ended"


def received(sock) -> object:
    return outcome(lambda: bytes(sockets.receive(sock, wait=False)[0]))


def test_messages_keep_their_order_and_their_ends(pair):
    ours, theirs = pair
    assert received(theirs) == "would block"
    sockets.send(ours, b"one")
    sockets.send(ours, b"two")
    assert received(theirs) == b"one"
    ours.close()
    assert received(theirs) == b"two"
    assert received(theirs) == "ended"
    assert outcome(lambda: sockets.send(theirs, b"late")) == "ended"


def test_full_socket_refuses_until_the_other_end_reads(pair):
    ours, theirs = pair
    sent = 0
    while outcome(lambda: sockets.send(ours, b"x" * 100, wait=False)) is None:
        sent += 1
    assert sent > 100
    assert received(theirs) == b"x" * 100
    for _ in range(sent - 1):
        received(theirs)
    assert outcome(lambda: sockets.send(ours, b"again", wait=False)) is None
    assert received(theirs) == b"again"


def test_close_with_messages_unread_loses_no_message_of_the_other_direction(pair):
    ours, theirs = pair
    sockets.send(theirs, b"last words")
    sockets.send(ours, b"unread")
    theirs.close()
    assert received(ours) == b"last words"
    assert received(ours) == "ended"


def test_shut_down_end_reads_as_ended(pair):
    ours, theirs = pair
    other = ours.dup()
    ours.shutdown(socket.SHUT_RDWR)
    assert received(theirs) == "ended"
    assert received(ours) == "ended"
    other.close()


def test_connection_lives_with_its_last_descriptor(pair):
    ours, theirs = pair
    other = ours.dup()
    ours.close()
    assert received(theirs) == "would block"
    sockets.send(other, b"of the copy")
    assert received(theirs) == b"of the copy"
    other.close()
    assert received(theirs) == "ended"


def test_descriptors_travel_with_messages(pair):
    ours, theirs = pair
    fd = os.memfd_create("travels")
    os.write(fd, b"content")
    sockets.send(ours, b"take", [fd])
    os.close(fd)
    data, fds = sockets.receive(theirs, wait=False)
    assert bytes(data) == b"take"
    assert os.pread(fds[0], 10, 0) == b"content"
    sockets.close_all(fds)


def test_socket_of_a_world_that_has_ended_closes_no_descriptor_of_another():
    kernel = Kernel(1)
    network = Network(kernel)
    ends = network.pair(kernel.process("us"))
    numbers = [end.fileno() for end in ends]
    network.close()
    for end in ends:  # the world has closed the descriptors, and these are the next world's
        end.close()
    for number in numbers:
        os.close(number)
