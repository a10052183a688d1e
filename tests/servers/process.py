"""A server in a process of its own, which ends with the one that started it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0


class ServerFailed(Exception):
    """A server did not start, or did not end."""


def free_port() -> int:
    """Return a port that nobody listens at now, for servers that cannot choose one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """A process that serves at `port` of the loopback interface; it ends when its standard input does.

    Args:
        command: what to run.
        port: where it will listen; if not given, it prints the number as its first line.
        is_told: whether the end of its standard input ends it; else a signal does.
    """

    def __init__(self, command: Sequence[str], port: int = 0, *, is_told: bool = True) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        environment.pop("PREFETCHD_TEST_MARK", None)  # it may outlive the test that asked first
        self._is_told = is_told
        self.process = subprocess.Popen(
            [*command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if not port else subprocess.DEVNULL,
            env=environment,
            cwd=ROOT,
        )
        self.port = port
        try:
            if self.process.stdout is not None:
                line = self.process.stdout.readline()
                if not line.strip().isdigit():
                    raise ServerFailed(f"cannot start {command[0]}: it printed {line!r} in place of its port")
                self.port = int(line)
            else:
                self._wait_listening()
        except BaseException:
            self.close()
            raise

    def _wait_listening(self) -> None:
        end_s = time.monotonic() + DEADLINE_S
        while self.process.poll() is None and time.monotonic() < end_s:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
                return
            time.sleep(0.05)
        raise ServerFailed(f"cannot start {self.process.args!r}: it does not listen at {self.port}")

    def close(self) -> None:
        """End it; may be called twice."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        if not self._is_told and self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise ServerFailed(f"{self.process.args!r} had to be killed") from None
        finally:
            if self.process.stdout is not None:
                self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
