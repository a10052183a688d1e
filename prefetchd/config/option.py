"""`option`: a field of a dataclass that is an option, with what the command line and the checks need of it. Pure."""

from __future__ import annotations

import dataclasses
from typing import Any


def option(
    default: Any,
    help: str,
    *,
    metavar: str | None = None,
    content: bool = True,
    later: bool = False,
    limits: tuple[float, float] | None = None,
    flag: str | None = None,
) -> Any:
    """Return a field that is an option.

    Args:
        default: the value where the option is not given.
        help: what the option does, in a line or two, for `--help` and for readers of this file.
        metavar: the placeholder of the value in `--help`; choices and switches have none.
        content: whether the option decides the bytes of a batch.
        later: whether it came after the first saved states. Then the digest leaves out its default, and those states
            still load. Every new option is one.
        limits: the least and the greatest number allowed, or `None`.
        flag: the name on the command line of an option that is given several times, once for each of its values.
    """
    metadata = {
        "help": help, "metavar": metavar, "content": content, "later": later, "limits": limits, "flag": flag
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)
