"""Arrow files, and the folders of them that Hugging Face's `save_to_disk` writes. Needs pyarrow, in the daemon only.

The files are mapped while they are indexed. Images stay in them: readers read each by its place. The other columns are
copied into shared memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import replace
from typing import Any, Self

from prefetchd.columns.arrow import add_arrow
from prefetchd.columns.store import Columns
from prefetchd.columns.writer import ColumnsWriter
from prefetchd.config.options import Config
from prefetchd.data.files import check_complete, identity_of
from prefetchd.data.kinds import ARROW_FOLDERS, expand
from prefetchd.data.parquet.library import load_pyarrow
from prefetchd.data.table.records import TableRecords
from prefetchd.errors import ManifestError, one_line

_MAGIC = b"ARROW1"


class ArrowFiles(TableRecords):
    """The rows of Arrow files; see `Records`."""

    @classmethod
    def open(cls, config: Config) -> Self:
        """Index the files that `config.source` names; raises as `read_arrow_files`, or if a row does not fit."""
        columns, root, paths = read_arrow_files(config)
        return cls.make(columns, replace(config, root=root), one_line(config.source), paths[0])


def read_arrow_files(config: Config, wanted: Collection[str] | None = None) -> tuple[Columns, str, list[str]]:
    """Return the columns, which the caller owns, of the files that `config.source` names, where paths start, and those.

    Args:
        config: the options.
        wanted: the columns to read; `None` for all that can be held.

    Raises:
        ManifestError: if a file cannot be read, or lacks a column.
        ConfigError: if pyarrow is not installed.
    """
    name = one_line(config.source)
    source = os.path.abspath(os.path.expanduser(config.source))
    paths = _data_files(source, name) if os.path.isdir(source) else expand(config.source, "arrow", name)
    before = [identity_of(path) for path in paths]
    columns = _read(paths, name, wanted)
    try:
        for path, found in zip(paths, before, strict=True):
            check_complete(path, found, one_line(path))
    except BaseException:
        columns.close()
        raise
    folder = source if os.path.isdir(source) else os.path.dirname(paths[0])
    return columns, folder if config.root is None else config.root, paths


def _data_files(folder: str, name: str) -> list[str]:
    """Return the Arrow files of a folder in the order of their rows."""
    state = _json(os.path.join(folder, ARROW_FOLDERS[0]))
    splits = _json(os.path.join(folder, ARROW_FOLDERS[1])).get("splits")
    if splits:
        raise ManifestError(
            f"cannot serve {name}: it holds the data sets {', '.join(map(str, splits))}; give the folder of one, as in "
            f"{os.path.join(name, str(splits[0]))}"
        )
    if state.get("_indices_files"):
        raise ManifestError(
            f"cannot serve {name}: an old version of datasets wrote its order apart; load it, and save it again with "
            "flatten_indices().save_to_disk()"
        )
    try:
        listed = [os.path.join(folder, os.path.basename(each["filename"])) for each in state["_data_files"]]
    except (KeyError, TypeError):
        listed = expand(folder, "arrow", name)
    if not listed:
        raise ManifestError(f"cannot serve {name}: it has no Arrow files; write it again with save_to_disk()")
    return listed


def _json(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _read(paths: list[str], name: str, wanted: Collection[str] | None) -> Columns:
    """Return columns of all files together."""
    pa, _ = load_pyarrow("Arrow")
    try:
        table = pa.concat_tables([_table(pa, path) for path in paths])
    except (OSError, ValueError) as error:  # pyarrow's errors are among them
        what = " ".join(str(error).split())[:300]
        raise ManifestError(f"cannot read {name}: {what}; write the files again") from None
    if not table.num_rows:
        raise ManifestError(f"cannot serve {name}: it has no rows; write a row for each sample")
    with ColumnsWriter(table.num_rows) as writer:
        try:
            attributes = add_arrow(writer, table, wanted=wanted)
        except ValueError as error:
            raise ManifestError(f"{error} ({name})") from None
        return Columns.attach(*writer.finish({"names": list(table.schema.names), **attributes}))


def _table(pa: Any, path: str) -> Any:
    """Return the rows of one file, mapped; datasets writes streams, other programs files with a footer."""
    with open(path, "rb") as file:
        is_file = file.read(len(_MAGIC)) == _MAGIC
    mapped = pa.memory_map(path)
    return (pa.ipc.open_file(mapped) if is_file else pa.ipc.open_stream(mapped)).read_all()
