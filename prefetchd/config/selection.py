"""The options `where` and `split`: from what a user writes to their one form, and what that form means. Pure.

{"label": [1, 3], "fold": 0}  ->  ("label=1,3", "fold=0")
"0-90 %"                      ->  "0-90%"
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from prefetchd.config.convert import absolute_path, path, plain, wrong
from prefetchd.config.order_options import BALANCED, OrderOptions, is_weight_file

LABEL = "label"  # names the labels, in every kind of source
_SPLIT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%?\s*-\s*(\d+(?:\.\d+)?)\s*%\s*")
_SPLIT_CHARACTERS = 200
_WHERE = "values by column, such as {'label': [1, 3]}, or text such as label=1,3"


def canonical_where(value: object) -> tuple[str, ...]:
    """Return the conditions as texts `column=value,value`, each column once.

    Args:
        value: a mapping of columns to a value or several; a text, or several.

    Raises:
        ConfigError: if it is something else, or a column has no value.
    """
    if value is None or value in ("", (), []):
        return ()
    found: dict[str, list[str]] = {}
    if isinstance(value, Mapping):
        items = [(str(column), _listed(each)) for column, each in value.items()]
    else:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
            raise wrong("where", value, _WHERE)
        items = [_parse(text) for text in texts]
    for column, values in items:
        column = column.strip()
        if not column or "=" in column or not values or column in found:
            raise wrong("where", value, _WHERE)
        found[column] = list(dict.fromkeys(values))
    return tuple(f"{column}={_written(values)}" for column, values in found.items())


def parse_where(where: Sequence[str]) -> dict[str, list[str]]:
    """Return the values by column, as text, of the option in its one form."""
    return dict(_parse(text) for text in where)


def order_columns(config: OrderOptions) -> set[str]:
    """Return the columns that choose or weigh samples, besides the labels."""
    weights = set() if config.weights is None or not is_weight_column(config.weights) else {config.weights}
    return (set(parse_where(config.where)) | weights) - {LABEL}


def is_weight_column(weights: str) -> bool:
    """Return whether the option `weights` names a column; else it is a file, in memory (`<9 numbers>`) or balanced."""
    return weights != BALANCED and not is_weight_file(weights) and not weights.startswith("<")


def canonical_weights(value: object) -> str | None:
    """Return `balanced`, the name of a column, or the absolute path of a file.

    Raises:
        ConfigError: if it is something else.
    """
    found = path(value, "weights")
    return absolute_path(found) if found is not None and is_weight_file(found) else found


def _parse(text: str) -> tuple[str, list[str]]:
    column, equals, rest = text.partition("=")
    if not equals:
        raise wrong("where", text, _WHERE)
    import csv  # here and below: few loaders need these, and each start would wait for them

    return column, next(csv.reader([rest]), [])


def _listed(values: Any) -> list[str]:
    values = plain(values)
    several = values if isinstance(values, Sequence) and not isinstance(values, str | bytes) else [values]
    if not all(isinstance(each, str | int | float) for each in map(plain, several)):
        raise wrong("where", values, _WHERE)
    try:
        return [_text(plain(each)) for each in several]
    except (ValueError, OverflowError):  # no number, or one of very many digits
        raise wrong("where", values, _WHERE) from None


def _text(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError
    return str(int(value)) if isinstance(value, bool | float) and value == int(value) else str(value)


def _written(values: Sequence[str]) -> str:
    import csv

    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(values)
    return text.getvalue()


def canonical_split(value: object) -> str | None:
    """Return the part as `0-90%`.

    Raises:
        ConfigError: if it is no part from 0 to 100 %.
    """
    if value is None:
        return None
    from fractions import Fraction

    match = _SPLIT.fullmatch(value) if isinstance(value, str) else None
    if match is None or len(match[0]) > _SPLIT_CHARACTERS or not Fraction(match[1]) < Fraction(match[2]) <= 100:
        raise wrong("split", value, "a part of 0 to 100 %, such as 0-90% (and 90-100% for the rest)")
    return f"{_percent(match[1])}-{_percent(match[2])}%"


def _percent(text: str) -> str:
    from decimal import Decimal

    return format(Decimal(text).normalize(), "f")


def parse_split(split: str) -> tuple[int, int]:
    """Return the part as two numbers from 0 to 2**64: hashes from the first up to the second are in it."""
    from fractions import Fraction

    low, high = split.removesuffix("%").split("-")
    return int(Fraction(low) / 100 * 2**64), int(Fraction(high) / 100 * 2**64)
