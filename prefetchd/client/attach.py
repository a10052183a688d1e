"""Attaching: from a socket to everything that a consumer must know before its first loop.

    Attach -> Attached, with the descriptors of the grant queue, the return queue and the class names

The daemon may refuse (`Fatal`), end, or not answer: each is an error that says so. An answer that makes no sense is a
`PrefetchdError`, and nothing of it is kept open.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from prefetchd.client.channel import Channel
from prefetchd.errors import DaemonLost, PrefetchdError, error_from_name
from prefetchd.ipc import messages, sockets
from prefetchd.ipc.descriptors import read_classes
from prefetchd.ipc.process import describe_process
from prefetchd.ring.layout import BatchLayout, layout_from_wire
from prefetchd.ring.queues import GrantReader, ReturnWriter


@dataclass(frozen=True, slots=True)
class Attachment:
    """What a consumer has from the daemon once it is attached.

    Attributes:
        info: the daemon's answer.
        layouts: of the batches, by the number that a grant gives; `layout` is that of the largest.
        grants, returns: the consumer's ends of the two queues, owned.
        classes: the names of the classes by number, where labels are text.
    """

    info: messages.Attached
    layouts: tuple[BatchLayout, ...]
    layout: BatchLayout
    grants: GrantReader
    returns: ReturnWriter
    classes: tuple[str, ...] | None


def attach(channel: Channel, request: messages.Attach, timeout_s: float | None) -> Attachment:
    """Ask the daemon to serve this consumer.

    Args:
        channel: to the daemon.
        request: what the consumer asks for.
        timeout_s: how long to wait for the answer; `None` for as long as the daemon lives.

    Raises:
        PrefetchdError: what the daemon refuses it with.
        ConnectionEnded: if the daemon ended without a word.
        DaemonLost: if the daemon does not answer in time.
    """
    try:
        channel.send(request)
        info, fds = _wait_for_answer(channel, timeout_s)
    except sockets.ConnectionEnded:
        with contextlib.suppress(DaemonLost):
            _wait_for_answer(channel, 0)  # what the daemon sent before it ended may still be in the socket
        raise
    channel.daemon_name = info.name
    try:
        return _open(info, fds)
    finally:
        sockets.close_all(fds)


def _wait_for_answer(channel: Channel, timeout_s: float | None) -> tuple[messages.Attached, list[int]]:
    """Wait for `Attached`, at most `timeout_s`; without one as long as the daemon is not stopped for minutes."""
    wait = channel.begin_wait()
    while not channel.wait(wait.next_look_s(timeout_s)):
        if timeout_s is not None and wait.lasts_s >= timeout_s:
            state = describe_process(channel.daemon_pid)
            raise DaemonLost(f"cannot attach: the daemon has not answered for {timeout_s:g} s: {state}")
        wait.look()
    message, fds = channel.receive(wait=True)
    if isinstance(message, messages.Attached):
        return message, fds
    sockets.close_all(fds)
    if isinstance(message, messages.Fatal):
        raise error_from_name(message.error, message.text)
    raise PrefetchdError(
        f"cannot attach: the daemon sent {type(message).__name__} before its answer; is it a daemon of prefetchd?"
    )


def _open(info: messages.Attached, fds: list[int]) -> Attachment:
    try:
        layout = layout_from_wire(info.layout)
        layouts = tuple(map(layout_from_wire, info.layouts)) or (layout,)
        if any(each.names != layout.names or each.slot_bytes > layout.slot_bytes for each in layouts):
            raise ValueError("its buckets do not fit")
        if not info.batches_per_epoch or "on_error" not in info.config:
            raise ValueError("it has no batches, or no configuration")
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise PrefetchdError(f"cannot attach: the daemon's layout makes no sense ({error})") from None
    opened: list[GrantReader | ReturnWriter] = []
    try:
        opened.append(grants := GrantReader(fds[0]))
        opened.append(returns := ReturnWriter(fds[1]))
        classes = read_classes(fds[2]) if len(fds) > 2 else None
        return Attachment(info, layouts, layout, grants, returns, classes)
    except (ValueError, IndexError, OSError) as error:
        for queue in opened:
            queue.close()
        raise PrefetchdError(f"cannot attach: {error}; is it a daemon of prefetchd?") from None
