"""The consumer's side: loaders, their connection to a daemon, and the batches they hold.

It needs Linux with memfds, pidfds, message sockets and /proc: on another system the import raises one line.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable, Iterable

from prefetchd.errors import PrefetchdError


def check_platform() -> None:
    """Check that this system has what prefetchd needs, which takes some microseconds.

    Raises:
        PrefetchdError: if the system is not Linux, or lacks something.
    """
    if sys.platform != "linux":
        raise PrefetchdError(
            f"cannot use prefetchd here: it needs Linux, and this is {sys.platform}; use it in a Linux virtual machine "
            "or container"
        )
    needs: tuple[tuple[str, str, Callable[[], Iterable[int]]], ...] = (
        ("memfd_create", "3.17", lambda: [os.memfd_create("prefetchd-check", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)]),
        ("pidfd_open", "5.3", lambda: [os.pidfd_open(os.getpid())]),
        ("SOCK_SEQPACKET", "2.6.4", _socket_pair),
    )
    for what, since, make in needs:
        try:
            for fd in make():
                os.close(fd)
        except (AttributeError, OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                return  # it exists, and the next call that opens something reports the shortage
            raise PrefetchdError(
                f"cannot use prefetchd here: {what} does not work ({error}; kernel {os.uname().release}); use Linux "
                f"{since} or newer, a Python that was built for it, and a sandbox that allows it"
            ) from None
    if not os.path.exists("/proc/self/stat"):
        raise PrefetchdError(
            "cannot use prefetchd here: /proc is not mounted, which shows the memory in use; mount it: "
            "mount -t proc proc /proc"
        )


def _socket_pair() -> Iterable[int]:
    return [end.detach() for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)]


check_platform()  # the modules of this package cannot even be imported on other systems
