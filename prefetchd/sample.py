"""One sample as its records name it: where its bytes are, and its label. Plain values; pure."""

from __future__ import annotations

from typing import NamedTuple

Label = int | float | tuple[int | float, ...] | str | None


class Sample(NamedTuple):
    """One sample of a data set.

    Attributes:
        path: the file that its bytes are in, absolute; bytes that are not UTF-8 are surrogate escapes, as
            `os.fsdecode` makes.
        label: a number, a tuple of them, the class's number for string labels, the absolute path of a
            mask, or `None` without labels.
        line: its line in the manifest, from 1; 0 where there is none, as for a directory.
        place: where in the file, in numbers that only its own records read; empty if the file is the sample.
    """

    path: str
    label: Label
    line: int = 0
    place: tuple[int, ...] = ()
