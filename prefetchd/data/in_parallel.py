"""A function over many items at once, in threads, for what waits for a network: results come in the items' order.

The daemon uses it at open, for objects only. The threads are daemons: one that waits for a server that never answers
does not keep the process from ending, and they end with the generator.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from typing import TypeVar

N_THREADS = 64
_STACK_BYTES = 256 << 10

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    function: Callable[[Item], Result], items: Iterable[Item], n_threads: int = N_THREADS
) -> Generator[Result, None, None]:
    """Yield `function(item)` of each item, in order; twice as many as there are threads are done ahead.

    Where the process may start no thread, each is done in its turn.

    Raises:
        Exception: what `function` raises for an item, in its turn.
    """
    wanted: queue.SimpleQueue[tuple[Future[Result], Item] | None] = queue.SimpleQueue()
    pending: deque[Future[Result]] = deque()
    threads = 0
    try:
        for item in items:
            future: Future[Result] = Future()
            pending.append(future)
            wanted.put((future, item))
            if threads < min(n_threads, len(pending)):
                try:
                    _start(function, wanted)
                    threads += 1
                except RuntimeError:  # the process may have no more
                    n_threads = threads
            if not threads:
                wanted.put(None)
                _work(function, wanted)
            if len(pending) >= 2 * n_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
        for _ in range(threads):
            wanted.put(None)


def _start(function: Callable[[Item], Result], wanted: queue.SimpleQueue[tuple[Future[Result], Item] | None]) -> None:
    before = threading.stack_size(_STACK_BYTES)
    try:
        threading.Thread(target=_work, args=(function, wanted), daemon=True).start()
    finally:
        threading.stack_size(before)


def _work(function: Callable[[Item], Result], wanted: queue.SimpleQueue[tuple[Future[Result], Item] | None]) -> None:
    while (each := wanted.get()) is not None:
        future, item = each
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(function(item))
        except BaseException as error:
            future.set_exception(error)
