"""The process of the dry run: attaches to the source as a reader does, runs one good sample, and reports the result.

    child process prefetchd.reader.dry_run SOCKET_FD

The daemon starts it (`prefetchd.data.images.dry_run`). It tries a few samples over the whole data set until one is
good: a bad file, or a function that raises for one sample, is no reason to refuse the others. A result of the wrong
shape or dtype is. When the daemon dies its socket ends, and a thread here ends the process. An alarm ends a function
that never lets other threads run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

import psutil

from prefetchd.config.options import Config
from prefetchd.config.validate import make_config
from prefetchd.data.faults import SampleFault, TransformFault, WrongResult
from prefetchd.data.images.decode import detach_native_stderr
from prefetchd.data.images.dry_run import subject
from prefetchd.data.images.source import ImageSource
from prefetchd.data.images.user_functions import code_digest
from prefetchd.data.registry import attach_source
from prefetchd.data.source import ReserveMemory
from prefetchd.errors import PrefetchdError
from prefetchd.ipc import reader_messages, sockets
from prefetchd.ipc.process import memory_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TRIED_SAMPLES = 8
_ALARM_AFTER_S = 10  # behind the daemon's own time-out
_OWN_BYTES = 4 << 20  # what decoding the first samples takes in any process: part of every reader's share
_MARGIN = 1.2


def run(opened: reader_messages.OpenDataset, fds: list[int]) -> reader_messages.DryRunDone:
    """Try the functions that `opened` names.

    Raises:
        PrefetchdError: if they cannot be used, or nothing can be tried.
    """
    config = make_config(**opened.config)
    import prefetchd.data.images.pipeline  # noqa: F401 - loaded here, so that it is not counted as the functions'

    before_bytes = _private_bytes()
    source = attach_source(config, opened.source, fds)
    assert isinstance(source, ImageSource)  # only images have functions
    decoding = [0]
    y = _first_good(config, source, decoding.append)
    kept_bytes = _private_bytes() - before_bytes - _OWN_BYTES
    # What they take for a moment counts too: at the peak, less what decoding may have taken, which is reserved apart.
    peak_bytes = _peak_bytes() - before_bytes - max(_OWN_BYTES, *decoding)
    grown_bytes = max(0, kept_bytes, peak_bytes)
    specs = {"transform": config.transform, "target_transform": config.target_transform}
    code = {f"{option}_code": code_digest(spec) for option, spec in specs.items() if spec is not None}
    return reader_messages.DryRunDone(list(y.shape), y.dtype.name, code, int(grown_bytes * _MARGIN))


def _first_good(config: Config, source: ImageSource, reserve: ReserveMemory) -> NDArray[Any]:
    """Return y of the first good sample."""
    count = min(_TRIED_SAMPLES, source.facts.n_samples)
    transform_fault: TransformFault | None = None
    other = ""
    for number in range(count):
        sample_id = number * source.facts.n_samples // count
        try:
            return source.try_out(sample_id, reserve)
        except WrongResult as fault:
            raise _unusable(fault, "; mend the function") from None
        except TransformFault as fault:
            transform_fault = transform_fault or fault
        except (SampleFault, MemoryError) as fault:
            other = other or f"sample {sample_id} ({source.where(sample_id)}): {fault}"
    if transform_fault is not None:
        raise _unusable(transform_fault, f", and raised on every sample tried ({count}); mend the function")
    samples = f"none of the {count} samples tried can" if count > 1 else "the only sample cannot"
    raise PrefetchdError(f"cannot try {subject(config)}: {samples} be read ({other}); check paths and root")


def _unusable(fault: TransformFault, more: str) -> PrefetchdError:
    return PrefetchdError(f"cannot use {fault.option}={fault.spec!r}: it {fault.what}{more}")


def _private_bytes() -> int:
    """Return the process's own memory: anonymous resident pages."""
    return memory_bytes("self", "status", "RssAnon")


def _peak_bytes() -> int:
    """Return the most of them that there ever were; pages of files, once read, stay."""
    return memory_bytes("self", "status", "VmHWM") - memory_bytes("self", "status", "RssFile", "RssShmem")


def _end_with(sock: socket.socket) -> None:
    """End the process when the daemon is gone; runs in a thread."""
    with contextlib.suppress(OSError, sockets.ConnectionEnded):
        sockets.receive(sock)
    os._exit(1)


def main(argv: list[str]) -> None:
    """Do the dry run; see the module's docstring for `argv`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C in the terminal: end, without a traceback
    sys.stderr = os.fdopen(detach_native_stderr(), "w", buffering=1)
    sock = socket.socket(fileno=int(argv[0]))
    data, fds = sockets.receive(sock)
    opened = reader_messages.decode_to_reader(data)
    assert isinstance(opened, reader_messages.OpenDataset)
    signal.alarm(int(opened.config["reader_timeout"]) + _ALARM_AFTER_S)
    threading.Thread(target=_end_with, args=(sock,), daemon=True).start()
    answer: reader_messages.FromDryRun
    try:
        answer = run(opened, fds)
    except PrefetchdError as error:
        answer = reader_messages.DryRunFailed(str(error))
    with contextlib.suppress(sockets.ConnectionEnded):
        sockets.send(sock, reader_messages.encode(answer))
    sys.stdout.flush()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(0)  # although the functions may have started threads
