"""Options in the spelling of the command line.

Messages name options as Python does (`on_error="skip"`), since the same daemon serves both. What a command prints
passes through `as_flags`, which turns those names into flags (`--on-error skip`).
"""

from __future__ import annotations

import logging
import re
import shlex

from prefetchd.config.options import OPTION_TYPES, OPTIONS, flag_of

# A name at the start of a word: not in a path (`/data/root=1`), not behind a flag's dashes. With an underscore it is no
# English word, so it counts without `=` too.
_OF_COMMANDS = ("epoch", "batch")  # what `prefetchd preview` has, and Python's functions have as arguments
_NAMES = "|".join(sorted((*(name for name in OPTIONS if name != "source"), *_OF_COMMANDS), key=len, reverse=True))
_BEFORE = r"""(?<![\w./\-"'])(?<!set_options\()"""  # what is said of Python stays Python
_SPELLED = re.compile(rf"""{_BEFORE}({_NAMES})(?:=("[^"]*"|'[^']*'|\([^)]*\)|[^\s,;:()"']*)|(?=[^\w./-]|$))""")

# Options that are English words, where a sentence says that they do not go together.
_REFUSED = re.compile(rf"(cannot use )({_NAMES})(?=:? )")
_BESIDE = re.compile(
    rf"(cannot use \S+(?: [^-\s]\S*)? (?:together with|without) )({_NAMES})(?:( or )({_NAMES}))?(?=[:;,. ])"
)


def as_flags(text: str) -> str:
    """Return `text` with every option in the spelling of the command line.

    >>> as_flags('cannot decode a.jpg: it is empty; use on_error="skip" or a larger memory_budget')
    'cannot decode a.jpg: it is empty; use --on-error skip or a larger --memory-budget'
    """
    return _BESIDE.sub(_beside, _REFUSED.sub(_beside, _SPELLED.sub(_flag, text)))


def _beside(match: re.Match[str]) -> str:
    words = match.groups(default="")
    return "".join("--" + flag_of(word) if number % 2 and word else word for number, word in enumerate(words))


def _flag(match: re.Match[str]) -> str:
    name, value = match[1], match[2]
    flag = "--" + (name if name in _OF_COMMANDS else flag_of(name))
    if value is None:
        return flag if "_" in name else match[0]
    if value[:1] == "(":  # a tuple: (224, 224)
        value = re.sub(r",\s*", "x" if "size" in name else ",", value.strip("()").rstrip(","))
    ends = re.search(r"[.]+$", value)  # the full stop of a sentence
    rest = ends[0] if ends and value[:1] not in "\"'" else ""
    is_quoted = value[:1] in ("'", '"')
    value = value.removesuffix(rest).strip("\"'")
    if OPTION_TYPES.get(name) is bool and value in ("True", "False"):
        return (flag if value == "True" else flag.replace("--", "--no-", 1)) + rest
    if is_quoted:
        value = shlex.quote(value)  # '' for an empty one, and marks that a shell would take for its own
    return f"{flag} {value}{rest}" if value else flag + rest


class FlagFormatter(logging.Formatter):
    """A formatter whose messages name options as flags."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name of `logging`
        """Return the line of `record`."""
        record.message = as_flags(record.message)
        return super().formatMessage(record)
