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
from prefetchd.data.files import check_unchanged, is_across_hosts, read_exactly
from prefetchd.data.manifest.dialect import LINES_PER_ENTRY, BadLine, Dialect, MalformedLine, is_sample, sample_lines
from prefetchd.data.manifest.line import check_line, parse_line, split_classes
from prefetchd.data.named_files import NamedFiles
from prefetchd.data.records import Label, Sample, shown_path
from prefetchd.data.shards import STORE_BYTES
from prefetchd.errors import ManifestError
from prefetchd.ipc.descriptors import memfd_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prefetchd.data.files import FileBuffer
    from prefetchd.data.manifest.values import LabelArray, Part
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

    def __init__(self, facts: dict[str, Any], fds: Sequence[int]) -> None:
        """Take over the descriptors; `facts` are those of `handle()`. Use `open` or `attach`."""
        self._facts = facts
        self._index_fd, self._fd, *pins_fd = fds
        self._files = NamedFiles(os.fsdecode(facts["root"]), *pins_fd)
        self._has_pins = self._files.is_far
        self._samples: int = facts["samples"]
        # A directory's listing, and a list that is an object, are held in memory and cannot change.
        self._is_held: bool = facts["identity"] is None
        self._is_folder: bool = facts["dialect"]["kind"] == "tree"
        self._path: bytes = facts["path"]
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
            text = read_exactly(self._index_fd, facts["classes_at"], facts["classes_bytes"], self.name)
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
        return cls(handle, fds)

    def handle(self) -> tuple[dict[str, Any], list[int]]:
        """Return what `attach` needs: plain values (numbers, text, bytes, lists, dicts), and descriptors.

        The descriptors stay this object's; `attach` needs copies of them (sent over a socket, inherited or from
        `os.dup`).
        """
        return self._facts, [self._index_fd, self._fd, *self._files.fds]

    def close(self) -> None:
        """Close the descriptors; may be called twice."""
        for fd in (self._index_fd, self._fd):
            if fd >= 0:
                os.close(fd)
        self._index_fd = self._fd = -1
        self._files.close()
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
        sample_ids = list(sample_ids)
        found = [self._line(int(sample_id)) for sample_id in sample_ids]
        self.check_unchanged()
        return [self._parse(*each, int(sample_id)) for each, sample_id in zip(found, sample_ids, strict=True)]

    def check_unchanged(self) -> None:
        """Raise `ManifestError` if the file is not the one that was opened, or was written to since."""
        if not self._is_held and not is_across_hosts():
            check_unchanged(self._path, self._facts["identity"], self.name)

    @property
    def shared_bytes(self) -> int:
        """Bytes of the memfds: the index, a listing or a list that is held, and the objects' identities."""
        fds = [self._index_fd, *([self._fd] if self._is_held else []), *self._files.fds]
        return sum(map(memfd_bytes, fds))

    @property
    def is_far(self) -> bool:
        """Whether some of them are objects."""
        return self._files.is_far

    @property
    def reads_apart(self) -> bool:
        """True: each sample is a file of its own."""
        return True

    @property
    def reader_bytes(self) -> int:
        """For objects the store's library; readers share the index."""
        return STORE_BYTES if self.is_far else 0

    def read(self, sample: Sample, buffer: FileBuffer, reserve: ReserveMemory) -> memoryview:
        """Return the bytes of the sample's file; see `Records.read`."""
        return self._files.read(sample.path, sample.pin, buffer, reserve)

    def read_label(self, sample: Sample, buffer: FileBuffer, reserve: ReserveMemory) -> memoryview:
        """Return the bytes of the file that is the sample's label, such as a mask; as `read`."""
        return self._files.read(str(sample.label), self._samples + sample.pin, buffer, reserve)

    def object_state(self, sample: Sample, ask: bool) -> bytes | None:
        """Return the state of an object; see `Records.object_state`."""
        return self._files.state(sample.path, sample.pin, ask)

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
            return (path_hashes(part, self._parse_path) for part in self._parts())
        return hash_keys(self._parse_path(raw) for raw in self._lines())

    def label_values(self) -> NDArray[Any] | None:
        """Return the labels, (samples,) or (samples, k), int64 or float64; `None` for masks, or without labels."""
        import numpy as np

        if self._dialect.label_kind == "path" or not self._dialect.label_count:
            return None
        found = self._label_array()
        if found is not None:
            for part in self._parts():
                found.add(part)
            return found.whole()
        labels = (self._parse(0, raw).label for raw in self._lines())
        dtype = "float64" if self.label_dtype == "float32" else "int64"
        return np.fromiter(labels, np.dtype((dtype, self.label_shape)), self._samples)

    def labels_and_path_hashes(self) -> tuple[NDArray[Any], NDArray[np.uint64]] | None:
        """Return what `label_values` and `path_hashes` give, each (samples,); `None` if one pass does not give both."""
        import numpy as np

        from prefetchd.data.manifest.values import path_hashes

        labels = self._label_array()
        if labels is None:
            return None
        hashes, first = np.empty(self._samples, np.uint64), 0
        for part in self._parts():
            labels.add(part)  # first: it holds that there are not more samples than there were
            found = path_hashes(part, self._parse_path)
            hashes[first : first + len(found)] = found
            first += len(found)
        return labels.whole(), hashes

    def _label_array(self) -> LabelArray | None:
        """Return what takes the labels part by part; `None` where lines are parsed one by one for them."""
        from prefetchd.data.manifest.values import ClassTable, LabelArray

        if not self._is_plain or self._any_fraction:
            return None
        classes = ClassTable(list(self._class_numbers)) if self._dialect.label_kind == "class" else None
        if classes is not None and not classes.is_unique:
            return None
        return LabelArray(self._samples, lambda raw: self._parse(0, raw).label, self._changed(), classes)

    def _parse_path(self, raw: bytes) -> bytes:
        return parse_line(self._dialect, raw)[0]

    def _line(self, sample_id: int) -> tuple[int, bytes]:
        """Return the line number and the bytes of a sample's line."""
        if not 0 <= sample_id < self._samples:
            raise IndexError(f"sample {sample_id} of {self._samples} in {self.name}")
        entry, place = divmod(sample_id, LINES_PER_ENTRY)
        if entry != self._cached_entry:
            index = os.pread(self._index_fd, _ENTRY.size, entry * _ENTRY.size // 2)  # sealed: all of it is there
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

    def _parse(self, number: int, raw: bytes, pin: int = -1) -> Sample:
        try:
            path, fields = parse_line(self._dialect, raw)
            label: Label = None
            if self._dialect.label_kind == "class":
                label = self._class_numbers[fields[0]]
            elif self._dialect.label_kind == "classes":
                label = self._vector(fields[0])
            elif self._dialect.label_kind == "path":
                label = self._files.path(fields[0].decode("utf-8", "surrogateescape"))
            elif fields:
                convert = float if self._any_fraction else int
                numbers = tuple(map(convert, fields))
                label = numbers if self.label_shape else numbers[0]
        except (BadLine, LookupError, ValueError):
            # All lines were good at open, so these bytes are not the ones that were checked.
            raise self._changed() from None
        line = 0 if self._is_folder else number
        name = self._files.path(path.decode("utf-8", "surrogateescape"))
        return Sample(name, label, line, (), (), pin if self._has_pins else -1)


def _fits(dialect: Dialect, line: bytes) -> bool:
    """Return whether `line` is a sample that the pass at open did not leave out."""
    try:
        return is_sample(line, hash_rows=dialect.hash_rows) and bool(check_line(dialect, line))
    except BadLine:
        return False


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
