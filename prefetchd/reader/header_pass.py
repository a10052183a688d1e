"""The process of the header pass: attaches to records as a reader does, and reads sizes of images, for buckets.

    child process prefetchd.reader.header_pass SOCKET_FD

The daemon starts some (`prefetchd.data.images.header_pass`), and gives each a stretch of samples at a time. A size goes
into the shared table, whose rows are the samples'. Of a JPEG in a file of its own the front is read, which has all that
counts; of other images the whole. A fault of the content leaves the size 0. When the daemon dies the socket ends, and
the process with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.config.validate import make_config
from prefetchd.data.cache.keys import is_settled, key_of
from prefetchd.data.faults import FaultKind, SampleFault
from prefetchd.data.files import FileBuffer
from prefetchd.data.images.headers.read import read_header
from prefetchd.data.images.sizes import ROW, look_up
from prefetchd.data.read_ahead import ReadAhead
from prefetchd.data.registry import attach_records
from prefetchd.errors import PrefetchdError
from prefetchd.ipc import reader_messages, sockets
from prefetchd.ipc.parent_death import end_with_parent
from prefetchd.ring.segment import map_writable

if TYPE_CHECKING:
    from prefetchd.data.records import Records, Sample

_FRONT_BYTES = 64 << 10
_JPEG = b"\xff\xd8\xff"
_AT_ONCE = 64


class _Pass:
    """Reads the sizes of one data set's images.

    Args:
        records: list the samples and fetch their bytes.
        part: the number of the field that is the image; -1 where a sample has one.
        table: (samples,) of `ROW`, which is written.
        kept: sizes of earlier passes.
    """

    def __init__(self, records: Any, part: int, table: Any, kept: Any) -> None:
        self._records = records
        self._part = part
        self._table = table
        self._kept = kept
        self._buffer = FileBuffer()
        self._states: dict[str, os.stat_result] = {}  # of the files at hand: a shard has many samples
        fetchers = None if part < 0 else {0: lambda sample, *given: records.fetch(sample, part, *given)}
        self._ahead = ReadAhead(records, fetchers)

    def read(self, first: int, stop: int) -> int:
        """Write the sizes of samples `first` to `stop`; return how many headers were read."""
        n_read = 0
        for start in range(first, stop, _AT_ONCE):
            ids = range(start, min(stop, start + _AT_ONCE))
            rows = self._table[start : ids.stop]
            samples = self._records.samples(ids)
            self._states.clear()
            found = [self._identify(sample) for sample in samples]
            keys = np.frombuffer(b"".join(key for key, _ in found), np.dtype("<u8")).reshape(-1, 2)
            rows["high"], rows["low"] = keys[:, 0], keys[:, 1]
            unknown = np.flatnonzero(~look_up(self._kept, rows)).tolist()
            self._ahead.expect(start + place for place in unknown)
            for place in unknown:
                began_ns = time.time_ns()
                rows[place]["height"], rows[place]["width"] = self._size(start + place, samples[place])
                state = found[place][1]
                if state is None or not is_settled(state, began_ns):
                    rows[place]["high"] = 0
            n_read += len(unknown)
        return n_read

    def _identify(self, sample: Sample) -> tuple[bytes, os.stat_result | None]:
        """Return the key of the image's file as it is now, and that state; zeros where it has none."""
        sample = sample if self._part < 0 else self._image(sample)
        if sample.path and "://" not in sample.path:
            with contextlib.suppress(OSError, ValueError):  # reading it says why
                state = self._states.get(sample.path) or os.stat(sample.path)
                self._states[sample.path] = state
                return key_of(sample.path, sample.place, state), state
        return bytes(16), None

    def _image(self, sample: Sample) -> Sample:
        """Return the image of a sample with fields as a sample of its own; without a path where it is in memory."""
        if isinstance(sample.values[self._part], memoryview):
            return sample._replace(path="")
        part: Sample = self._records.part(sample, self._part)
        return part

    def _size(self, number: int, sample: Sample) -> tuple[int, int]:
        """Return (height, width) of the upright image; zeros if its header cannot be read."""
        image = sample if self._part < 0 else self._image(sample)
        if image.path and not image.place and "://" not in image.path:
            header = read_header(_front(image.path))
            if header is not None and header.format == "jpeg":
                return header.oriented_size
        try:
            data = self._ahead.read(number, sample, self._buffer, lambda n_bytes: None)
        except SampleFault as fault:
            if fault.kind is FaultKind.CONTENT:
                return 0, 0  # it is found again, and reported, where it is served
            where = self._records.where(sample)
            raise PrefetchdError(f"cannot read the header of sample {number} ({where}): {fault.reason}") from None
        header = read_header(data)
        return (0, 0) if header is None else header.oriented_size


def _front(path: str) -> bytes:
    """Return the front of a JPEG, or as much as tells that it is none; nothing if it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError):
        return b""
    try:
        start = os.read(fd, _FRONT_BYTES)
        return start if start.startswith(_JPEG) else b""
    except OSError:
        return b""
    finally:
        os.close(fd)


def _attach(sock: socket.socket) -> _Pass:
    data, fds = sockets.receive(sock)
    opened = reader_messages.decode_to_header_pass(data)
    assert isinstance(opened, reader_messages.OpenRecords)
    *records_fds, table_fd, kept_fd = fds
    records: Records = attach_records(make_config(**opened.config), opened.source, records_fds)
    n = len(records)
    table = np.frombuffer(map_writable(table_fd, max(1, n * ROW.itemsize)), ROW, n)
    kept: Any = np.zeros(0, ROW)
    if opened.n_kept:
        kept = np.frombuffer(map_writable(kept_fd, opened.n_kept * ROW.itemsize), ROW)
    sockets.close_all([table_fd, kept_fd])
    return _Pass(records, opened.part, table, kept)


def main(argv: list[str]) -> None:
    """Read sizes until the daemon closes the socket; see the module's docstring for `argv`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(os.getppid(), signal.SIGKILL)  # also one whose storage hangs, which does not see the socket's end
    sock = socket.socket(fileno=int(argv[0]))
    with contextlib.suppress(sockets.ConnectionEnded):
        try:
            headers = _attach(sock)
            while True:
                task = reader_messages.decode_to_header_pass(sockets.receive(sock)[0])
                assert isinstance(task, reader_messages.ReadHeaders)
                n_read = headers.read(task.first, task.stop)
                sockets.send(sock, reader_messages.encode(reader_messages.HeadersRead(n_read)))
        except PrefetchdError as error:
            failed = reader_messages.HeadersFailed(type(error).__name__, str(error))
            sockets.send(sock, reader_messages.encode(failed))
