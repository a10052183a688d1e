"""The look at some of a list's objects as it is opened: whether the store gives any of them."""

from __future__ import annotations

from collections.abc import Sequence

from prefetchd.data.faults import SampleFault
from prefetchd.data.in_parallel import in_parallel
from prefetchd.data.stores.client import look


def why_unreadable(urls: Sequence[str]) -> str:
    """Return why none of the objects can be read, as the store says of the first; empty if one can."""
    reasons = list(in_parallel(_reason, urls))
    return "" if "" in reasons or not reasons else reasons[0]


def _reason(url: str) -> str:
    try:
        look(url)
    except SampleFault as fault:
        return str(fault)
    return ""
