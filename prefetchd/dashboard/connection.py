"""A browser's connection, which is closed if it asks nothing: otherwise silent ones would keep everybody else out."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

PATIENCE_S = 10.0  # for a request, from the connection or from the answer to the request before
_ANSWER_S = 300.0  # for an answer to be made, and to be taken
_LOOK_S = 2.0


class Connection(H11Protocol):
    """One connection; looks now and then whether requests come and answers are taken."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to look."""
        super().connection_made(transport)
        self._last: tuple[RequestResponseCycle | None, bool] = (None, False)
        self._since_s = self.loop.time()
        self._timer = self.loop.call_later(_LOOK_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Look no more."""
        self._timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        now_s = self.loop.time()
        # An answer that is complete for the server may still wait here for a slow browser.
        is_made = self.cycle is None or self.cycle.response_complete
        is_answering = not is_made or self.transport.get_write_buffer_size() > 0
        if (self.cycle, is_answering) != self._last:
            self._last, self._since_s = (self.cycle, is_answering), now_s
        if now_s - self._since_s > (_ANSWER_S if is_answering else PATIENCE_S):
            self.transport.abort()
            return
        self._timer = self.loop.call_later(_LOOK_S, self._look)
