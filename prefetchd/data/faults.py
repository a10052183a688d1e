"""Why a sample cannot be read: the exceptions inside readers, and whether content or environment is at fault.

A fault of the *content* may be passed over (`on_error`), once a fresh reader has confirmed it. A fault of the
*environment* is tried again and raised under any policy: it never drops a sample in silence. Raised where a sample is
read, decoded or made; sources catch them and report them as `Fault` messages. Users see `SampleError`.
"""

from __future__ import annotations

import errno
import os
from enum import Enum


class FaultKind(Enum):
    """What is at fault."""

    CONTENT = "content"
    ENVIRONMENT = "environment"


class SampleFault(Exception):
    """A sample cannot be read.

    Attributes:
        reason: why, in words that follow "cannot read the sample: ".
        kind: fault of the content or of the environment.
        needs_fresh_reader: a fresh reader must confirm it, as for what a decoder says; False for what the file system
            says.
        detail: more lines for the log, such as a traceback; empty for none.
        this_epoch: it holds for this epoch only, as the attempt was random.
    """

    detail = ""
    this_epoch = False

    def __init__(self, reason: str, kind: FaultKind, *, needs_fresh_reader: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.kind = kind
        self.needs_fresh_reader = needs_fresh_reader

    def __str__(self) -> str:
        return self.reason  # handlers on the way may have added to it


class UnreadableFile(SampleFault):
    """The file is missing, forbidden, not a regular file, or empty (content)."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, FaultKind.CONTENT, needs_fresh_reader=False)


class UndecodableImage(SampleFault):
    """The decoder refuses the bytes (content)."""

    def __init__(self, reason: str, *, needs_fresh_reader: bool = True) -> None:
        super().__init__(reason, FaultKind.CONTENT, needs_fresh_reader=needs_fresh_reader)


class RefusedImage(UndecodableImage):
    """The bytes are no image, an image cut short, or beyond the limits, as their header says (content).

    No decoder was asked, so nothing that an earlier image left behind in one can be the cause, and no fresh reader is
    started for a second look.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason, needs_fresh_reader=False)


def refuse_larger(n_bytes: int, most: int) -> None:
    """Raise `RefusedImage` for a file of more bytes than its row has, where images are delivered encoded."""
    if n_bytes > most:
        raise RefusedImage(f"it has {n_bytes} bytes, more than encoded_bytes={most}; give encoded_bytes={n_bytes}")


class RefusedTarget(SampleFault):
    """The sample's boxes or keypoints cannot be used (content)."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, FaultKind.CONTENT, needs_fresh_reader=False)


class TransformFault(SampleFault):
    """The user's function raised an exception for this sample, or returned what does not fit (content).

    It holds for this epoch alone: in another one the function draws other numbers. An exception leaves the reader as it
    was, so no fresh reader confirms it, which would import the function's module again. `what` follows the option and
    the function `spec` that it names.
    """

    this_epoch = True

    def __init__(self, option: str, spec: str | None, what: str, detail: str = "") -> None:
        super().__init__(f"{option} {spec} {what}", FaultKind.CONTENT, needs_fresh_reader=False)
        self.option, self.spec, self.what = option, spec, what
        self.detail = detail


class WrongResult(TransformFault):
    """The user's function returned a type, shape or dtype that cannot be delivered."""


class EnvironmentFault(SampleFault):
    """The machine failed, not the sample: no memory, an I/O error, no descriptors, a lost mount."""

    def __init__(self, reason: str, *, needs_fresh_reader: bool = False) -> None:
        super().__init__(reason, FaultKind.ENVIRONMENT, needs_fresh_reader=needs_fresh_reader)


# These say something of the path that stays true. Every other number is the environment's.
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
    """Return the fault for `error`, which was raised while a sample's bytes were fetched or decoded.

    Python raises a `ValueError` for a path that no file can have (a NUL byte, a surrogate).
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
