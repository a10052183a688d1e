"""Which columns of a table have the images, or their paths, and the labels. Called at open, in the daemon.

The rules are those of lists and Parquet files: a usual name is taken, an option decides, and what is ambiguous is
refused with the option that settles it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefetchd.columns.store import Columns
from prefetchd.config.options import Config
from prefetchd.data.kinds import IMAGE_SUFFIXES
from prefetchd.data.labels import MASK_NAMES, PATH_NAMES, find_label, find_named, known_label
from prefetchd.errors import ManifestError

_IMAGE_NAMES = ("image", "img", "images", "jpg", "jpeg", "png", "bytes", "image_bytes", "image_data", "content", "data")
_SHOWN = 20


def choose_columns(columns: Columns, config: Config, name: str) -> tuple[str, tuple[str, ...]]:
    """Return the column of the images or their paths, and those of the labels.

    Raises:
        ManifestError: if an option names a column that is not there, or the columns are ambiguous.
    """
    names = _Names(columns, name)
    x = config.x_column
    x = names.find("x_column", x) if x is not None else columns.attributes.get("x") or names.image()
    return x, names.labels(config, x)


class _Names:
    """The names of a table's columns."""

    def __init__(self, columns: Columns, name: str) -> None:
        self._columns = columns
        self._name = name
        self._images: dict[str, Any] = columns.attributes.get("images", {})
        self._left_out: dict[str, str] = columns.attributes.get("left_out", {})
        self._names: list[str] = columns.attributes.get("names") or list(columns)

    def find(self, option: str, wanted: str) -> str:
        """Return the column that `wanted` names, or numbers from 0."""
        key = wanted.strip()
        if key not in self._names and key.isdecimal() and int(key) < len(self._names):
            key = self._names[int(key)]
        if key in self._left_out:
            raise ManifestError(
                f"cannot use {option}={wanted!r} with {self._name}: {self._left_out[key]}; give a column of text, "
                "numbers or bytes"
            )
        if key not in self._columns and key not in self._images:
            parts = [name for name in (*self._columns, *self._left_out) if name.startswith(f"{key}.")]
            if key in self._names and parts:
                raise ManifestError(
                    f"cannot use {option}={wanted!r} with {self._name}: its values have parts; give one of them: "
                    f"{_listed(parts)}"
                )
            raise ManifestError(
                f"cannot find the column {option}={wanted!r} in {self._name}: it has {_listed(self._names)}; give one "
                "of them by name or by number, from 0"
            )
        return key

    def image(self) -> str:
        """Return the column with the images or their paths: a usual name, or the only one that holds such."""
        usable = [name for name in self._names if name in self._images or self._kind(name) in ("strings", "bytes")]
        usual = known_label(usable, (*_IMAGE_NAMES, *PATH_NAMES))
        if usual is not None:
            return usual
        likely = [name for name in usable if self._kind(name) != "strings" or self._is_image(name)]
        if len(likely) == 1:
            return likely[0]
        what = f"as {len(likely)} name or hold images" if likely else "as none has a usual name, or names images"
        raise ManifestError(
            f"cannot tell which column of {self._name} has the images or their paths, {what}: it has "
            f"{_listed(self._names)}; give x_column"
        )

    def labels(self, config: Config, x: str) -> tuple[str, ...]:
        """Return the label columns: those named, or the last `label_columns`, or the one of a usual name."""
        wanted = config.label_columns
        named = find_named(config, self._name, self.find)
        if named is not None:
            return named
        others = [name for name in self._names if name != x]
        if wanted is not None:
            if wanted > len(others):
                raise ManifestError(
                    f"cannot take label_columns={wanted} from {self._name}: beside the image there are {len(others)}; "
                    "give a smaller number"
                )
            return tuple(self.find("label_columns", name) for name in others[len(others) - wanted :])
        if "y" in self._columns.attributes:
            return tuple(name for name in self._columns.attributes["y"] if name != x)
        if config.target == "mask":
            found = known_label(others, MASK_NAMES)
            if found is None:
                raise ManifestError(
                    f"cannot tell which column of {self._name} has the masks: beside the image there are "
                    f"{_listed(others)}; give y_column"
                )
        else:
            found = find_label(others, self._name)
        return () if found is None else (self.find("y_column", found),)

    def _kind(self, name: str) -> str:
        column = self._columns.get(name)
        return "" if column is None else column.layout.kind

    def _is_image(self, name: str) -> bool:
        column = self._columns[name]
        first = next((row for row in range(min(len(column), 64)) if not column.is_missing(row)), 0)
        return str(column[first]).lower().endswith(IMAGE_SUFFIXES)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN])) or "no columns"
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
