"""A daemon that cannot start says so to its starter in one line, whatever went wrong."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from prefetchd.config.validate import make_config
from prefetchd.errors import BudgetError, PrefetchdError
from prefetchd.ipc import messages, sockets
from prefetchd.ipc.failures import explained

BROKEN = """
import sys
import prefetchd.daemon.{kind} as entry
import prefetchd.daemon.server as server

class Broken:
    def __init__(self, *arguments, **options):
        raise {error}

server.Daemon = Broken
sys.exit(entry.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ("RuntimeError('boom')", "cannot start the daemon: RuntimeError: boom; its log has the traceback"),
        ("MemoryError()", "cannot start the daemon: it has no memory left"),
        ("ImportError(\"No module named 'cv2'\")", "cannot start the daemon: No module named 'cv2'; reinstall"),
        ("PermissionError(13, 'Permission denied', '/proc')", "cannot start the daemon: Permission denied (/proc)"),
    ],
)
def test_starter_of_a_private_daemon_gets_each_failure_in_words(error, text):
    ours, theirs = sockets.socket_pair()
    pidfd = os.pidfd_open(os.getpid())
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", BROKEN.format(kind="private", error=error), str(theirs.fileno()), str(pidfd)],
                pass_fds=[theirs.fileno(), pidfd],
                stderr=subprocess.PIPE,
            )
        os.close(pidfd)
        sockets.send(ours, messages.encode(messages.Configure({"": make_config(source="x").to_wire()})))
        ours.settimeout(30)
        answer = messages.decode_to_consumer(sockets.receive(ours)[0])
        process.communicate(timeout=30)
    assert isinstance(answer, messages.Fatal)
    assert answer.error == "PrefetchdError"
    assert answer.text.startswith(text)
    assert process.returncode == 1


def test_an_error_that_has_words_is_passed_on_as_it_is():
    with pytest.raises(BudgetError, match=r"^cannot attach$"), explained("go on", everything=True):
        raise BudgetError("cannot attach")
    with pytest.raises(sockets.ConnectionEnded), explained("go on", everything=True):
        raise sockets.ConnectionEnded


def test_lack_of_descriptors_keeps_its_remedy():
    with (
        pytest.raises(PrefetchdError, match=r"cannot go on: Too many open files .*ulimit -n"),
        explained("go on", everything=True),
    ):
        raise OSError(24, os.strerror(24))
