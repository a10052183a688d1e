"""Asks one agent, again and again, until it joins; and once more when it is gone. A thread of the bridge.

    dial --> joined: hand the socket over --> wait until that ended --> rest --> dial

A rest doubles with each failure, up to half a minute, so an agent that starts late, or comes back, is found. The main
thread is woken through a pipe, and alone speaks to the daemon.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from prefetchd.errors import PrefetchdError
from prefetchd.remote import wire
from prefetchd.remote.link import LinkEnded

_FIRST_REST_S = 0.5
_MOST_REST_S = 30.0
_STEADY_S = 30.0  # an agent that was there for as long is asked again at once


@dataclass(frozen=True, slots=True)
class Dialled:
    """What became of a try: a socket, which the receiver owns, and what the agent said; or why it failed.

    Without a dialer it says why Ray has placed no agent.
    """

    dialer: Dialer | None
    sock: socket.socket | None = None
    joined: wire.Joined | None = None
    reason: str = ""


class Dialer:
    """Asks the agent at `address`.

    Args:
        address: its host and port.
        join: reaches it and has it join: address -> (socket, what it said); see `joining.join`.
        results: gets a `Dialled` for each try.
        wake: wakes the one who reads them.
        is_placed: whether Ray has placed the agent.
    """

    def __init__(
        self,
        address: str,
        join: Callable[[str], tuple[socket.socket, wire.Joined]],
        results: queue.SimpleQueue[Dialled],
        wake: Callable[[], None],
        *,
        is_placed: bool = False,
    ) -> None:
        self.address, self.is_placed = address, is_placed
        self.is_left_out = False  # whether the agent was ended because fewer nodes are wanted
        self._join, self._results, self._wake = join, results, wake
        self._ended = threading.Event()
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name=f"dial {address}", daemon=True).start()

    def link_ended(self) -> None:
        """Ask again: the connection that was handed over has ended."""
        self._ended.set()

    @property
    def is_stopped(self) -> bool:
        """Whether the agent is asked no more."""
        return self._stopped.is_set()

    def stop(self, *, is_left_out: bool = False) -> None:
        """Ask no more: the agent is gone, or left out."""
        self.is_left_out = is_left_out
        self._stopped.set()
        self._ended.set()

    def _run(self) -> None:
        rest_s = _FIRST_REST_S
        while not self._stopped.is_set():
            self._ended.clear()
            began_s = time.monotonic()
            try:
                sock, joined = self._join(self.address)
            except (LinkEnded, PrefetchdError) as error:
                self._report(Dialled(self, reason=str(error)))
            except Exception as error:  # nothing may end the thread: the agent would never be asked again
                self._report(Dialled(self, reason=f"asking it failed: {type(error).__name__}: {error}"))
            else:
                self._report(Dialled(self, sock, joined))
                self._ended.wait()
                if time.monotonic() - began_s > _STEADY_S:
                    rest_s = _FIRST_REST_S
            self._stopped.wait(rest_s)
            rest_s = min(_MOST_REST_S, 2 * rest_s)
        self._report(Dialled(self, reason="it is asked no more"))  # in place of what was said of it before

    def _report(self, dialled: Dialled) -> None:
        self._results.put(dialled)
        self._wake()
