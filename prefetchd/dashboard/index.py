"""The dashboard's side of the index worker: starts it, asks it, and starts another one where it ends or hangs.

A sample that ended the worker is not tried again. One question at a time: most take milliseconds, a search seconds.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec

from prefetchd.dashboard.frames import read_frame, write_frame
from prefetchd.errors import ConfigError, PrefetchdError
from prefetchd.ipc.exit_status import describe_exit
from prefetchd.ipc.process import child_command, child_environment

if TYPE_CHECKING:
    from prefetchd.client.single import Served

_ANSWER_S = 60.0
_WAIT_S = 30.0
_END_S = 2.0
_MOST_DEADLY = 1000


class Index:
    """Answers where the samples of a data set are. Owns the worker, which ends with `close`, or with this process."""

    def __init__(self, answer_s: float = _ANSWER_S) -> None:
        self._answer_s = answer_s
        self._asking = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._deadly: set[tuple[str, str]] = set()
        self._closed = False

    def ask(self, served: Served, what: str, **arguments: Any) -> Any:
        """Return the worker's answer to `what` (`index_worker.Worker`) about a data set.

        Raises:
            PrefetchdError: if the data set cannot be opened, or the question not be answered.
        """
        info = served.info
        key = f"{info.config_digest} {info.manifest_digest} {served.daemon_pid} {info.dataset}"
        question = key, f"{what} {sorted(arguments.items())}"
        if question in self._deadly:
            raise PrefetchdError("cannot look at the sample: it ends the process that decodes it")
        request = {"what": what, "key": key, "open": _open(served), "arguments": arguments}
        if not self._asking.acquire(timeout=_WAIT_S):
            raise PrefetchdError("cannot look into the data set: another question takes long; try again")
        try:
            answer = self._answer(msgspec.msgpack.encode(request))
        except EOFError as error:
            if what == "thumbnail" and len(self._deadly) < _MOST_DEADLY:
                self._deadly.add(question)
            raise PrefetchdError(f"cannot look into the data set: {error}") from None
        finally:
            self._asking.release()
        if "error" in answer:
            raise PrefetchdError(answer["error"])
        return answer["answer"]

    def _answer(self, request: bytes) -> dict[str, Any]:
        process = self._worker()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                write_frame(process.stdin, request)
            data = read_frame(process.stdout.fileno(), time.monotonic() + self._answer_s)
        except TimeoutError:
            self._end()
            raise EOFError(f"it took longer than {self._answer_s:g} s, and was ended") from None
        if data is None:
            status = process.wait(_END_S)
            self._end()
            raise EOFError(f"its process ended ({describe_exit(status)})")
        answer: dict[str, Any] = msgspec.msgpack.decode(data)
        if answer.pop("ends", False):
            self._end()
        return answer

    def _worker(self) -> subprocess.Popen[bytes]:
        if self._closed:
            raise ConfigError("cannot look into the data set: the dashboard is ending")
        if self._process is not None and self._process.poll() is not None:
            self._end()  # it ended between two questions
        if self._process is None:
            self._process = subprocess.Popen(
                child_command("prefetchd.dashboard.index_worker", os.getpid()),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=child_environment(),
                bufsize=0,
            )
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def close(self) -> None:
        """End the worker."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()  # a question that waits for it then ends
        with self._asking:
            self._end()


def _open(served: Served) -> dict[str, Any]:
    """Return how the worker opens a data set: the daemon's options, working directory and digest of the data."""
    try:
        folder = os.readlink(f"/proc/{served.daemon_pid}/cwd")
    except OSError:
        folder = os.getcwd()
    info = served.info
    return {"options": info.config, "folder": folder, "digest": info.manifest_digest}
