"""Indexing tar shards at open: members that follow one another under one key are a sample.

`TarShards.open` calls it once, in the daemon; readers never import it. It reads only headers and label members, and
passes the images over. A sample that does not fit is refused with its shard and its key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from prefetchd.config.options import Config
from prefetchd.data.kinds import IMAGE_SUFFIXES
from prefetchd.data.labels import BadLabel, Labels, Numbers, known_label
from prefetchd.data.manifest.dialect import BadLine, show
from prefetchd.data.manifest.json import NoObject, json_object, json_value
from prefetchd.data.record_index import IndexWriter
from prefetchd.data.tar.headers import BLOCKS_BITS, Member, printable
from prefetchd.data.tar.member_check import UNCHECKED, blocks_of, check_of
from prefetchd.data.tar.members import scan_shards
from prefetchd.data.tar.open_shard import ShardMembers
from prefetchd.errors import ManifestError, one_line

_IMAGES = frozenset(suffix[1:].encode() for suffix in IMAGE_SUFFIXES)
_MAX_LABEL_BYTES = 1 << 20
_ROWS = 4096
_MAX_JSON_CHECKED = 256  # samples whose JSON is searched for a label that the first sample lacks
_NO_LABELS = "or label_columns=0 for no labels"

LabelPart = tuple[bytes, str | None]
"""Where a part of the label is: the member's extension, and the key in it if it is JSON."""


class BadSample(Exception):
    """Says what is wrong with a sample, in words that follow its name."""


def split_key(name: bytes) -> tuple[bytes, bytes] | None:
    """Return key and extension of a member's name, by WebDataset's rule; `None` for what belongs to no sample.

    The key is the path up to the first dot of the last part. Names that begin with a dot (or `__`: WebDataset's own)
    and names without a dot belong to no sample.
    """
    folder, slash, base = name.rpartition(b"/")
    stem, _, extension = base.partition(b".")
    if not stem or not extension or (stem.startswith(b"__") and stem.endswith(b"__")):
        return None
    return folder + slash + stem, extension.lower()


class TarIndexer:
    """The state of the pass over all shards; `run` fills an `IndexWriter`.

    Attributes:
        writer: the index; a row's numbers are (shard and header blocks, where the data starts, its bytes, its check).
        labels: what the labels are.
        digest: of keys, sizes and labels in order, and of the shards' sizes; not of where the shards lie.
        identities: of each shard, as `identity` makes it.
    """

    def __init__(self, config: Config, name: str) -> None:
        self.labels = Labels(name, whole=config.label_separator == "")
        self.digest = hashlib.blake2b(digest_size=8)
        self.identities: list[list[int]] = []
        self._name = name
        self._index = config.index
        self._image_extensions = [part.lower().encode() for part in _parts(config.x_column)]
        self._parts: list[LabelPart] | None = None
        if config.label_columns == 0:
            self._parts = []
        elif config.label_columns is not None:
            raise ManifestError(
                f"cannot take label_columns={config.label_columns} from {name}: members have no order; "
                'name the labels with y_column ("cls", or "json:label"), or give label_columns=0 for no labels'
            )
        elif config.y_column is not None:
            parts = [part.partition(":") for part in _parts(config.y_column)]
            self._parts = [(extension.lower().encode(), key or None) for extension, _, key in parts]
        self._is_guessed = self._parts is None
        self._folders: list[bytes] = []  # the first two that samples of a guessed data set lie in
        self._n_json_checked = 0
        self._bad = 0
        self._first_bad = ""
        self.writer = IndexWriter(4, self.labels)

    def run(self, paths: list[str]) -> None:
        """Index the shards at `paths`.

        Raises:
            ManifestError: if a shard cannot be read, or a sample does not fit (the first, and how many more).
        """
        for number, shard in enumerate(scan_shards(paths, self._index)):
            self._samples(number, shard.name, shard.members)
            self.identities.append(shard.identity)
            self.digest.update(b"shard %d\n" % shard.n_bytes)
        if self._bad:
            more = f" ({self._bad - 1} more bad samples after it)" if self._bad > 1 else ""
            raise ManifestError(
                f"cannot use {self._first_bad}{more}; write the shard again, or see x_column and y_column"
            )
        if not self.writer.samples:
            raise ManifestError(
                f"cannot serve {self._name}: it has no samples (such as 0001.jpg and 0001.cls); check the shards"
            )
        if self._is_guessed and not self._parts and len(self._folders) > 1:
            folders = _first(list(map(printable, self._folders)))
            raise ManifestError(
                f"cannot tell the labels of {self._name}: its samples have none, and lie in folders that may be classes"
                f" ({folders}, ...); write a .cls member for each sample, {_NO_LABELS}"
            )
        self.digest.update(repr((self.labels.kind, self.labels.count, list(self.labels.names))).encode())

    def _samples(self, number: int, name: str, headers: ShardMembers) -> None:
        rows: list[tuple[int, int, int, int]] = []
        labels: list[Numbers] = []
        said: list[bytes] = []
        for key, members in grouped_members(headers):
            try:
                extension, image = self._image(members)
                label = self._label(f"{name} sample {printable(key)}", headers, members, extension)
            except (BadSample, BadLabel, BadLine) as bad:
                self._bad += 1
                self._first_bad = self._first_bad or f"{name} sample {printable(key)}: {bad}"
                continue
            if len(self._folders) < 2 and (folder := key.rpartition(b"/")[0]) not in self._folders:
                self._folders.append(folder)
            check = check_of(image) if headers.is_listed else UNCHECKED
            rows.append((number << BLOCKS_BITS | blocks_of(image), image.data_at, image.n_bytes, check))
            labels.append(label)
            said.append(b"%s\0%s\0%d\0%s\n" % (key, extension, image.n_bytes, repr(label).encode()))
            if len(rows) == _ROWS:
                self._add(rows, labels, said)
        self._add(rows, labels, said)

    def _add(self, rows: list[tuple[int, int, int, int]], labels: list[Numbers], said: list[bytes]) -> None:
        if not self._bad:
            self.writer.add(rows, labels)
        self.digest.update(b"".join(said))
        for each in (rows, labels, said):
            each.clear()

    def _image(self, members: dict[bytes, list[Member]]) -> tuple[bytes, Member]:
        """Return the image's extension and its member."""
        if self._image_extensions:
            found = [extension for extension in self._image_extensions if extension in members][:1]
        else:
            found = [extension for extension in members if extension in _IMAGES]
            if not found:
                found = [extension for extension in members if extension.rpartition(b".")[2] in _IMAGES]
        if not found:
            what = f"no {_listing(self._image_extensions)}" if self._image_extensions else "no image"
            raise BadSample(f"it has {what} among its members ({_listing(members)})")
        if len(found) > 1:
            raise BadSample(
                f"it has {len(found)} images ({_listing(found)}); give x_column={_text(found[0])!r} or another"
            )
        return found[0], single_member(members, found[0])

    def _label(self, name: str, headers: ShardMembers, members: dict[bytes, list[Member]], image: bytes) -> Numbers:
        if self._parts is None:
            self._parts = self._find_label(name, headers, members, image)
        if not self._parts:
            if self._is_guessed and (parts := self._possible_labels(headers, members, image)):
                part = parts[0]
                raise BadSample(
                    f"it has a label (.{part}), and the first sample has none; give y_column={part!r}, {_NO_LABELS}"
                )
            return ()
        values = []
        for extension, key in self._parts:
            if extension not in members:
                raise BadSample(f"it has no label .{_text(extension)} ({_listing(members)})")
            member = single_member(members, extension)
            values.append(self._value(headers, member, extension, key))
        return self.labels.take(values)

    def _find_label(
        self, name: str, headers: ShardMembers, members: dict[bytes, list[Member]], image: bytes
    ) -> list[LabelPart]:
        """Return where the label is by the first sample: `.cls`, a usual key of `.json`, or nowhere.

        An unknown member is never left out in silence: the label would be the sample's number.

        Raises:
            ManifestError: if there are other members, and none is usual for labels.
        """
        if b"cls" in members:
            return [(b"cls", None)]
        if b"json" in members:
            member = single_member(members, b"json")
            try:
                key = known_label(list(json_object(content_of(headers, member))))
            except NoObject:
                key = None
            except BadLine as bad:
                raise BadSample(f"its {_shown(member.name)}: {bad}; give label_columns=0 for no labels") from None
            if key is not None:
                return [(b"json", key)]
        parts = self._possible_labels(headers, members, image)
        if parts:
            dotted = next((part for part in parts if part.endswith(".cls")), None)
            hint = f"; a sample's name ends at its first dot, so rename .{dotted} to be a .cls" if dotted else ""
            raise ManifestError(
                f"cannot tell which member of {name} has the label: beside its image there are "
                f"{_first(['.' + part for part in parts])}; give y_column={dotted or parts[0]!r}, {_NO_LABELS}{hint}"
            )
        return []

    def _possible_labels(self, headers: ShardMembers, members: dict[bytes, list[Member]], image: bytes) -> list[str]:
        """Return what `y_column` could name beside the sample's image: extensions, and keys of JSON.

        Other images are no labels. The keys of a few samples are looked at only.
        """
        found = []
        for extension in members:
            if extension == image or extension.rpartition(b".")[2] in _IMAGES:
                continue
            if extension != b"json":
                found.append(_text(extension))
            elif self._n_json_checked < _MAX_JSON_CHECKED:
                self._n_json_checked += 1
                try:
                    keys = json_object(content_of(headers, single_member(members, b"json")))
                except NoObject:
                    found.append("json")
                except BadLine:
                    continue
                else:
                    usual = known_label(list(keys))
                    found += [f"json:{key}" for key in ([usual] if usual else keys)]
        return found

    def _value(self, headers: ShardMembers, member: Member, extension: bytes, key: str | None) -> Any:
        content = content_of(headers, member)
        shown = f"its label {_shown(member.name)}"
        if key is not None:
            try:
                return json_value(json_object(content), key)
            except BadLine as bad:
                raise BadSample(f"{shown}: {bad}") from None
        try:
            text = content.decode().strip()
        except UnicodeDecodeError:
            raise BadSample(f"{shown} is not text in UTF-8 ({show(content, 40)})") from None
        if not text:
            raise BadSample(f"{shown} is empty")
        if extension == b"json":
            raise BadSample(f"{shown} is JSON; give its key, such as y_column='json:label'")
        try:
            return [_as_number(part) for part in text.split()]
        except ValueError:
            return text


def _parts(option: str | None) -> list[str]:
    """Return the parts of a column option; WebDataset separates alternatives with semicolons."""
    if option is None:
        return []
    return [part.strip().removeprefix(".") for part in option.replace(";", ",").split(",") if part.strip()]


def _as_number(text: str) -> int | float:
    if "_" in text:
        raise ValueError
    try:
        return int(text)
    except ValueError:
        return float(text)


def grouped_members(headers: ShardMembers) -> Iterator[tuple[bytes, dict[bytes, list[Member]]]]:
    """Yield key and members, by extension, of each run of members with one key."""
    current: bytes | None = None
    members: dict[bytes, list[Member]] = {}
    for member in headers:
        if member.kind == b"5" or (split := split_key(member.name)) is None:
            continue
        key, extension = split
        if key != current:
            if current is not None:
                yield current, members
            current, members = key, {}
        members.setdefault(extension, []).append(member)
    if current is not None:
        yield current, members


def single_member(members: dict[bytes, list[Member]], extension: bytes) -> Member:
    """Return the member with `extension`; it must be one, with content of its own."""
    first, *more = members[extension]
    if more:
        raise BadSample(f"it has {len(more) + 1} members {_shown(first.name)}")
    kinds = {b"1": "a hard link", b"2": "a symbolic link", b"S": "a sparse file"}
    if first.kind != b"0":
        kind = kinds.get(first.kind, f"of the type {show(first.kind)}")
        raise BadSample(f"its member {_shown(first.name)} is {kind}, and not a regular file")
    return first


def content_of(headers: ShardMembers, member: Member) -> bytes:
    """Return what a small member holds; raises `BadSample` if it is no small one."""
    if member.n_bytes > _MAX_LABEL_BYTES:
        raise BadSample(
            f"its label {_shown(member.name)} has {member.n_bytes} bytes, more than a label may have "
            f"({_MAX_LABEL_BYTES})"
        )
    return headers.read(member.data_at, member.n_bytes)


def _shown(name: bytes) -> str:
    return printable(name.rpartition(b"/")[2])


def _text(extension: bytes) -> str:
    return extension.decode("utf-8", "backslashreplace")


def _listing(extensions: Iterable[bytes]) -> str:
    return _first([f".{_text(extension)}" for extension in extensions])


def _first(names: list[str]) -> str:
    return ", ".join(map(one_line, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
