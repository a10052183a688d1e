"""Numbers that would take seconds or for ever to write out are refused at once, in words, in every option."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import Any

import pytest

from prefetchd.config.options import OPTIONS
from prefetchd.config.validate import make_config
from prefetchd.errors import ConfigError

LONG: tuple[Any, ...] = (10**400, 10**5000, "9" * 5000, "1e99999999", "1e-99999999", Decimal("1E+9999999"))


@pytest.mark.parametrize("name", [*OPTIONS])
def test_a_very_long_number_is_an_option_or_is_refused(name):
    for value in (*LONG, [10**5000], {"a": 10**5000}):
        given: dict[str, Any] = {"source": "x.txt"} if name not in ("source", "mix") else {}
        before = time.process_time()
        try:
            made = make_config(**given, **{name: value})
        except ConfigError:
            pass
        else:
            made.digest()
        assert time.process_time() - before < 5  # of what took minutes


@pytest.mark.parametrize("share", LONG, ids=range(len(LONG)))
def test_a_share_of_very_many_digits_is_refused(share):
    with pytest.raises(ConfigError, match=r"cannot (use mix=|mix 'a\.txt')") as caught:
        make_config(mix={"a.txt": share, "b.txt": 1})
    assert len(str(caught.value)) < 900
    if isinstance(share, str):
        with pytest.raises(ConfigError):
            make_config(mix=[f"a.txt={share}", "b.txt=1"])


@pytest.mark.parametrize(
    "where",
    [{"label": float("nan")}, {"label": float("inf")}, {"label": [1, 10**5000]}, {"label": b"ab"}],
    ids=range(4),
)
def test_where_takes_numbers_and_text(where):
    with pytest.raises(ConfigError, match="cannot use where="):
        make_config(source="x.txt", where=where)


@pytest.mark.parametrize("split", ["0-0." + "0" * 9000 + "1%", "0-" + "9" * 9000 + "%"], ids=range(2))
def test_a_split_of_very_many_digits_is_refused(split):
    with pytest.raises(ConfigError, match="cannot use split="):
        make_config(source="x.txt", split=split)
