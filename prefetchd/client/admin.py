"""One question to a running daemon over a connection of its own: `prefetchd.set_options`, and the commands.

`status`, `top`, `set` and `stop` call `ask_daemon`. A daemon that ends meanwhile, or does not answer for `ANSWER_S`
seconds, is an error in words. A caller that dies leaves nothing behind. A refused change changes nothing.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prefetchd.errors import ConfigError, DaemonNotFound, PrefetchdError
from prefetchd.ipc.run_directory import choose_name

if TYPE_CHECKING:
    from prefetchd.ipc.messages import BadSamples

ANSWER_S = 10.0


def ask_daemon(daemon: str | int, question: Any) -> Any:
    """Send one question to the daemon of this name or pid; return its answer.

    Raises:
        DaemonNotFound: if no such daemon runs.
        PrefetchdError: if it does not answer in time, is of another version, or refuses.
    """
    from prefetchd.client import launch

    if isinstance(daemon, int):
        sock, name = launch.connect_to_pid(daemon), f"pid {daemon}"
    else:
        sock, name = launch.connect(daemon, timeout_s=0), daemon
    with sock:
        return ask_over(sock, name, question)


def bad_samples(daemon: str | int, dataset: str, first: int) -> BadSamples:
    """Return how many samples of a data set are bad, and those from number `first` on that fit in one answer.

    Raises:
        ConfigError: if the daemon has no such data set.
        DaemonNotFound: if no such daemon runs.
    """
    from prefetchd.ipc import messages

    answer: BadSamples = ask_daemon(daemon, messages.AskBad(messages.PROTOCOL, dataset, first))
    return answer


def ask_all(timeout_s: float = 2.0) -> list[tuple[str, int, dict[str, Any] | str]]:
    """Return name, pid and status report of each daemon of this user; in place of a report, why there is none."""
    from prefetchd.client import launch
    from prefetchd.ipc import messages, sockets

    found: list[tuple[str, int, dict[str, Any] | str]] = []
    with contextlib.ExitStack() as opened:
        reached: list[tuple[str, int, socket.socket]] = []
        for name, pid in launch.named_daemons():
            try:
                reached.append((name, pid, opened.enter_context(launch.connect(name, timeout_s=0))))
            except PrefetchdError as error:
                found.append((name, pid, str(error)))
        for pid, sock in sockets.connect_to_private():
            reached.append((launch.PRIVATE_NAME, pid, opened.enter_context(sock)))
        for name, pid, sock in reached:
            try:
                answer = ask_over(sock, name, messages.AskStatus(messages.PROTOCOL), timeout_s)
                found.append((name, pid, answer.report))
            except DaemonNotFound:  # it has ended
                continue
            except PrefetchdError as error:
                found.append((name, pid, str(error)))
    return found


def ask_over(sock: socket.socket, name: str, question: Any, timeout_s: float = ANSWER_S) -> Any:
    """Send one question to the daemon `name` at the other end of `sock`; return its answer. Raises as `ask_daemon`."""
    from prefetchd._version import __version__
    from prefetchd.errors import error_from_name
    from prefetchd.ipc import messages, sockets
    from prefetchd.ipc.process import describe_process

    sock.settimeout(timeout_s)
    try:
        sockets.send(sock, messages.encode(question))
        data, fds = sockets.receive(sock)
        sockets.close_all(fds)
        answer = messages.decode_to_consumer(data)
    except (TimeoutError, BlockingIOError):
        raise PrefetchdError(
            f"cannot reach the daemon {name!r}: it has not answered for {timeout_s:g} s: "
            f"{describe_process(sockets.peer_pid(sock))}"
        ) from None
    except messages.DecodeError:
        raise PrefetchdError(
            f"cannot understand the daemon {name!r}: it is of another version than this prefetchd {__version__} "
            f"(protocol {messages.PROTOCOL}); stop it (kill {sockets.peer_pid(sock)}) and start this one"
        ) from None
    except sockets.ConnectionEnded:
        raise DaemonNotFound(f"cannot reach the daemon {name!r}: it ended just now; see its log") from None
    if isinstance(answer, messages.Fatal):
        raise error_from_name(answer.error, answer.text)
    return answer


def set_options(
    daemon: str | None = None, *, memory_budget: str | int | None = None, num_workers: int | str | None = None
) -> str:
    """Change the memory budget or the number of readers of a running daemon, as `prefetchd set` does.

    Consumers notice nothing, and what they hold stays valid: a smaller ring gives up its free slots at once and the
    others as they come back. Batches are the same.

    Args:
        daemon: the daemon's name; `PREFETCHD_NAME` or `default` if not given.
        memory_budget: `auto`, or bytes such as `512MiB` or `25%`; as it is if not given.
        num_workers: reader processes, or `"auto"`; as they are if not given.

    Returns:
        The plan that is in force from now on, in words for people.

    Raises:
        ConfigError: for a value that is wrong, or if nothing was given.
        BudgetError: if the budget cannot work, with the smallest one that can; then nothing has changed.
        DaemonNotFound: if no such daemon runs.

    Example:
        >>> prefetchd.set_options("default", memory_budget="1GiB", num_workers=4)  # doctest: +SKIP
    """
    options = {"memory_budget": memory_budget, "num_workers": num_workers}
    given = {name: str(value) for name, value in options.items() if value is not None}
    if not given:
        raise ConfigError("cannot set nothing: no option was given; give memory_budget=, num_workers= or both")
    return change_options(choose_name(daemon), given)


def change_options(daemon: str | int, options: Mapping[str, str]) -> str:
    """Change options (values as text) of the daemon of this name or pid; return its new plan, as `set_options` does."""
    from prefetchd.ipc import messages

    answer: messages.OptionsChanged = ask_daemon(daemon, messages.ChangeOptions(messages.PROTOCOL, dict(options)))
    return answer.text
