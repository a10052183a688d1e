"""The callbacks by which the pool reports to the daemon: what became of chunks, and of readers and their memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prefetchd.daemon.readers.batch_job import Chunk, ReaderEnd
from prefetchd.daemon.readers.reader_handle import ReaderHandle
from prefetchd.ipc.reader_messages import Done


@dataclass(frozen=True, slots=True)
class PoolEvents:
    """The callbacks by which the pool reports to the daemon.

    Attributes:
        done: a chunk was finished by a reader: (reader, chunk, its report).
        lost: the reader of a chunk is gone: (reader, chunk, how it ended).
        stuck: the reader of a chunk was killed and does not end: (reader's pid, reader, chunk).
        gone: a reader has exited and writes nowhere any more.
        memory: a reader's request for working memory changed.
        outgrown: a reader has found that it takes more than its share: (reader, bytes).
        withdrawn: an agent writes nothing more for a chunk that another agent has, or had, too: (agent, chunk).
        returned: an agent will not do a chunk, and writes nothing more for it: (agent, chunk, how its reader ended).
    """

    done: Callable[[int, Chunk, Done], None]
    lost: Callable[[int, Chunk, ReaderEnd], None]
    stuck: Callable[[int, int, Chunk], None]
    gone: Callable[[int], None]
    memory: Callable[[], None]
    outgrown: Callable[[ReaderHandle, int], None]
    withdrawn: Callable[[int, Chunk], None] = lambda reader, chunk: None
    returned: Callable[[int, Chunk, ReaderEnd], None] = lambda reader, chunk, end: None
