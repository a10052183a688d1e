"""Hearing: takes in what consumers say, and passes each message to whom it concerns. A part of the front desk.

    socket -> decode -> Attach: admission   OpenCursor, CloseCursor: openings   Release: releases
                     -> Want: the cursor, or the group   AskStatus, ChangeOptions, AskStop: answered here

What makes no sense ends the connection of whoever sent it, and touches nobody else; one that speaks another protocol is
told so first. Nobody is listened to for long at a time, so that a consumer that talks without end holds up no other.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from prefetchd.daemon.consumers.attach import Admission, refuse_protocol
from prefetchd.daemon.consumers.consumer import Consumer
from prefetchd.daemon.consumers.groups import Groups
from prefetchd.daemon.consumers.loops import Openings
from prefetchd.daemon.consumers.releases import Releases
from prefetchd.errors import PrefetchdError
from prefetchd.ipc import messages, sockets

log = logging.getLogger("prefetchd")

_MESSAGES_AT_A_TIME = 64


class Hearing:
    """Listens to every consumer; borrows all that it works with.

    Args:
        consumers: who is here.
        admission, openings, releases, groups: who is told what was said.
        status: makes the answer to `prefetchd status`.
        change: changes options for `prefetchd set`; returns what that gave.
        stop: ends the daemon.
        hang_up: ends a consumer's connection.
    """

    def __init__(
        self,
        consumers: Mapping[int, Consumer],
        admission: Admission,
        openings: Openings,
        releases: Releases,
        groups: Groups,
        *,
        status: Callable[[], dict[str, Any]],
        change: Callable[[dict[str, str]], str],
        stop: Callable[[], None],
        hang_up: Callable[[Consumer], None],
    ) -> None:
        self._consumers = consumers
        self._admission = admission
        self._openings = openings
        self._releases = releases
        self._groups = groups
        self._status = status
        self._change = change
        self._stop = stop
        self._hang_up = hang_up
        self._buffer = bytearray(sockets.MAX_MESSAGE_BYTES)

    def hear(self, consumer: Consumer) -> bool:
        """Take in what a consumer has sent; whatever makes no sense ends its connection.

        Returns whether there may be more.
        """
        for _ in range(_MESSAGES_AT_A_TIME):
            try:
                data, fds = sockets.receive(consumer.sock, wait=False, buffer=self._buffer)
            except BlockingIOError:
                return False
            except (sockets.ConnectionEnded, OSError):
                self._hang_up(consumer)
                return False
            sockets.close_all(fds)
            try:
                message = messages.decode_to_daemon(data)
                self._handle(consumer, message)
            except messages.DecodeError:
                introduction = messages.read_introduction(data) if consumer.dataset is None else None
                if introduction is not None and introduction.protocol != messages.PROTOCOL:
                    refuse_protocol(consumer, introduction)
                    self._hang_up(consumer)
                    return False
                log.warning(
                    "consumer %d (pid %d) sent no message of ours; ending its connection",
                    consumer.number,
                    consumer.pid,
                )
                self._hang_up(consumer)
                return False
            if consumer.number not in self._consumers or isinstance(message, messages.AskStatus):
                break  # whoever asks without end is answered in turn with the others
        return True

    def _handle(self, consumer: Consumer, message: messages.ToDaemon) -> None:
        match message:
            case messages.Release():
                self._releases.take_back(consumer, message.leases, message.taken)
            case messages.Want():
                self._want(consumer, message)
            case messages.OpenCursor():
                if not self._openings.begin(consumer, message):
                    self._hang_up(consumer)
            case messages.CloseCursor():
                self._openings.end(consumer, message)
            case messages.Attach():
                if consumer.attached:
                    self._hang_up(consumer)
                else:
                    self._admission.attach(consumer, message)
            case messages.AskStatus():
                if not consumer.blocked:
                    consumer.send(messages.StatusReport(self._report()))
            case messages.ChangeOptions():
                self._change_options(consumer, message)
            case messages.AskStop():
                consumer.send(messages.Stopping(os.getpid()))
                log.info("asked to stop by pid %d", consumer.pid)
                self._stop()
            case messages.Configure():
                consumer.send(messages.Fatal("ConfigError", "cannot configure a daemon that is running"))

    def _want(self, consumer: Consumer, message: messages.Want) -> None:
        consumer.took(message.taken)
        if (group := self._groups.of(consumer)) is not None:
            group.asks(consumer, message)
            consumer.wanted_s = time.monotonic()
        elif consumer.cursor is not None and consumer.cursor.serial == message.serial:
            # A grant may have crossed this on its way: then the loop has what it wants.
            consumer.set_waiting(not consumer.untaken)
            consumer.wanted_s = time.monotonic()
            if consumer.untaken:
                consumer.send_sooner_or_later(messages.GrantReady(message.serial))

    def _report(self) -> dict[str, Any]:
        """The status, its lists cut short until it fits into one message."""
        self._releases.take_back_noted()
        report = self._status()
        while len(messages.encode(messages.StatusReport(report))) > sockets.MAX_MESSAGE_BYTES:
            longest = max(("bad", "consumers", "readers"), key=lambda name: len(messages.encode(report[name])))
            del report[longest][len(report[longest]) // 2 :]
        return report

    def _change_options(self, consumer: Consumer, message: messages.ChangeOptions) -> None:
        try:
            text = self._change(message.options)
        except PrefetchdError as error:
            consumer.send(messages.Fatal(type(error).__name__, str(error)))
            return
        consumer.send(messages.OptionsChanged(text))
