"""How the fork server's child ends: by status, so that the daemon can tell an exception from an exit."""

from __future__ import annotations

import os
import socket

import pytest

from prefetchd.ipc.exit_status import RAISED_STATUS
from prefetchd.reader import fork_server, process


class Ended(BaseException):
    """The child has called `os._exit`."""


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, 0),
        (MemoryError(), RAISED_STATUS),
        (RuntimeError("can't start new thread"), RAISED_STATUS),
        (SystemExit(3), 1),
    ],
)
def test_reader_that_an_exception_ends_says_so(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException | None,
    status: int,
) -> None:
    statuses = []

    def run(sock: socket.socket) -> None:
        sock.close()
        if error is not None:
            raise error

    def leave(status: int) -> None:
        statuses.append(status)
        raise Ended

    monkeypatch.setattr(fork_server, "_prctl", lambda option, value: None)
    monkeypatch.setattr(process, "main", run)
    monkeypatch.setattr(os, "_exit", leave)
    ours, theirs = socket.socketpair()
    with ours, pytest.raises(Ended):
        fork_server._run_reader(theirs.detach(), [], os.getppid())
    assert statuses == [status]
    assert (error is None) == (capsys.readouterr().err == "")
