"""A table on its way from a trainer to the daemon that it starts: plain values beside a descriptor.

`client.in_memory` makes it of what is in the trainer's memory; no file is written. The trainer keeps the memfd for as
long as a daemon may have to be started again. The kernel frees the memory with the last process that has it. This
module imports nothing of prefetchd, so that a daemon can take the table in before all else is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SOURCE = ""  # the name of the table of the source, where a daemon serves one data set


def name_of_option(dataset: str, option: str) -> str:
    """Return the name of the table of an option, among the tables by data set; no data set has such a name."""
    return f"{dataset}/{option}"


def passed_options(dataset: str, tables: Mapping[str, PassedTable]) -> dict[str, PassedTable]:
    """Return the tables of a data set's options, by option."""
    return {name.partition("/")[2]: table for name, table in tables.items() if name.startswith(f"{dataset}/")}


@dataclass(frozen=True, slots=True, eq=False)
class PassedTable:
    """Columns in a memfd, with what they are. Owns the descriptor until `Columns.attach` takes it.

    Attributes:
        name: what errors and `status` call the source, such as `<list of 1000 pairs>`.
        kind: `table` for samples that are listed, `arrays` for rows of numbers, `numbers` for an option.
        description: of the columns, for `Columns.attach`.
        fd: the memfd.
    """

    name: str
    kind: str
    description: Mapping[str, Any]
    fd: int

    def to_wire(self) -> dict[str, Any]:
        """Return it as plain values, without the descriptor; `from_wire` is the inverse."""
        return {"name": self.name, "kind": self.kind, "description": dict(self.description)}

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any], fd: int) -> PassedTable:
        """Return the table that `to_wire` described; it owns `fd`.

        Raises:
            KeyError: if a part of it is missing.
        """
        return cls(wire["name"], wire["kind"], wire["description"], fd)

    @property
    def digest(self) -> str:
        """Hexadecimal digits that follow all of its content."""
        return str(self.description["digest"])

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)
