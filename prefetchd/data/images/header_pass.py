"""The daemon's side of the header pass: the sizes of all images, before they are put into buckets.

    daemon --OpenRecords + descriptors--> child processes prefetchd.reader.header_pass
    daemon --ReadHeaders--> child --HeadersRead--> ... ; sizes go into a table in shared memory

Sizes that are kept in a file (`sizes`) are taken from there where the image's file is as it was; only the others are
read. A child that dies is replaced, and its stretch is read again. If the daemon dies the children's sockets end, and
they end with them.
"""

from __future__ import annotations

import logging
import selectors
import socket
import subprocess
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.config.units import parse_bytes
from prefetchd.data.images import sizes
from prefetchd.errors import PrefetchdError, error_from_name
from prefetchd.ipc import reader_messages, sockets, system
from prefetchd.ipc.descriptors import memfd_of_length
from prefetchd.ipc.exit_status import describe_exit
from prefetchd.ipc.process import child_command, child_environment
from prefetchd.ring.segment import map_writable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.options import Config

log = logging.getLogger("prefetchd")

_STRETCH = 512  # samples that a child has at a time
_PER_CHILD = 2000  # headers, below which another process does not pay
_CHILD_BYTES = 48 << 20
_MOST_CHILDREN = 16
_MOST_DEATHS = 4
_SAY_EVERY_S = 10.0


@dataclass(slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    sock: socket.socket
    stretch: range = range(0)
    since_s: float = float("inf")  # without a stretch it is late for nothing

    def end(self) -> None:
        """End it, and wait for its end."""
        self.sock.close()
        self.process.kill()
        self.process.wait()


class HeaderPass:
    """One pass over the headers of a data set's images.

    Args:
        config: the options.
        handle, fds: what a reader would attach with, and its descriptors, borrowed.
        n_samples: how many there are.
        part: the number of the field that is the image; -1 where a sample has one.
    """

    def __init__(self, config: Config, handle: dict[str, Any], fds: list[int], n_samples: int, part: int) -> None:
        self._config = config
        self._n_samples = n_samples
        self._path = sizes.path_of(config)
        self._kept = np.zeros(0, sizes.ROW) if self._path is None else sizes.load(self._path)
        self._fds = [*fds, _memfd(n_samples * sizes.ROW.itemsize), _memfd(self._kept.nbytes)]
        self._own_fds = self._fds[-2:]
        self._opened = reader_messages.OpenRecords(config.to_wire(), handle, part, len(self._kept))
        self._children: list[_Child] = []
        self._left: deque[range] = deque()
        self._n_deaths = self._n_done = self._n_read = 0

    def run(self) -> NDArray[Any]:
        """Return the sizes, (samples,) of `sizes.ROW`, and keep those that are new.

        Raises:
            PrefetchdError: if they cannot be read.
        """
        began_s = system.monotonic()
        try:
            if len(self._kept):
                kept = np.frombuffer(map_writable(self._own_fds[1], self._kept.nbytes), sizes.ROW)
                kept[:] = self._kept
            table = np.frombuffer(
                map_writable(self._own_fds[0], max(1, self._n_samples * sizes.ROW.itemsize)), sizes.ROW, self._n_samples
            )
            self._read_all(began_s)
        finally:
            for child in self._children:
                child.end()
            sockets.close_all(self._own_fds)
        where = "" if self._path is None else f", the others are in {self._path}"
        hint = "; give bucket_file to keep them" if self._path is None and self._n_samples >= _PER_CHILD else ""
        log.info(
            "read the headers of %d of %d images in %.1f s%s%s",
            self._n_read, self._n_samples, system.monotonic() - began_s, where, hint,
        )  # fmt: skip
        if self._path is not None and self._n_read:
            try:
                sizes.save(self._path, self._kept, table)
            except OSError as error:
                log.warning("the sizes of images cannot be kept in %s: %s", self._path, error.strerror)
        return table

    def _n_children(self) -> int:
        most = min(system.usable_cores(), _MOST_CHILDREN, -(-self._n_samples // _PER_CHILD))
        if self._config.num_workers:
            most = min(most, self._config.num_workers)
        if self._config.memory_budget != "auto":
            most = min(most, parse_bytes(self._config.memory_budget) // 2 // _CHILD_BYTES)
        return max(1, most)

    def _ready(self, timeout_s: float) -> list[_Child]:
        """Return the children that have answered or ended; the numbers of their descriptors may be large."""
        with system.selector() as selector:
            for child in self._children:
                selector.register(child.sock, selectors.EVENT_READ, child)
            return [key.data for key, _ in selector.select(timeout_s)]

    def _read_all(self, began_s: float) -> None:
        n = self._n_samples
        self._left.extend(range(first, min(n, first + _STRETCH)) for first in range(0, n, _STRETCH))
        for _ in range(self._n_children()):
            self._start()
        said_s = began_s
        while self._n_done < n:
            for child in self._ready(1.0):
                self._take(child)
            now_s = system.monotonic()
            for child in self._children:
                if now_s - child.since_s > self._config.reader_timeout + _STRETCH * 0.1:
                    raise PrefetchdError(
                        f"cannot read the headers of samples {child.stretch.start} to {child.stretch.stop - 1}: it has "
                        f"not ended within {now_s - child.since_s:.0f} s; see where the storage hangs"
                    )
            if now_s - said_s > _SAY_EVERY_S:
                said_s = now_s
                log.info("read the headers of %d of %d images", self._n_done, n)

    def _start(self) -> None:
        """Start a child with its first stretch."""
        ours, theirs = sockets.socket_pair()
        process = subprocess.Popen(
            child_command("prefetchd.reader.header_pass", theirs.fileno()),
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=child_environment(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1"),
        )
        theirs.close()
        child = _Child(process, ours)
        self._children.append(child)
        try:
            sockets.send(ours, reader_messages.encode(self._opened), self._fds)
            self._give(child)
        except sockets.ConnectionEnded:
            pass  # seen where its answer is awaited

    def _give(self, child: _Child) -> None:
        child.stretch, child.since_s = self._left.popleft() if self._left else range(0), system.monotonic()
        if child.stretch:
            task = reader_messages.ReadHeaders(child.stretch.start, child.stretch.stop)
            sockets.send(child.sock, reader_messages.encode(task))
        else:
            child.since_s = float("inf")

    def _take(self, child: _Child) -> None:
        """Take the answer of a child, or find that it has ended."""
        try:
            answer = reader_messages.decode_from_header_pass(sockets.receive(child.sock)[0])
            if isinstance(answer, reader_messages.HeadersFailed):
                raise error_from_name(answer.error, answer.text)
            self._n_done += len(child.stretch)
            self._n_read += answer.n_read
            child.stretch = range(0)
            self._give(child)
        except sockets.ConnectionEnded:
            self._children.remove(child)
            child.sock.close()
            exit_code = child.process.wait()
            self._n_deaths += 1
            if self._n_deaths >= _MOST_DEATHS:
                raise PrefetchdError(
                    f"cannot read the headers of images: {self._n_deaths} processes that did so ended "
                    f"({describe_exit(exit_code)}); see what ends them (the log, memory), then start again"
                ) from None
            if child.stretch:
                self._left.appendleft(child.stretch)
            self._start()


def _memfd(n_bytes: int) -> int:
    return memfd_of_length("prefetchd-sizes", max(1, n_bytes))
