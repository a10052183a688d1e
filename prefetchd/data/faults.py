"""Why a sample could not be had: the exceptions inside readers, and whose fault each is.

Owns the line between a fault of the *content*, which the policy `on_error` may pass over once a fresh reader
has confirmed it, and one of the *environment*, which is tried again and raised under any policy: it never
silently drops a sample. Raised wherever a sample is read, decoded or made; caught by the sources, which report them as
`Fault` messages. Users never see these classes; they see `SampleError`.
"""

from __future__ import annotations

import errno
import os
from enum import Enum


class FaultKind(Enum):
    """Whose fault it is."""

    CONTENT = "content"
    ENVIRONMENT = "environment"


class SampleFault(Exception):
    """A sample could not be had.

    Attributes:
        reason: why, in words that follow "cannot read the sample: ".
        kind: fault of the content or of the environment.
        needs_fresh_reader: the verdict holds only once a fresh reader has come to it too (what a decoder
            says); False for what the file system itself says.
        detail: more lines for the log, such as a traceback; empty for none.
        this_epoch: the verdict holds for this epoch only, as what was tried is random.
    """

    detail = ""
    this_epoch = False

    def __init__(self, reason: str, kind: FaultKind, *, needs_fresh_reader: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.kind = kind
        self.needs_fresh_reader = needs_fresh_reader

    def __str__(self) -> str:
        return self.reason  # as it is by now: whoever passes a fault on may have said more in it


class UnreadableFile(SampleFault):
    """The file system has no such file to give: missing, forbidden, not a regular file, empty (content)."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, FaultKind.CONTENT, needs_fresh_reader=False)


class UndecodableImage(SampleFault):
    """The bytes are no image, an image cut short, or one that the decoder refuses (content)."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, FaultKind.CONTENT, needs_fresh_reader=True)


class TransformFault(SampleFault):
    """The user's function raised an exception for this sample, or returned what does not fit (content).

    It holds for the epoch alone: in another one the function draws other numbers. An exception leaves the reader as it
    was, so no fresh one, which would import the function's module again, is asked. `what` follows "it" in a sentence
    about the option `option`, which names the function `spec`.
    """

    this_epoch = True

    def __init__(self, option: str, spec: str | None, what: str, detail: str = "") -> None:
        super().__init__(f"{option} {spec} {what}", FaultKind.CONTENT, needs_fresh_reader=False)
        self.option, self.spec, self.what = option, spec, what
        self.detail = detail


class WrongResult(TransformFault):
    """The user's function returned something of another type, shape or dtype than can be delivered."""


class EnvironmentFault(SampleFault):
    """The machine failed, not the sample: no memory, an I/O error, no descriptors, a lost mount."""

    def __init__(self, reason: str, *, needs_fresh_reader: bool = False) -> None:
        super().__init__(reason, FaultKind.ENVIRONMENT, needs_fresh_reader=needs_fresh_reader)


# What these say is true of the path, and will be true the next time. Every other number is the environment's.
_CONTENT_ERRNOS = frozenset(
    (
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EACCES,
        errno.EPERM,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENXIO,  # open() of a socket
        errno.ENODEV,
    )
)


def fault_of(error: OSError | MemoryError | ValueError) -> SampleFault:
    """Return the fault that `error`, raised while a sample's bytes were fetched or decoded, stands for.

    A `ValueError` is what Python raises for a path that no file can have (a NUL byte, a surrogate).
    """
    if isinstance(error, MemoryError):
        return EnvironmentFault(str(error) or "out of memory", needs_fresh_reader=True)
    if isinstance(error, ValueError):
        return UnreadableFile("not a possible path")
    number = error.errno or 0
    text = os.strerror(number) if number else str(error)
    name = errno.errorcode.get(number, "")
    reason = f"{text} ({name})" if name else text
    if number in _CONTENT_ERRNOS:
        return UnreadableFile(reason)
    return EnvironmentFault(reason)
