"""The samples of a list file or of a directory by random access: number -> (path, label), for lists of any length.

The daemon calls `Manifest.open`. It finds out how the list is written (`sniff`), checks every line once, and writes a
sparse index of lines into a memfd (`scan`). Readers call `attach` with `handle()` and the two descriptors: no second
pass, no copy. A lookup reads the few lines around the sample and parses one (`line`).

A list that changes while it is in use is a `ManifestError` and never other data. When the daemon or a reader dies, the
kernel frees the memfds with the last descriptor.
"""

from __future__ import annotations

import dataclasses
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from prefetchd.config.options import Config
from prefetchd.data.files import check_unchanged, read_exactly, read_file
from prefetchd.data.manifest.dialect import LINES_PER_ENTRY, BadLine, Dialect, MalformedLine, is_sample, sample_lines
from prefetchd.data.manifest.line import check_line, parse_line, split_classes
from prefetchd.data.records import Label, Sample, shown_path
from prefetchd.errors import ManifestError
from prefetchd.ipc.descriptors import memfd_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prefetchd.data.files import FileBuffer
    from prefetchd.data.manifest.values import Part
    from prefetchd.data.source import ReserveMemory

_CACHED_BYTES = 1 << 20
_ENTRY = struct.Struct("=4q")


class Manifest:
    """The samples from 0 to `len() - 1`, each with its path and label. Owns its descriptors; `close()` ends it.

    Attributes:
        label_shape: of one label: `()`, or `(k,)` for vectors.
        label_dtype: `int64`, or `float32` if any label has a fraction or an exponent.
        classes: the names of the classes by number, for string labels and directories; else `None`.
        digest: 16 hexadecimal digits that follow the content and what is made of it, not where it lies.
        name: how errors name it.
    """

    label_shape: tuple[int, ...]
    label_dtype: str
    classes: tuple[str, ...] | None
    digest: str
    name: str
    _is_ours: Callable[[bytes], bool]

    def __init__(self, facts: dict[str, Any], index_fd: int, fd: int) -> None:
        """Take over the descriptors; `facts` are those of `handle()`. Use `open` or `attach`."""
        self._facts = facts
        self._index_fd = index_fd
        self._fd = fd
        self._samples: int = facts["samples"]
        self._is_folder: bool = facts["identity"] is None
        self._path: bytes = facts["path"]
        self._root = os.fsdecode(facts["root"])
        dialect = facts["dialect"]
        checked = Dialect(**{**dialect, "y": tuple(dialect["y"]), "keys": tuple(dialect["keys"])})
        # All lines were checked at open: the kind of their labels is not found out again, unless lines were left out.
        self._dialect = dataclasses.replace(checked, exact=False)
        is_line = partial(is_sample, hash_rows=checked.hash_rows)
        self._is_ours = partial(_fits, checked) if facts["leaves_out_lines"] else is_line
        self._any_fraction: bool = facts["label_dtype"] == "float32"
        self._cached_entry = -1
        self._cached_lines: list[bytes] = []
        self._cached_numbers: Sequence[int] = ()
        self.label_dtype = facts["label_dtype"]
        self.label_shape = tuple(facts["label_shape"])
        self.digest = facts["digest"]
        self.name = facts["name"]
        self.classes = None
        if facts["classes_bytes"]:
            text = read_exactly(index_fd, facts["classes_at"], facts["classes_bytes"], self.name)
            self.classes = tuple(json.loads(text))
        self._class_numbers: dict[bytes, int] = {}
        if self._dialect.label_kind in ("class", "classes") and self.classes is not None:
            self._class_numbers = {_encode(label): number for number, label in enumerate(self.classes)}

    @classmethod
    def open(cls, config: Config, malformed: list[MalformedLine] | None = None) -> Manifest:
        """Read and check the whole manifest that `config.source` names, and index it.

        Args:
            config: the options.
            malformed: collects malformed lines, which are left out then; without it they are refused.

        Raises:
            ManifestError: if it cannot be read, is empty, or has a bad line.
        """
        from prefetchd.data.manifest.open import open_manifest

        return cls(*open_manifest(config, malformed))

    @classmethod
    def attach(cls, handle: dict[str, Any], fds: list[int]) -> Manifest:
        """Return the manifest that `handle()` described, in another process; it owns `fds` from here on."""
        index_fd, fd = fds
        return cls(handle, index_fd, fd)

    def handle(self) -> tuple[dict[str, Any], list[int]]:
        """Return what `attach` needs: plain values (numbers, text, bytes, lists, dicts), and two descriptors.

        The descriptors stay this object's; `attach` needs copies of them (sent over a socket, inherited or from
        `os.dup`).
        """
        return self._facts, [self._index_fd, self._fd]

    def close(self) -> None:
        """Close the descriptors; may be called twice."""
        for fd in (self._index_fd, self._fd):
            if fd >= 0:
                os.close(fd)
        self._index_fd = self._fd = -1
        self._cached_entry = -1

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Manifest {self.name}: {self._samples} samples, {self.label_dtype} labels {self.label_shape}>"

    def __len__(self) -> int:
        return self._samples

    def sample(self, sample_id: int) -> Sample:
        """Return the sample `sample_id`; raises as `samples` does."""
        return self.samples((sample_id,))[0]

    def samples(self, sample_ids: Iterable[int]) -> list[Sample]:
        """Return the samples numbered `sample_ids`, in that order.

        Raises:
            ManifestError: if the file changed on disk since it was opened.
            IndexError: for a number outside of 0 to `len() - 1`.
        """
        found = [self._line(int(sample_id)) for sample_id in sample_ids]
        self.check_unchanged()
        return [self._parse(number, raw) for number, raw in found]

    def check_unchanged(self) -> None:
        """Raise `ManifestError` if the file is not the one that was opened, or was written to since."""
        if not self._is_folder:
            check_unchanged(self._path, self._facts["identity"], self.name)

    @property
    def shared_bytes(self) -> int:
        """Bytes of the memfds: the index, and the listing of a directory."""
        return memfd_bytes(self._index_fd) + (memfd_bytes(self._fd) if self._is_folder else 0)

    @property
    def is_far(self) -> bool:
        """No: they are files."""
        return False

    @property
    def reads_apart(self) -> bool:
        """True: each sample is a file of its own."""
        return True

    @property
    def reader_bytes(self) -> int:
        """0: readers share the index."""
        return 0

    def read(self, sample: Sample, buffer: FileBuffer, reserve: ReserveMemory) -> memoryview:
        """Return the bytes of the sample's file; see `Records.read`."""
        return read_file(sample.path, buffer, reserve=reserve)

    def where(self, sample: Sample) -> str:
        """Return list, line and path of a sample; the path alone in a directory."""
        path = shown_path(sample.path)
        return f"{self.name} line {sample.line}: {path}" if sample.line else path

    @property
    def _is_plain(self) -> bool:
        """Whether `values` can take the lines apart by blocks."""
        from prefetchd.data.manifest.values import is_plain

        return is_plain(self._dialect) and not self._facts["leaves_out_lines"]

    def _parts(self) -> Iterator[Part]:
        from prefetchd.data.manifest.values import parts

        start = _ENTRY.unpack(read_exactly(self._index_fd, 0, _ENTRY.size, self.name))[0]
        return parts(self._dialect, self._fd, start, self.name)

    def _lines(self) -> Iterator[bytes]:
        """Yield the line of each sample, in order."""
        first = _ENTRY.unpack(read_exactly(self._index_fd, 0, _ENTRY.size, self.name))
        end = os.fstat(self._fd).st_size
        rows = sample_lines(self._fd, first[0], end, first[1], self.name, hash_rows=self._dialect.hash_rows)
        return (raw for _, raw, _, _ in rows if self._is_ours(raw))

    def path_hashes(self) -> Iterator[NDArray[np.uint64]]:
        """Yield the hash of each sample's path as it is written, some at a time; in a directory, the path below it."""
        from prefetchd.data.manifest.values import path_hashes
        from prefetchd.sampling.hashes import hash_keys

        if self._is_plain:
            return path_hashes(self._parts(), lambda raw: parse_line(self._dialect, raw)[0])
        return hash_keys(parse_line(self._dialect, raw)[0] for raw in self._lines())

    def label_values(self) -> NDArray[Any] | None:
        """Return the labels, (samples,) or (samples, k), int64 or float64; `None` for masks, or without labels."""
        import numpy as np

        if self._dialect.label_kind == "path" or not self._dialect.label_count:
            return None
        if self._is_plain and not self._any_fraction:
            from prefetchd.data.manifest.values import label_array

            return label_array(self._parts(), self._samples, lambda raw: self._parse(0, raw).label, self._changed())
        labels = (self._parse(0, raw).label for raw in self._lines())
        dtype = "float64" if self.label_dtype == "float32" else "int64"
        return np.fromiter(labels, np.dtype((dtype, self.label_shape)), self._samples)

    def _line(self, sample_id: int) -> tuple[int, bytes]:
        """Return the line number and the bytes of a sample's line."""
        if not 0 <= sample_id < self._samples:
            raise IndexError(f"sample {sample_id} of {self._samples} in {self.name}")
        entry, place = divmod(sample_id, LINES_PER_ENTRY)
        if entry != self._cached_entry:
            index = read_exactly(self._index_fd, entry * _ENTRY.size // 2, _ENTRY.size, self.name)
            offset, number, end, next_number = _ENTRY.unpack(index)
            if end - offset > _CACHED_BYTES:
                every = sample_lines(self._fd, offset, end, number, self.name, hash_rows=self._dialect.hash_rows)
                lines = (row for row in every if self._is_ours(row[1]))
                found = next(islice(lines, place, None), None)
                if found is None:
                    raise self._changed()
                return found[0], found[1]
            raw = read_exactly(self._fd, offset, end - offset, self.name)
            self._cached_lines, self._cached_numbers = raw.split(b"\n"), range(number, next_number)
            # As many lines as samples: there is nothing to filter out.
            if next_number - number != min(LINES_PER_ENTRY, self._samples - entry * LINES_PER_ENTRY):
                rows = [row for row in enumerate(self._cached_lines, number) if self._is_ours(row[1])]
                self._cached_lines, self._cached_numbers = [row[1] for row in rows], [row[0] for row in rows]
            self._cached_entry = entry
        if place >= min(len(self._cached_lines), len(self._cached_numbers)):
            raise self._changed()
        return self._cached_numbers[place], self._cached_lines[place]

    def _vector(self, field: bytes) -> tuple[int, ...]:
        """Return 1 for each class that a field names, and 0 for all others."""
        vector = [0] * len(self._class_numbers)
        for name in split_classes(field, self._dialect.label_separator):
            vector[self._class_numbers[name]] = 1
        return tuple(vector)

    def _changed(self) -> ManifestError:
        self._cached_entry = -1
        return ManifestError(f"cannot go on with {self.name}: it was written to while in use; start again")

    def _parse(self, number: int, raw: bytes) -> Sample:
        try:
            path, fields = parse_line(self._dialect, raw)
            label: Label = None
            if self._dialect.label_kind == "class":
                label = self._class_numbers[fields[0]]
            elif self._dialect.label_kind == "classes":
                label = self._vector(fields[0])
            elif self._dialect.label_kind == "path":
                label = os.path.join(self._root, fields[0].decode("utf-8", "surrogateescape"))
            elif fields:
                convert = float if self._any_fraction else int
                numbers = tuple(convert(field) for field in fields)
                label = numbers if self.label_shape else numbers[0]
        except (BadLine, LookupError, ValueError):
            # All lines were good at open, so these bytes are not the ones that were checked.
            raise self._changed() from None
        line = 0 if self._is_folder else number
        return Sample(os.path.join(self._root, path.decode("utf-8", "surrogateescape")), label, line)


def _fits(dialect: Dialect, line: bytes) -> bool:
    """Return whether `line` is a sample that the pass at open did not leave out."""
    try:
        return is_sample(line, hash_rows=dialect.hash_rows) and bool(check_line(dialect, line))
    except BadLine:
        return False


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
