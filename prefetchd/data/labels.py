"""What labels may be in any source: numbers, vectors of a constant length, or names of classes.

The rules, and the names under which columns, keys and members hold labels, are those of lists, tar shards and Parquet
files alike. `Labels` checks labels that come one by one; the indexers of tar shards and Parquet files call it at open.
Pure.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from prefetchd.errors import ManifestError

if TYPE_CHECKING:
    from prefetchd.config.options import Config

_Column = TypeVar("_Column")

# "classes" are several names in one field, delivered as a vector of 0 and 1.
LabelKind = Literal["none", "number", "class", "classes", "path"]

FLOAT32_MAX = 3.4028234663852886e38
FLOAT32_EXACT = 1 << 24  # float32 holds every integer up to here
FLOAT64_EXACT = 1 << 53
MAX_CLASSES = 1_000_000
# Names under which paths, labels and masks are found without an option, the most usual first.
PATH_NAMES = (
    "path", "image", "file", "filename", "file_name", "filepath", "file_path", "image_path", "image_file", "img",
    "img_path", "image_name",
)  # fmt: skip
LABEL_NAMES = (
    "label", "labels", "class", "target", "targets", "category", "class_id", "class_name", "label_id", "label_name",
    "category_id",
)  # fmt: skip
MASK_NAMES = ("mask", "mask_path", "segmentation", "annotation", "label", "target")
# Names of what numbers or groups samples. A column with such a name is no label unless an option says so.
ID_NAMES = frozenset(
    (
        "id", "idx", "index", "#", "no", "nr", "row", "rowid", "row_id", "image_id", "img_id", "id_code", "sample_id",
        "uid", "uuid", "fold", "folds", "kfold", "split", "patient_id", "subject_id", "study_id", "series_id",
        "person_id", "user_id", "case_id", "video_id", "frame_id", "camera_id", "site_id", "file_id",
    )
)  # fmt: skip
# What describes an image and not its content; regions of interest, too (`Roi.X1`).
_SIZE = re.compile(r"(image|img)?(width|height|channels|size|filesize|bytes)|[wh]|roi([. ]?[xywh]\d?)?")
_OTHER_ID = re.compile(r".*([_\- ][iI][dD]|[a-z]I[dD])")  # breed_id, BreedId: an id of samples, or a class
# What pandas calls an index without a name.
_PANDAS_INDEX = re.compile(r"|unnamed: *\d+(_level_\d+)?", re.IGNORECASE)

_NUMBER = r"[+-]?\d+(?:\.\d+)?"
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_NUMBERS = re.compile(rf"{_NUMBER}(?:[\s,;|]+{_NUMBER})+")
_MARKS = re.compile(r"[\s,;|/+&_\-\[({]")  # without one of these a name is no list
_BRACKETS = {"[": "]", "(": ")", "{": "}"}

# What stands, in any case, where a label is missing.
MISSING = frozenset(("", "nan", "na", "n/a", "null", "none"))

Numbers = tuple[int | float, ...]


def is_pandas_index(name: str) -> bool:
    """Return whether a column's name is the one that pandas gives an index without a name."""
    return _PANDAS_INDEX.fullmatch(name.strip()) is not None


def plain(name: str) -> str:
    """Return a name as names are compared: without case, `_`, `-` and spaces, so that `ClassId` is `class_id`."""
    return re.sub(r"[\s_-]+", "", name).lower()


PLAIN_IDS = frozenset(map(plain, ID_NAMES))


def is_id_name(name: str) -> bool:
    """Return whether a column of this name says no class: it numbers, groups or measures, such as `id`, `Width`."""
    is_listed = plain(name) in PLAIN_IDS or _SIZE.fullmatch(plain(name)) is not None
    return is_listed or is_pandas_index(name)


def may_be_id(name: str) -> bool:
    """Return whether a name ends as those of ids do: `breed_id` may number the samples, or classes."""
    return _OTHER_ID.fullmatch(name.strip()) is not None and not is_id_name(name)


def known_label(names: Sequence[str], known: Sequence[str] = LABEL_NAMES) -> str | None:
    """Return the name among `names`, as `plain` compares, that is the most usual one; `None` if none is usual."""
    by_name = {plain(name): name for name in reversed(names)}
    return next((by_name[plain(name)] for name in known if plain(name) in by_name), None)


def find_named(config: Config, source: str, find: Callable[[str, str], _Column]) -> tuple[_Column, ...] | None:
    """Return the label columns that `y_column` names, each as `find` (option, name) has it; `None` if it is not given.

    Raises:
        ManifestError: if `label_columns` says another number of them.
    """
    wanted = config.label_columns
    if config.y_column is None:
        return None
    named = tuple(find("y_column", part) for part in config.y_column.split(",") if part.strip())
    if wanted is not None and wanted != len(named):
        raise ManifestError(f"cannot use label_columns={wanted} with {source}: y_column names {len(named)}; give one")
    return named


def find_label(names: Sequence[str], source: str, what: str = "columns") -> str | None:
    """Return which of `names`, those beside the image, holds the labels; `None` if there is nothing beside it.

    An unknown name is never left out in silence: the label would be the sample's number, and train a wrong model.

    Args:
        names: names of columns, keys or members, without the image's.
        source: the data set's name in errors.
        what: the plural of what the names are, in errors.

    Raises:
        ManifestError: if there are names, and none is usual for labels.
    """
    found = known_label(names)
    others = [name for name in names if not is_pandas_index(name)]
    if found is not None or not others:
        return found
    listed = ", ".join(map(repr, others[:20])) + (f" and {len(others) - 20} more" if len(others) > 20 else "")
    likely = next((name for name in others if not is_id_name(name)), others[0])
    raise ManifestError(
        f"cannot tell which of the {what} of {source} has the labels: beside the image there are {listed}; "
        f"give y_column={likely!r}, label_columns=0 for no labels, or fields for text and other columns"
    )


def check_names(names: Collection[str], source: str, *, can_split: bool = True) -> None:
    """Refuse class names that are no names: decimal commas, and lists of labels.

    Each combination of labels would become a class. Called with all the names of a data set; `label_separator=""`
    takes them as they are.

    Args:
        names: the different class names.
        source: the data set's name in errors.
        can_split: whether `label_separator` can split them there.

    Raises:
        ManifestError: with an example, and the option that settles it.
    """
    marked = [name for name in names if _MARKS.search(name)]
    whole = 'label_separator="" if each is one name'
    for name in marked:
        text = name.strip()
        if _DECIMAL_COMMA.fullmatch(text):
            raise ManifestError(
                f"cannot use the label {name!r} of {source}: it is written with a comma; write "
                f"{text.replace(',', '.')} for a fraction, or give label_separator=',' for a list, or {whole}"
            )
    found = _list_of_labels(names, marked)
    if found is None:
        return
    example, separator = found
    remedy = "write a 0/1 vector, or one name"
    if can_split:
        remedy = f"give label_separator={separator!r} for a 0/1 vector over the classes"
    raise ManifestError(
        f"cannot use the label {example!r} of {source}: it looks like a list, and each combination would be a class; "
        f"{remedy}, or {whole}"
    )


def _list_of_labels(names: Collection[str], marked: list[str]) -> tuple[str, str] | None:
    """Return a name that is a list of labels, and its separator; `marked` are those of `names` that may be lists."""
    for name in marked:
        text = name.strip()
        if len(text) > 1 and _BRACKETS.get(text[0]) == text[-1]:
            return name, ","
        if _NUMBERS.fullmatch(text):
            return name, next((mark for mark in ",;|" if mark in text), " ")
        for mark in "|;,":
            parts = text.split(mark)
            # A comma before a space stands in names of one class, too.
            if len(parts) > 1 and all(map(str.strip, parts)) and (mark != "," or ", " not in text):
                return name, mark
    known = {name.strip() for name in names}
    for mark in ",/+&_- ":
        lists = {name: split for name in marked if len(split := _parts(name, mark)) > 1}
        whole = next((name for name, split in lists.items() if all(part in known for part in split)), None)
        if whole is not None:
            return whole, mark
        if lists and mark not in "_-" and _are_combined([_parts(name, mark) for name in names], mark):
            return next(iter(lists)), mark
    return None


def _parts(name: str, mark: str) -> list[str]:
    return [part.strip() for part in name.split(mark) if part.strip()]


def _are_combined(split: list[list[str]], mark: str) -> bool:
    """Return whether names, as split at a mark that stands in names of one class too, combine few labels."""
    n_names = Counter(part for parts in split for part in set(parts))
    shared = {part for part, count in n_names.items() if count > 1}
    are_uneven = len({len(parts) for parts in split}) > 1
    if mark == " ":
        if not are_uneven:
            return False
        if len(shared) == len(n_names) or 2 * len(n_names) < len(split):
            return True
        # The last word says what a class is (retriever); one that ends a name and stands amid another is a label.
        ends = {parts[-1] for parts in split if len(parts) > 1}
        amid = {part for parts in split for part in parts[:-1]}
        return 2 * len(shared) >= len(n_names) and bool(shared & ends & amid)
    if mark == "/":  # animal/cat and animal/dog are one path each
        firsts = {parts[0] for parts in split}
        return any(part in firsts for parts in split for part in parts[1:])
    lists = [parts for parts in split if len(parts) > 1]
    return 2 * sum(not shared.isdisjoint(parts) for parts in lists) >= len(lists)


def sorted_classes(names: Collection[str]) -> list[str]:
    """Return class names in the order of their numbers: as text, or as integers if all of them are integers."""
    if names and all(re.fullmatch(r"[+-]?\d{1,18}", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


class BadLabel(Exception):
    """Says what is wrong with a label, in words that follow "cannot use <sample>: "."""


class Labels:
    """The labels of records that come one by one; the first decides the kind, and all others must be like it.

    Attributes:
        kind: numbers or names; `None` before the first.
        count: numbers in one label.
        any_fraction: whether a label is not an integer.
        names: provisional numbers of the classes, in the order in which they came.
        whole: whether names that look like lists of labels are taken as names (`label_separator=""`).
    """

    def __init__(self, name: str, *, whole: bool = False) -> None:
        self.kind: LabelKind | None = None
        self.count = 0
        self.any_fraction = False
        self.names: dict[str, int] = {}
        self.whole = whole
        self._name = name
        self._large: int | None = None  # an integer that float32 does not hold

    def take(self, values: list[Any]) -> Numbers:
        """Return the numbers of one label, given the value under each of its keys; a name gets a provisional number.

        Raises:
            BadLabel: if it is not as the others are.
        """
        flat: list[Any] = []
        for value in values:
            flat += value if isinstance(value, list) else [value]
        kind: LabelKind = "class" if len(flat) == 1 and isinstance(flat[0], str) else "number"
        if self.kind is None:
            if kind == "number":
                checked = tuple(map(self._number, flat))  # the first label decides only if it is one
                if not checked:
                    raise BadLabel("its label is empty")
            self.kind, self.count = kind, len(flat)
        if self.kind == "class":
            if kind != "class":
                raise BadLabel(
                    f"its label is {json_kind(flat[0] if len(flat) == 1 else flat)}, and the first is a name"
                )
            return (self._class(flat[0]),)
        numbers = tuple(map(self._number, flat))
        if len(numbers) != self.count:
            raise BadLabel(f"its label has {len(numbers)} numbers, and the first has {self.count}")
        return numbers

    def check_complete(self) -> None:
        """Check the class names, once all labels have come.

        Raises:
            ManifestError: if they look like lists of labels.
        """
        if not self.whole:
            check_names(self.names, self._name, can_split=False)

    def _class(self, label: str) -> int:
        if not label:
            raise BadLabel("its label is empty")
        if not self.whole and label.strip().lower() in MISSING:
            raise BadLabel(f'its label is missing ({label!r}); write one, or give label_separator="" if it is a name')
        number = self.names.setdefault(label, len(self.names))
        if number >= MAX_CLASSES:
            raise ManifestError(
                f"cannot use {self._name}: its labels name more than {MAX_CLASSES} classes; "
                "give label_columns=0 for none, or y_column"
            )
        return number

    def _number(self, value: Any) -> int | float:
        if isinstance(value, int):  # bool too: 0 or 1
            if not -(2**63) <= value < 2**63:
                raise BadLabel(f"its label {value} does not fit 64 bits")
            if self._large is None and not fits_float32(value):
                self._large = int(value)
        elif not isinstance(value, float):
            raise BadLabel(f"its label is {json_kind(value)}, and not a number")
        elif not math.isfinite(value) or abs(value) > FLOAT32_MAX:
            raise BadLabel(f"its label {value} is not finite, or does not fit float32")
        else:
            self.any_fraction = True
            if self._large is None and is_changed_whole(value):
                self._large = int(value)
        if self.any_fraction and self._large is not None:
            raise ManifestError(refuse_large(self._name, str(self._large)))
        return int(value) if isinstance(value, int) else value


def fits_float32(value: int) -> bool:
    """Return whether float32 holds an integer unchanged."""
    size = abs(value)
    return size <= FLOAT32_EXACT or size % (1 << (size.bit_length() - 24)) == 0


def is_changed_whole(value: float) -> bool:
    """Return whether a finite number is whole, as ids are, exact in float64, and changed by float32."""
    return abs(value) < FLOAT64_EXACT and value == int(value) and not fits_float32(int(value))


def refuse_large(where: str, label: str) -> str:
    """Return the message for a whole label that float32, which labels with a point ask for, would change."""
    return (
        f"cannot use the label {label} of {where}: labels with fractions or points make all of them float32, and "
        f"float32 does not hold it exactly (beyond {FLOAT32_EXACT}); write all labels as integers, or name other "
        "columns with y_column"
    )


def json_kind(value: Any) -> str:
    """Return what a JSON value is, for errors."""
    if value is None or value in ("", [], {}):
        return "null" if value is None else "empty"
    kinds = {bool: "a truth value", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    kind, text = kinds.get(type(value), f"of the type {type(value).__name__}"), repr(value)
    return f"{kind} ({text if len(text) <= 60 else text[:57] + '...'})"
