"""Tar shards into a table: for each sample, where its members are, and the labels and numbers in them.

A field's column is a member's extension (`jpg`; `jpg;png` for the first of them that a sample has), or a key of a JSON
member, `json:caption`. Images, masks, text and files are read from the shards when their sample is; `.cls` members and
JSON are read here. In the daemon, once a data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.columns.store import Columns
from prefetchd.columns.values import add_values
from prefetchd.columns.writer import ColumnsWriter
from prefetchd.data.kinds import expand
from prefetchd.data.labels import json_kind
from prefetchd.data.manifest.dialect import BadLine
from prefetchd.data.manifest.json import NoObject, json_object, json_value
from prefetchd.data.table.class_lists import class_lists, label_columns
from prefetchd.data.table.text import label_numbers
from prefetchd.data.tar.headers import Member, printable
from prefetchd.data.tar.indexer import BadSample, content_of, grouped_members, single_member
from prefetchd.data.tar.member_check import UNCHECKED, blocks_of, check_of
from prefetchd.data.tar.members import scan_shards
from prefetchd.data.tar.open_shard import ShardMembers
from prefetchd.errors import ManifestError

if TYPE_CHECKING:
    from prefetchd.config.fields import Field

_READ_HERE = ("label", "labels", "boxes", "keypoints")


def read_tar(source: str, name: str, fields: Mapping[str, Field], index: str | None = None) -> Columns:
    """Return the table of the shards that `source` names, by an index file if one is given; the caller owns it.

    Raises:
        ManifestError: if a shard cannot be read, there are no samples, or one lacks a member.
    """
    columns = {field.column or each: _TarColumn(field.column or each, field) for each, field in fields.items()}
    columns = {column: each for column, each in columns.items() if not column.startswith(".")}
    columns |= {column: _TarColumn(column, None) for column in label_columns(fields) if column not in columns}
    files: list[list[Any]] = []
    for number, shard in enumerate(scan_shards(expand(source, "tar", name), index)):
        for key, members in grouped_members(shard.members):
            for column in columns.values():
                column.add(number, shard.members, members, f"{shard.name} sample {printable(key)}")
        files.append([shard.path, *shard.identity])
    n_rows = len(next(iter(columns.values())).values) if columns else 0
    if not n_rows:
        raise ManifestError(f"cannot serve {name}: it has no samples (such as 0001.jpg and 0001.cls); check the shards")
    attributes: dict[str, Any] = {"files": files, "images": {}, "classes": {}, "checks": {}}
    with ColumnsWriter(n_rows) as writer:
        for column in columns.values():
            column.write(writer, attributes, name)
        return Columns.attach(*writer.finish(attributes))


class _TarColumn:
    """The values of one column: places of members, or what they say."""

    def __init__(self, column: str, field: Field | None) -> None:
        """Of a field, or (`None`) of the labels of boxes."""
        self._column = column
        extensions, _, self._key = column.partition(":")
        parts = [part.strip().removeprefix(".") for part in extensions.replace(";", ",").split(",")]
        self._extensions = [part.lower().encode() for part in parts]
        self._kind = "labels" if field is None else field.kind
        self._is_place = not self._key and self._kind not in _READ_HERE
        self.values: list[Any] = []
        self._checks: list[tuple[int, int]] = []  # of places: blocks of headers, and what they are compared with

    def add(self, shard: int, headers: ShardMembers, members: dict[bytes, list[Member]], sample: str) -> None:
        """Take the value of the next sample."""
        extension = next((each for each in self._extensions if each in members), None)
        if extension is None:
            there = ", ".join(f".{each.decode('utf-8', 'backslashreplace')}" for each in members)
            raise ManifestError(
                f"cannot use {sample}: it has no member .{self._column} (there are {there}); give the field another "
                "column, or complete the shard"
            )
        try:
            member = single_member(members, extension)
            if self._is_place:
                self.values.append((shard, member.data_at, member.n_bytes))
                self._checks.append((blocks_of(member), check_of(member) if headers.is_listed else UNCHECKED))
                return
            content = content_of(headers, member)
            self.values.append(json_value(json_object(content), self._key) if self._key else content.decode().strip())
        except (BadSample, BadLine, NoObject, UnicodeDecodeError) as error:
            raise ManifestError(f"cannot use {sample}: its .{self._column}: {error}; write the shard again") from None

    def write(self, writer: ColumnsWriter, attributes: dict[str, Any], name: str) -> None:
        """Add the column, and what its values are, to a table."""
        if self._is_place:
            attributes["images"][self._column] = {"place": self._column}
            writer.add_numbers(self._column, np.array(self.values, np.int64))
            if any(check != UNCHECKED for _, check in self._checks):
                attributes["checks"][self._column] = f"{self._column}/check"
                writer.add_numbers(f"{self._column}/check", np.array(self._checks, np.int64))
            return
        if self._kind == "label" and isinstance(self.values[0], str):
            where = f"the members .{self._column} of {name}"
            odd = next((row for row, value in enumerate(self.values) if not isinstance(value, str)), None)
            if odd is not None:
                raise ManifestError(
                    f"cannot take labels from {where}: sample {odd} (from 0) has {json_kind(self.values[odd])}, and "
                    "the first has text; write all alike"
                )
            numbers, classes = label_numbers(self.values, len(self.values), where, are_names=bool(self._key))
            writer.add_numbers(self._column, numbers)
            if classes is not None:
                attributes["classes"][self._column] = list(classes)
            return
        try:
            values, names = class_lists(self.values) if self._kind == "labels" else (self.values, None)
            add_values(writer, self._column, values)
            if names is not None:
                attributes["classes"][self._column] = names
        except ValueError as error:
            raise ManifestError(
                f"cannot use the members .{self._column} of {name}: {error}; write them again"
            ) from None
