"""The index of samples that no line lists: a row of fixed width for each, in a memfd that all readers share.

    rows: n x (numbers..., label...), 8 bytes each | class names, as JSON | what the records append

The daemon writes it once, at open, with `IndexWriter`; daemon and readers look rows up with `RecordIndex`. A lookup is
one `pread`, so an index of any length costs a reader nothing. The kernel frees it with the last descriptor.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from prefetchd.data.files import read_exactly, write_all
from prefetchd.data.records import Label
from prefetchd.ipc.descriptors import memfd, memfd_bytes, seal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prefetchd.data.labels import Labels, Numbers

_BLOCK_ROWS = 1 << 16


class IndexWriter:
    """Writes the index. `finish`, then `seal`, which hands the descriptor over; or `close`, on an error.

    Args:
        n_numbers: how many numbers of the records' own a row has.
        labels: the labels met so far; read when rows are added.
    """

    def __init__(self, n_numbers: int, labels: Labels) -> None:
        self.samples = 0
        self.fd = memfd("prefetchd-record-index")
        self.n_numbers = n_numbers
        self._labels = labels
        self._as_fractions = False

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)

    def add(self, numbers: Sequence[Sequence[int]] | NDArray[np.int64], labels: Sequence[Numbers]) -> None:
        """Append a row for each sample; `labels` are empty tuples where there are none."""
        import numpy as np

        n_rows = len(numbers)
        if not n_rows:
            return
        if self._labels.any_fraction and not self._as_fractions:
            self._as_fractions = True
            self._change_labels(lambda found: found.astype(np.float64).view(np.int64))
        rows = np.empty((n_rows, self.n_numbers + self._labels.count), np.int64)
        rows[:, : self.n_numbers] = numbers
        if self._labels.count:
            dtype = np.float64 if self._as_fractions else np.int64
            rows[:, self.n_numbers :] = np.array(labels, dtype).reshape(n_rows, -1).view(np.int64)
        write_all(self.fd, rows)
        self.samples += n_rows

    def finish(self, classes: Sequence[str] | None = None) -> dict[str, Any]:
        """Number the classes and return the facts for `RecordIndex`; `append` and `seal` may follow.

        Args:
            classes: names of the classes, where labels are numbers already.
        """
        import numpy as np

        labels = self._labels
        if labels.kind == "class":
            labels.check_complete()
            classes = sorted(labels.names)
            order = np.empty(len(classes), np.int64)
            order[[labels.names[name] for name in classes]] = np.arange(len(classes))
            self._change_labels(lambda found: order[found])
        classes_at = os.fstat(self.fd).st_size
        self.append(b"" if classes is None else json.dumps(classes).encode())
        return {
            "samples": self.samples,
            "numbers": self.n_numbers,
            "labels": labels.count,
            "label_dtype": "float32" if labels.any_fraction else "int64",
            "label_shape": [labels.count] if labels.count > 1 else [],
            "classes_at": classes_at,
            "classes_bytes": os.fstat(self.fd).st_size - classes_at,
        }

    def append(self, content: bytes) -> int:
        """Write `content` behind what is there and return where it starts."""
        start = os.lseek(self.fd, 0, os.SEEK_END)
        write_all(self.fd, content)
        return start

    def seal(self) -> int:
        """Make the index immutable and return its descriptor, the caller's from now on."""
        seal(self.fd)
        return self.fd

    def _change_labels(self, change: Any) -> None:
        """Replace the labels of all rows written so far, in blocks."""
        import numpy as np

        width = self.n_numbers + self._labels.count
        for first in range(0, self.samples, _BLOCK_ROWS):
            n_rows = min(_BLOCK_ROWS, self.samples - first)
            raw = read_exactly(self.fd, first * width * 8, n_rows * width * 8, "the index")
            rows = np.frombuffer(raw, np.int64).reshape(n_rows, width).copy()
            rows[:, self.n_numbers :] = change(rows[:, self.n_numbers :])
            os.lseek(self.fd, first * width * 8, os.SEEK_SET)
            write_all(self.fd, rows)
        os.lseek(self.fd, 0, os.SEEK_END)


class RecordIndex:
    """The index, for look-ups. Owns its descriptor."""

    def __init__(self, facts: dict[str, Any], fd: int, name: str) -> None:
        self.fd = fd
        self.n_samples: int = facts["samples"]
        self.label_dtype: str = facts["label_dtype"]
        self.label_shape: tuple[int, ...] = tuple(facts["label_shape"])
        self._facts = facts
        self._name = name
        self._numbers: int = facts["numbers"]
        self._labels: int = facts["labels"]
        kind = "d" if self.label_dtype == "float32" else "q"
        self._row = struct.Struct(f"={self._numbers}q{self._labels}{kind}" if self._labels else f"={self._numbers}q")

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes, read anew."""
        if not self._facts["classes_bytes"]:
            return None
        return tuple(json.loads(self.at(self._facts["classes_at"], self._facts["classes_bytes"])))

    @property
    def n_bytes(self) -> int:
        """Bytes of memory that the index takes."""
        return memfd_bytes(self.fd)

    def at(self, offset: int, n_bytes: int) -> bytes:
        """Return bytes of the index."""
        return read_exactly(self.fd, offset, n_bytes, self._name)

    def rows(self, sample_ids: Iterable[int]) -> list[tuple[tuple[int, ...], Label]]:
        """Return (numbers, label) of each sample.

        Raises:
            IndexError: for a number that no sample has.
        """
        found = []
        for sample_id in sample_ids:
            if not 0 <= sample_id < self.n_samples:
                raise IndexError(f"sample {sample_id} of {self.n_samples} in {self._name}")
            row = self._row.unpack(self.at(int(sample_id) * self._row.size, self._row.size))
            label: Label = None
            if self._labels:
                label = row[self._numbers :] if self.label_shape else row[self._numbers]
            found.append((row[: self._numbers], label))
        return found

    def table(self) -> NDArray[np.int64]:
        """Return all rows, (samples, numbers and labels), mapped; labels that are fractions are float64 there."""
        import numpy as np

        width = self._numbers + self._labels
        return np.memmap(f"/proc/self/fd/{self.fd}", np.int64, "r", shape=(self.n_samples, width))

    def label_values(self) -> NDArray[np.generic] | None:
        """Return the labels, (samples,) or (samples, k), int64 or float64, mapped; `None` without any."""
        import numpy as np

        if not self._labels:
            return None
        found = self.table()[:, self._numbers :]
        if self.label_dtype == "float32":
            found = np.ascontiguousarray(found).view(np.float64)
        return found if self.label_shape else found[:, 0]

    def close(self) -> None:
        """Close the descriptor; may be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1
