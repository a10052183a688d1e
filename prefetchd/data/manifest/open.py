"""Opens a list or a directory: how is it written, are all its lines good, and where are they.

Called once, by `Manifest.open` in the daemon; readers never import it. Its result is a dictionary of plain values, the
*facts*, from which `Manifest` works wherever it is attached.
"""

from __future__ import annotations

import glob
import json
import os
import re
import stat
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from hashlib import blake2b
from itertools import islice
from typing import Any

from prefetchd.config.options import Config
from prefetchd.data.files import (
    CLOCK_STEP_NS,
    cannot_open,
    check_complete,
    identity,
    open_regular,
    read_exactly,
    write_all,
)
from prefetchd.data.kinds import IMAGE_SUFFIXES
from prefetchd.data.labels import check_names, sorted_classes
from prefetchd.data.manifest.dialect import Dialect, Line, MalformedLine, is_sample, sample_lines
from prefetchd.data.manifest.folder import list_folder
from prefetchd.data.manifest.json import JSON_SUFFIXES, is_json_object
from prefetchd.data.manifest.line import split_classes
from prefetchd.data.manifest.scan import Scan
from prefetchd.data.manifest.sniff import SNIFFED_LINES, sniff, suffix_of
from prefetchd.data.stores.urls import is_url, parent
from prefetchd.errors import ManifestError, one_line
from prefetchd.ipc.descriptors import memfd, seal

_MAX_VECTOR = 65_536  # classes of a 0/1 vector
_PEEKED_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html)\b", re.IGNORECASE)
_PAGE_BYTES = 256
_OTHER_SUFFIXES = {
    ".json": "JSON in one piece", ".zip": "a zip archive", ".gz": "compressed", ".bz2": "compressed",
    ".xz": "compressed", ".zst": "compressed", ".pkl": "a pickle", ".h5": "an HDF5 file",
    ".tfrecord": "TFRecords", ".xlsx": "a spreadsheet",
}  # fmt: skip


def open_manifest(config: Config, malformed: list[MalformedLine] | None = None) -> tuple[dict[str, Any], list[int]]:
    """Return the facts, and the descriptors of the index and of the list; the caller owns them.

    A third is that of the objects' identities, if the list names objects.

    Args:
        config: the options.
        malformed: collects malformed lines, which are left out then; without it they are refused.

    Raises:
        ManifestError: if the list cannot be read, is empty, or has a bad line.
    """
    source = os.path.expanduser(config.source)
    name = one_line(config.source)
    is_folder = _is_folder(source, name)
    index_fd = memfd("prefetchd-manifest-index")
    fds = [index_fd]
    words: Sequence[int] = ()
    try:
        if is_folder:
            fds.append(memfd("prefetchd-manifest"))
            facts, words = _open_folder(config, source, name, index_fd, fds[1])
        else:
            fds.append(_open_list(source, name))
            facts = _scan_file(config, source, name, index_fd, fds[1], malformed)
        if facts["is_far"]:
            from prefetchd.data.stores.pins import make_pins

            has_masks = facts["dialect"]["label_kind"] == "path"
            fds.append(make_pins(facts["samples"] * (1 + has_masks), words))
        return facts, fds
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def _is_folder(source: str, name: str) -> bool:
    if is_url(source):
        from prefetchd.data.manifest.far import is_prefix

        return is_prefix(source)
    try:
        return stat.S_ISDIR(os.stat(source).st_mode)
    except (OSError, ValueError) as error:
        if glob.has_magic(source) or "{" in source:
            raise ManifestError(
                f"cannot open {name}: there is no such file, and patterns name tar shards, Parquet files and .npy "
                "shards only; give a list file, or a directory"
            ) from None
        raise cannot_open(name, error) from None


def _open_list(source: str, name: str) -> int:
    """Return the descriptor, the caller's, of a list file, or of the content of one that is an object."""
    suffix = suffix_of(source)
    if suffix in IMAGE_SUFFIXES:
        raise ManifestError(
            f"cannot read {name} as a list of images: {suffix} is an image; give a list of images, or their directory"
        )
    if is_url(source):
        from prefetchd.data.stores.download import download

        fd = download(source)
        if _PAGE.match(os.pread(fd, _PAGE_BYTES, 0)):
            os.close(fd)
            raise ManifestError(
                f"cannot read {name} as a list of images: it is a web page (HTML), and a web server lists no folders; "
                "give the URL of a text, CSV, TSV or JSONL file of paths and labels"
            )
        is_json_lines = suffix == ".json" and _is_json_lines(f"/proc/self/fd/{fd}")
    else:
        fd = -1
        is_json_lines = suffix == ".json" and _is_json_lines(source)
    if suffix in _OTHER_SUFFIXES and not is_json_lines:
        if fd >= 0:
            os.close(fd)
        raise ManifestError(
            f"cannot read {name} as a list of images: {suffix} is {_OTHER_SUFFIXES[suffix]}; "
            "give a text, CSV, TSV or JSONL file of paths and labels, or a directory of class folders"
        )
    return fd if fd >= 0 else open_regular(source, name)


def _is_json_lines(source: str) -> bool:
    """Return whether a `.json` file holds JSON lines, as many programs write them: an object, and more below it."""
    try:
        with open(source, "rb") as file:
            lines = [line for line in file.read(_PEEKED_BYTES).removeprefix(_BOM).split(b"\n") if is_sample(line)]
    except OSError:
        return False  # opening it raises the reason
    return len(lines) > 1 and is_json_object(lines[0])


def _scan_file(
    config: Config, source: str, name: str, index_fd: int, fd: int, malformed: list[MalformedLine] | None
) -> dict[str, Any]:
    """Find out the dialect, check all lines, write the index; return the facts for `handle()`."""
    _wait_for_the_clock(os.fstat(fd))
    before = identity(os.fstat(fd))
    size = before[2]
    head = read_exactly(fd, 0, min(4, size), name)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ManifestError(f"cannot read {name}: it is UTF-16; save it as UTF-8")
    start = 3 if head.startswith(_BOM) else 0
    hash_rows = suffix_of(source) not in (".json", *JSON_SUFFIXES)  # no object begins with #
    rows = sample_lines(fd, start, size, 1, name, hash_rows=hash_rows)
    first = [Line(*row) for row in islice(rows, SNIFFED_LINES)]
    if not first:
        what = "it has 0 bytes" if not size else f"its {size} bytes are all blank lines and comments"
        raise ManifestError(f"cannot serve {name}: it has no samples ({what}); write a line `path label` for each")
    path, root = _homes(config, source)
    encoded_root = os.fsencode(root)
    dialect, skipped = sniff(config, name, first, lambda name: os.path.isfile(os.path.join(encoded_root, name)))
    dialect = replace(dialect, hash_rows=hash_rows)
    first_line = 1
    if skipped:
        start, first_line = first[skipped - 1].end, first[skipped - 1].number + 1
    scan = Scan(dialect, name, tolerant=malformed is not None)
    scan.run(fd, size, start, first_line, index_fd)
    check_complete(fd, before, name)
    if not scan.samples:
        raise ManifestError(f"cannot serve {name}: it has no samples below its header; write a line for each sample")
    if malformed is not None:
        malformed += scan.malformed
    classes = _classes(config, name, dialect, scan.labels)
    return _facts(scan, dialect, classes, name, path, root, None if is_url(source) else before, index_fd)


def _homes(config: Config, source: str) -> tuple[str, str]:
    """Return path or URL of the list, and what its relative paths start from."""
    path = source if is_url(source) else os.path.abspath(source)
    root = parent(path)
    if config.root is not None:
        root = config.root if is_url(config.root) else os.path.abspath(os.path.expanduser(config.root))
    return path, root


def _classes(config: Config, name: str, dialect: Dialect, labels: set[bytes]) -> tuple[str, ...] | None:
    """Return the sorted names of the classes, where labels are names.

    Raises:
        ManifestError: if labels look like lists of labels, or there are too many classes for a vector.
    """
    if dialect.label_kind == "class":
        names = sorted(label.decode("utf-8", "surrogateescape") for label in labels)
        if config.label_separator is None:
            check_names(names, name)
        return tuple(names)
    if dialect.label_kind != "classes":
        return None
    parts = {part for label in labels for part in split_classes(label, dialect.label_separator)}
    if not 1 <= len(parts) <= _MAX_VECTOR:
        raise ManifestError(
            f"cannot use label_separator={dialect.label_separator!r} with {name}: its labels name {len(parts)} "
            f"classes, and y has a number for each, at most {_MAX_VECTOR}; check the separator and y_column"
        )
    return tuple(sorted_classes([part.decode("utf-8", "surrogateescape") for part in parts]))


def _wait_for_the_clock(found: os.stat_result) -> None:
    """Wait until a write to the file would give it another time than it has.

    The readers start meanwhile, so this delays nothing.
    """
    age_ns = time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns)
    if 0 <= age_ns < CLOCK_STEP_NS:
        time.sleep((CLOCK_STEP_NS - age_ns) / 1e9)


def _open_folder(
    config: Config, source: str, name: str, index_fd: int, fd: int
) -> tuple[dict[str, Any], Sequence[int]]:
    """List a directory of class folders into `fd` and index that; return the facts for `handle()`.

    With them come the identities of objects, as `stores.pins` writes them.
    """
    for option in ("x_column", "y_column", "label_separator", "missing_label"):
        if getattr(config, option) is not None:
            raise ManifestError(f"cannot use {option} with {name}: it is a directory; leave the option out")
    if config.target == "mask":
        raise ManifestError(
            f"cannot take masks from {name}: a directory names classes; give a list with a line `image mask` for each"
        )
    if config.label_columns not in (None, 0, 1):
        raise ManifestError(
            f"cannot take label_columns={config.label_columns} from {name}: a directory gives one label, the class "
            "folder; leave the option out, or give 0 for no labels"
        )
    if is_url(source):
        from prefetchd.data.manifest.far import list_prefix

        root = source.rstrip("/")
        classes, words = list_prefix(f"{root}/", name, fd, label_columns=config.label_columns)
    else:
        root, words = os.path.abspath(source), ()
        classes = list_folder(root, name, fd, label_columns=config.label_columns)
    seal(fd)
    dialect = Dialect("tree", "none" if classes is None else "number", 0 if classes is None else 1)
    scan = Scan(dialect, name)
    scan.run(fd, os.fstat(fd).st_size, 0, 1, index_fd)
    return _facts(scan, dialect, classes, name, root, root, None, index_fd), words


def _facts(
    scan: Scan,
    dialect: Dialect,
    classes: tuple[str, ...] | None,
    name: str,
    path: str,
    root: str,
    identity: list[int] | None,
    index_fd: int,
) -> dict[str, Any]:
    classes_at = os.fstat(index_fd).st_size
    text = b"" if classes is None else json.dumps(classes).encode()
    write_all(index_fd, text)
    seal(index_fd)
    n_labels, is_vector = dialect.label_count, dialect.label_kind == "classes"
    meaning = {**asdict(dialect), "y": list(dialect.y)}
    scan.digest.update(json.dumps([meaning, classes], sort_keys=True).encode())
    return {
        "samples": scan.samples,
        "identity": identity,
        "path": os.fsencode(path),
        "root": os.fsencode(root),
        "dialect": meaning,
        "leaves_out_lines": bool(scan.malformed),
        "is_far": scan.any_url or is_url(root),
        "label_dtype": "float32" if scan.any_fraction or is_vector else "int64",
        "label_shape": [len(classes)] if is_vector and classes else [n_labels] if n_labels > 1 else [],
        "digest": blake2b(scan.digest.digest(), digest_size=8).hexdigest(),
        "name": name,
        "classes_at": classes_at,
        "classes_bytes": len(text),
    }
