"""One question to a running daemon and its answer, over a connection of its own.

Called by commands (`status`, `set`, `stop` and their like) and by `live_options`. A daemon that ends meanwhile, or that
says nothing for `ANSWER_S`, is an error in words.
"""

from __future__ import annotations

import socket
from typing import Any

from prefetchd.errors import DaemonNotFound, PrefetchdError

ANSWER_S = 10.0


def ask_daemon(name: str, question: Any) -> Any:
    """Send one question to the daemon `name`; return its answer."""
    from prefetchd import launch

    with launch.connect(name, timeout_s=0) as sock:
        return ask_over(sock, name, question)


def ask_over(sock: socket.socket, name: str, question: Any) -> Any:
    """Send one question to the daemon `name` at the other end of `sock`; return its answer."""
    from prefetchd._version import __version__
    from prefetchd.errors import error_from_name
    from prefetchd.ipc import messages, sockets
    from prefetchd.ipc.process import describe_process

    sock.settimeout(ANSWER_S)
    try:
        sockets.send(sock, messages.encode(question))
        data, fds = sockets.receive(sock)
        sockets.close_all(fds)
        answer = messages.decode_to_consumer(data)
    except (TimeoutError, BlockingIOError):
        raise PrefetchdError(
            f"cannot reach the daemon {name!r}: it has not answered for {ANSWER_S:g} s: "
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
