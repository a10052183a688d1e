"""One look at the disk when a list is opened: are its files there, and if none is, what should the path be.

The registry calls it in the daemon, once a list, or a Parquet file with paths, was checked. Without it, readers would
find a wrong root sample by sample, and under `on_error="skip"` every batch would be empty. It passes over single
missing files.
"""

from __future__ import annotations

import os
import re

from prefetchd.config.options import Config
from prefetchd.data.kinds import IMAGE_SUFFIXES
from prefetchd.data.records import Records
from prefetchd.data.stores.urls import is_url
from prefetchd.errors import ManifestError, one_line

_LOOKED_AT = 8
_MOST_ENTRIES = 4096  # of a folder, when a name in another spelling is looked for
_MOST_FOLDERS = 64
_PARENTS = 4
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_SHOWN = 200


def check_some_exist(records: Records, config: Config, field: tuple[int, str] | None = None) -> None:
    """Look at samples that are spread over the data set.

    Args:
        records: the samples, each of which may be a file of its own.
        config: the options, and where the paths start from.
        field: number and name of a field, if not the sample's own path is to be looked at but that of a field.

    Raises:
        ManifestError: if none of them is there, with the spelling or the root that would lead to the first.
    """
    count = min(_LOOKED_AT, len(records))
    spread = records.samples(sorted({number * (len(records) - 1) // max(1, count - 1) for number in range(count)}))
    if field is None:  # larger objects were looked at as they were indexed
        spread = [sample for sample in spread if sample.pin >= 0 or not is_url(sample.path)]
    paths = [sample.path if field is None else sample.values[field[0]] for sample in spread]
    if not paths or not all(is_url(path) or _is_missing(path) for path in paths):
        return
    reason = ""
    if records.is_far:
        from prefetchd.data.stores.first_look import why_unreadable

        reason = why_unreadable([path for path in paths if is_url(path)])
        if not reason and any(map(is_url, paths)):
            return
    source, first = os.path.expanduser(config.source), paths[0]
    folder = source if os.path.isdir(source) else os.path.dirname(source)
    root = config.root if config.root is not None else folder
    root = root if is_url(root) else os.path.abspath(os.path.expanduser(root))
    what = "readable" if reason else "there"
    looked = f"none of {len(spread)} samples looked at is {what}"
    if len(records) == 1:
        looked = f"its only sample is not {what}"
    where = records.where(spread[0]).removeprefix(f"{records.name} ")
    if field is not None:
        where += f", field {field[1]}: {one_line(first)[-_SHOWN:]}"
    if is_url(first):
        raise ManifestError(
            f"cannot serve {records.name}: {looked}, such as {where} ({reason}); check the URLs, root and the "
            "credentials"
        )
    raise ManifestError(
        f"cannot serve {records.name}: {looked}, such as {where} (root {root}); "
        f"{_hint(first.removeprefix(root.rstrip('/') + '/'), root)}"
    )


def _is_missing(path: str) -> bool:
    """Return whether there is surely no such file; what cannot be looked at may be there."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return True
    except OSError:
        return False
    return False


def _hint(written: str, root: str) -> str:
    """Return what to do about a path that leads nowhere, as it is written in the list."""
    return (
        _other_system(written)
        or _misread(written, root)
        or _other_spelling(written, root)
        or _other_root(written, root)
        or "give root, the folder that the paths start from, or mend the paths"
    )


def _other_system(written: str) -> str:
    if is_url(written):
        return "these paths are of files alone: give fields, whose images may be objects, or download them"
    if "://" in written:
        return "objects are read from s3://, gs://, az:// and https://: download what is elsewhere, and write the path"
    if _DRIVE.match(written):
        return "it is a Windows path with a drive: write paths from a folder on, with / in place of \\, and give root"
    if written.startswith("~"):
        return "~ is not expanded in a list: write the whole path, or give root"
    if "$" in written and os.path.expandvars(written) != written:
        return "variables are not expanded in a list: write the whole path, or give root"
    return ""


def _misread(written: str, root: str) -> str:
    """Return a hint where a part of the path is there: the line was split in another way than it was meant."""
    for mark, name in ((";", "semicolon"), (",", "comma"), ("|", "bar"), (":", "colon")):
        parts = [part.strip() for part in written.split(mark)]
        if len(parts) > 1 and any(part and _found(part, root) for part in parts):
            if mark in "|:":
                return f"a {name} separates its fields, which no list may have: write a comma, and call the list .csv"
            return f"a {name} separates its fields: call the list .csv, or give x_column and y_column by number"
    words = written.split()
    for n_words in range(len(words) - 1, 0, -1):
        start = " ".join(words[:n_words])
        if _found(start, root):
            return f'{_short(start)} is there: put quotes around a label of several words, as in "{words[-1]} ..."'
    if len(words) > 1 and _found(" ".join(words[1:]), root):
        return "the rest of it, after the first word, is there: write the path first and the label after it"
    if any(mark in written for mark in "*?["):
        return "a list names single files, and no patterns: write a line for each file"
    return ""


def _other_spelling(written: str, root: str) -> str:
    turned = written.replace("\\", "/")
    if turned != written:
        there = "" if not _found(turned, root) else f", and {_short(turned)} is there"
        return f"it is written with backslashes, as on Windows{there}: write / in their place"
    folder, name = os.path.split(os.path.join(root, written))
    names = _entries(folder)
    suffixed = [each for each in names if os.path.splitext(each)[0] == name and each.lower().endswith(IMAGE_SUFFIXES)]
    if suffixed:
        return (
            f"the suffix is missing: {_short(suffixed[0])} is there; write {os.path.splitext(suffixed[0])[1]} behind it"
        )
    stem = os.path.splitext(name)[0]
    other = [each for each in names if os.path.splitext(each)[0] == stem and each != name]
    if other:
        return f"{_short(other[0])} is there, with another suffix: mend the paths"
    found = _in_other_case(written, root)
    return f"{_short(found)} is there, in another case (upper, lower): write it like that" if found else ""


def _in_other_case(written: str, root: str) -> str:
    """Return the path that is there in another case of letters; empty if there is none."""
    here, found = (os.sep, []) if os.path.isabs(written) else (root, [])
    for part in written.strip("/").split("/"):
        names = [part] if os.path.lexists(os.path.join(here, part)) else _entries(here)
        match = next((name for name in names if name.lower() == part.lower()), None)
        if match is None:
            return ""
        here = os.path.join(here, match)
        found.append(match)
    return "/".join(found)


def _other_root(written: str, root: str) -> str:
    if not os.path.isdir(root):
        return f"the root is no folder: give root, the folder that the paths start from ({_short(root)} is not there)"
    parent = root
    for _ in range(_PARENTS):
        parent = os.path.dirname(parent)
        if parent not in ("", os.sep) and _found(written, parent):
            return f"it is in another folder: give root={parent!r}"
    for name in _entries(root)[:_MOST_FOLDERS]:
        if os.path.isdir(folder := os.path.join(root, name)) and _found(written, folder):
            return f"it is in another folder: give root={folder!r}"
    parts = written.strip("/").split("/")
    for n_left_out in range(1, len(parts)):
        rest = "/".join(parts[n_left_out:])
        if _found(rest, root):
            cut = "/".join(parts[:n_left_out])
            return f"{_short(rest)} is there under the root: take {_short(cut)}/ off the paths, or give another root"
    return ""


def _found(path: str, root: str) -> bool:
    try:
        return os.path.isfile(os.path.join(root, path))
    except ValueError:
        return False


def _entries(folder: str) -> list[str]:
    names = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                names.append(entry.name)
                if len(names) >= _MOST_ENTRIES:
                    break
    except (OSError, ValueError):
        return []
    return sorted(names)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else "..." + text[-_SHOWN:]
