"""The daemon's side of the dry run: what users' functions give for one sample, before memory is planned.

    daemon --OpenDataset + descriptors--> child process prefetchd.reader.dry_run --DryRunDone | DryRunFailed--> daemon

A source calls it when it is opened with a `transform`, a `target_transform` or masks. The process imports and runs user
code, which the daemon never does. If it crashes or exits without an answer, that is a `ConfigError`; if it hangs, it is
killed after `reader_timeout`. If the daemon dies, its socket closes and the process ends.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Any

from prefetchd.config.options import Config
from prefetchd.errors import ConfigError
from prefetchd.ipc import reader_messages, sockets, system
from prefetchd.ipc.exit_status import describe_exit
from prefetchd.ipc.process import child_command, child_environment

# One thread, as in a reader: the memory of the functions' modules is measured.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "OPENCV_LOG_LEVEL": "OFF"}
_MAX_STDERR_BYTES = 1 << 20


def dry_run(config: Config, handle: dict[str, Any], fds: list[int]) -> reader_messages.DryRunDone:
    """Return what the functions give for one sample.

    Args:
        config: names the functions.
        handle: what a reader would attach with.
        fds: the descriptors of `handle`, borrowed.

    Raises:
        ConfigError: if the functions cannot be used.
    """
    ours, theirs = sockets.socket_pair()
    stderr = os.memfd_create("prefetchd-dry-run-stderr", os.MFD_CLOEXEC)
    command = child_command("prefetchd.reader.dry_run", theirs.fileno())
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stderr=stderr,
        pass_fds=[theirs.fileno()],
        env=child_environment(**_ENVIRONMENT),
    )
    theirs.close()
    try:
        answer = _ask(ours, process, config, reader_messages.OpenDataset(0, config.to_wire(), handle, {}), fds)
        output = os.pread(stderr, _MAX_STDERR_BYTES, 0).decode(errors="replace")
    finally:
        ours.close()
        process.kill()
        process.wait()
        os.close(stderr)
    if answer is None:
        last = (output.strip().splitlines() or ["it printed nothing"])[-1]
        raise ConfigError(
            f"cannot use {subject(config)}: the dry run with one sample ended by itself "
            f"({describe_exit(process.returncode)}; {last}); try the function in Python first"
        )
    if isinstance(answer, reader_messages.DryRunFailed):
        raise ConfigError(answer.text)
    if output:
        sys.stderr.write(output)  # what the modules printed when they were imported
        sys.stderr.flush()
    return answer


def _ask(
    sock: socket.socket,
    process: subprocess.Popen[bytes],
    config: Config,
    opened: reader_messages.OpenDataset,
    fds: list[int],
) -> reader_messages.FromDryRun | None:
    """Return the answer; `None` if the process ended without one, after it was waited for."""
    try:
        sockets.send(sock, reader_messages.encode(opened), fds)
        if not system.poller(sock).wait(config.reader_timeout):
            raise ConfigError(
                f"cannot use {subject(config)}: a dry run with one sample has not ended within "
                f"{config.reader_timeout:g} s; see where it waits, or give a larger reader_timeout"
            )
        answer: reader_messages.FromDryRun = reader_messages.decode_from_dry_run(sockets.receive(sock)[0])
        return answer
    except sockets.ConnectionEnded:
        process.wait()
        return None


def subject(config: Config) -> str:
    """Name what the dry run is about: `transform='m:f'`."""
    given = {name: getattr(config, name) for name in ("transform", "target_transform")}
    named = [f"{name}={spec!r}" for name, spec in given.items() if spec is not None]
    return " and ".join(named) or "target='mask'"
