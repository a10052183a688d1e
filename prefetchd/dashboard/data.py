"""What the page of data asks: class balance from the labels, and what a verification has found. Called in threads."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prefetchd.dashboard.query import text
from prefetchd.errors import PrefetchdError, one_line

if TYPE_CHECKING:
    from starlette.requests import Request

    from prefetchd.client.single import Served
    from prefetchd.dashboard.findings import FindingsFiles
    from prefetchd.dashboard.index import Index

_SHOWN_CLASSES = 60


class DataBrowser:
    """Answers what the page of data asks.

    Args:
        served: returns what a daemon says of the data set that a request names.
        index: knows the labels; borrowed.
        findings: what verifications have found.
    """

    def __init__(self, served: Callable[[Request], Served], index: Index, findings: FindingsFiles) -> None:
        self._served = served
        self._index = index
        self._findings = findings

    def data(self, request: Request) -> Any:
        """Return everything that the page shows of a data set."""
        served = self._served(request)
        info = served.info
        balance, why = None, ""
        try:
            balance = self._index.ask(served, "balance", most=_SHOWN_CLASSES)
        except PrefetchdError as error:
            why = str(error)
        dataset = text(request, "dataset", "")
        found, findings_why, age_s = self._findings.find(dataset)
        source = str(info.config["source"])
        return {
            "n_samples": info.n_samples,
            "batches_per_epoch": info.batches_per_epoch,
            "is_images": "decoder" in info.versions,
            "balance": balance,
            "balance_why": why,
            "findings": found,
            "findings_why": findings_why,
            "findings_age_s": age_s,
            "command": command_that_verifies(dataset, source),
        }


def command_that_verifies(dataset: str, source: str) -> str:
    """Return the lines that make the findings and show them."""
    file = f"{dataset or 'data'}.verify.json"
    named = f"{dataset}={file}" if dataset else file
    # A path that is not UTF-8 goes over the wire in digits, which no shell would find. Of a URL the user and the query
    # may be secrets; a mixture, and what is in memory, has no path.
    is_open = "\0" not in source and one_line(source) == source and not source.startswith("<")
    shown = shlex.quote(source) if is_open else "MANIFEST"
    return f"prefetchd verify {shown} --json > {shlex.quote(file)}\nprefetchd dashboard --findings {shlex.quote(named)}"
