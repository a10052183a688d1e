"""What tells one state of an object from another, and a forbidden object from a store that forbids all."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from prefetchd.data.stores.faults import Forbidden, LastingFault
from prefetchd.data.stores.forbidden import ReadBefore
from prefetchd.data.stores.identity import condition, has_etag, identity_of, is_same, state_of

TIME = datetime.datetime(2026, 11, 29, 12, 0, 0, 5000, datetime.UTC)


def told(size: int = 9, e_tag: str | None = '"a"', time: datetime.datetime = TIME) -> dict[str, Any]:
    return {"size": size, "e_tag": e_tag, "last_modified": time}


LATER, NEVER = TIME + datetime.timedelta(seconds=1), datetime.datetime.fromtimestamp(0, datetime.UTC)


@pytest.mark.parametrize(
    ("first", "then", "is_the_same"),
    [
        (told(), told(), True),
        (told(), told(time=LATER), True),  # copied within the store
        (told(), told(size=8), False),
        (told(), told(e_tag='"b"'), False),
        (told(), told(e_tag=None), False),
        (told(), told(e_tag='W/"a"'), True),
        (told(e_tag='W/"a"'), told(), True),
        (told(e_tag="a"), told(), True),  # as Azure's listings have it
        (told(), told(e_tag="a"), True),
        (told(e_tag='W/"a"'), told(e_tag='W/"b"'), False),
        (told(e_tag=None), told(e_tag=None), True),
        (told(e_tag=None), told(e_tag=None, time=TIME.replace(microsecond=0)), True),
        (told(e_tag=None), told(e_tag=None, time=LATER), False),
        (told(e_tag=None), told(size=8, e_tag=None), False),
        (told(e_tag=None, time=NEVER), told(e_tag=None, time=NEVER), True),
        (told(e_tag=None, time=NEVER), told(size=8, e_tag=None, time=NEVER), False),
    ],
)
def test_an_object_is_the_same_as_far_as_the_store_says(
    first: dict[str, Any], then: dict[str, Any], is_the_same: bool
) -> None:
    assert is_same(then, identity_of(first)) == is_the_same


def test_only_strong_tags_are_conditions_and_only_tags_name_what_is_kept() -> None:
    strong, weak = identity_of(told()), identity_of(told(e_tag='W/"a"'))
    time, nothing = identity_of(told(e_tag=None)), identity_of(told(e_tag=None, time=NEVER))
    assert [condition(each) for each in (strong, weak, time, nothing)] == [{"if_match": '"a"'}, {}, {}, {}]
    assert [has_etag(each) for each in (strong, weak, time, nothing)] == [True, True, False, False]
    assert [state_of(each) is None for each in (strong, weak, time, nothing)] == [False, False, False, True]


def verdict(read: list[str], *, readable: bool = False, listed: bool = False) -> str:
    before = ReadBefore()
    for url in read:
        before.note(url)
    asked: list[str] = []

    def can_read(url: str) -> bool:
        asked.append(url)
        return readable

    fault = before.verdict("s3://b/x", can_read, lambda: listed, 0.0)
    assert "s3://b/x" not in asked
    return {Forbidden: "content", LastingFault: "environment"}[type(fault)]


def test_a_forbidden_object_is_bad_where_others_can_be_read_and_else_nothing_is() -> None:
    assert verdict(["s3://b/a", "s3://b/x"], readable=True) == "content"
    assert verdict(["s3://b/a", "s3://b/x"]) == "environment"
    assert verdict(["s3://b/x", "s3://other/a"], readable=True) == "environment"
    assert verdict([]) == "environment"
    assert verdict([], listed=True) == "content"
