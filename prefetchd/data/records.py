"""What lists encoded images: `Records`, the protocol that lists, tar shards and Parquet files fulfil, and a `Sample`.

Records know which samples there are, with which labels, and fetch the encoded bytes of one; they know nothing of
pixels. The daemon calls `open` (each kind has its own), which checks everything once. Readers call `attach` with
`handle()`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from prefetchd.data.source import ReserveMemory
from prefetchd.errors import one_line

if TYPE_CHECKING:
    from prefetchd.data.files import FileBuffer


_SHOWN_CHARACTERS = 400  # of a path, in a report of faults
Label = int | float | tuple[int | float, ...] | str | None


class Sample(NamedTuple):
    """One sample of a data set.

    Attributes:
        path: the file that its bytes are in, absolute, or the URL of an object; bytes that are not UTF-8 are surrogate
            escapes, as `os.fsdecode` makes.
        label: a number, a tuple of numbers, the number of a class, the absolute path or URL of a mask, or `None`.
        line: its line in the list, from 1; 0 where no line names it, as in a directory.
        place: where in the file, in numbers that only its own records read; empty if the file is the sample.
        values: of each field of the option `fields`, in order: a number, an array, text, bytes, or what `fetch` takes.
            Without fields what else its records have of it, such as boxes.
        pin: where its records note which state of an object it is, where it is one; -1 for none.
    """

    path: str
    label: Label
    line: int = 0
    place: tuple[int, ...] = ()
    values: tuple[Any, ...] = ()
    pin: int = -1


def shown_path(path: str) -> str:
    """Return a path for people: on one line, and of a long one its end."""
    text = one_line(path)
    return text if len(text) <= _SHOWN_CHARACTERS else "..." + text[-_SHOWN_CHARACTERS:]


Holds = Literal["numbers", "ragged", "text", "bytes", "files", "members"]


@dataclass(frozen=True, slots=True)
class FieldFacts:
    """What the values of one field are, over the whole data set.

    Attributes:
        holds: numbers of one shape; ragged numbers, any count a sample; text; bytes; or encoded bytes that are fetched:
            `files` of their own (the value is the path), or `members` of larger files.
        shape: of numbers, and of one of ragged numbers.
        dtype: numpy name of numbers' dtype.
        longest: the most bytes of a value, or numbers where they are ragged; 0 if it is not known.
        classes: the names by number, where labels were text.
        written: how boxes are written, where the data itself says it; else empty.
        beside: more values of a field of boxes and their numbers in `Sample.values`: their `labels`, the `ids` that
            name them, the stated `size` of the image.
    """

    holds: Holds
    shape: tuple[int, ...] = ()
    dtype: str = ""
    longest: int = 0
    classes: tuple[str, ...] | None = None
    written: str = ""
    beside: tuple[tuple[str, int], ...] = ()

    @property
    def is_encoded(self) -> bool:
        """Whether a value is bytes, wherever they are."""
        return self.holds in ("bytes", "files", "members")

    @property
    def is_fetched(self) -> bool:
        """Whether a value must be read from storage."""
        return self.holds in ("files", "members")


class ReadableSamples(Protocol):
    """Samples that are named by number and read by several threads, as `ReadAhead` does."""

    @property
    def reads_apart(self) -> bool:
        """Whether several threads may call `read` at once."""

    @property
    def is_far(self) -> bool:
        """Whether samples are read from a store of objects, which answers late: they are read ahead from the first."""

    def samples(self, sample_ids: Iterable[int]) -> list[Sample]:
        """Return the samples of these numbers, in that order.

        Raises:
            ManifestError: if what lists them changed since it was opened.
            IndexError: for a number that no sample has.
        """

    def read(self, sample: Sample, buffer: FileBuffer, reserve: ReserveMemory) -> memoryview:
        """Return the encoded bytes of `sample`, valid until the next read; in readers only.

        `reserve` as in `Source.fill`: before memory beyond the reader's allowance is taken.

        Raises:
            SampleFault: if they cannot be read.
            ManifestError: if the file that holds them and others changed since it was opened.
        """


class Records(ReadableSamples, Protocol):
    """The samples of a data set by random access, from 0 to `len() - 1`. Owns its descriptors."""

    @property
    def name(self) -> str:
        """The name that errors use."""

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that follow which samples there are, in which order, with which labels."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes by number, where labels were text."""

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Shape of one label: `()`, or `(k,)` for vectors."""

    @property
    def label_dtype(self) -> str:
        """`int64`, or `float32` if any label has a fraction."""

    @property
    def shared_bytes(self) -> int:
        """Bytes of memory segments that it holds for all readers, such as an index."""

    @property
    def reader_bytes(self) -> int:
        """Private memory that it takes in each reader beyond what every reader has, such as a library's."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def object_state(self, sample: Sample, ask: bool) -> bytes | None:
        """Return what tells this state of the object that `sample` is, or is in, from any other.

        `None` for a file, and where it is not known; with `ask` the store is asked then. For any thread of a reader.
        """

    def where(self, sample: Sample) -> str:
        """Return where a sample comes from, such as list, line and path; printable."""

    def check_unchanged(self) -> None:
        """Raise `ManifestError` if a file is no longer what was opened."""

    def handle(self) -> tuple[dict[str, Any], list[int]]:
        """Return plain values and descriptors, which stay this object's, from which a reader attaches."""


class RecordsWithMasks(Records, Protocol):
    """The samples of a data set in which a label may be the path of a mask."""

    def read_label(self, sample: Sample, buffer: FileBuffer, reserve: ReserveMemory) -> memoryview:
        """Return the bytes of the file or object that is the sample's label; else as `read`."""


class RecordsWithFields(Records, Protocol):
    """The samples of a data set whose samples have fields: `Sample.values` holds a value for each."""

    @property
    def fields(self) -> tuple[FieldFacts, ...]:
        """What the values of each field are, in the order of the option."""

    def part(self, sample: Sample, number: int) -> Sample:
        """Return the image of a field that is fetched as a sample of its own: its path, and its place in the file."""

    def fetch(self, sample: Sample, number: int, buffer: FileBuffer, reserve: ReserveMemory) -> memoryview:
        """Return the encoded bytes of a field, by its number, valid until the next read; else as `read`."""
