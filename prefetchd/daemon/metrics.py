"""The metrics of a daemon for Prometheus, over HTTP: `prefetchd serve --metrics-port`.

    scrape --HTTP--> thread of prometheus_client --AskStatus--> the daemon's own socket --> loop --> report

The thread asks as `prefetchd status` does, so it shares nothing with the loop and takes no lock. While the daemon
cannot answer, a scrape fails; when the daemon ends, so does the thread. Owned by the `serve` command. Needs the extra
`metrics`. The names are documented in docs/metrics.md, which a test holds to this table.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from prefetchd.errors import ConfigError, PrefetchdError

log = logging.getLogger("prefetchd")

Report = dict[str, Any]

# name without the prefix -> (what it is, where it is in the report of `prefetchd status --json`)
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "batches_made": ("Batches that the readers have filled.", ("batches_made",)),
    "batches_delivered": ("Batches granted to trainers; one that three trainers share counts thrice.", ("delivered",)),
    "bad_samples": ("Samples that were found bad.", ("bad_samples",)),
    "reader_crashes": ("Readers that were replaced after a crash or a hang.", ("reader_crashes",)),
}
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ring_slots": ("Slots of the ring.", ("ring", "slots")),
    "ring_slots_free": ("Slots that hold no batch.", ("ring", "free")),
    "ring_slots_filling": ("Slots that readers are filling.", ("ring", "filling")),
    "ring_slots_ready": ("Slots with a finished batch.", ("ring", "ready")),
    "ring_slots_leased": ("Slots that a trainer holds.", ("ring", "leased")),
    "slot_bytes": ("Size of one slot.", ("ring", "slot_bytes")),
    "memory_budget_bytes": ("The memory budget in force.", ("memory", "budget_bytes")),
    "memory_footprint_bytes": ("What counts against the budget.", ("memory", "footprint_bytes")),
    "memory_footprint_max_bytes": ("The most of it so far.", ("memory", "max_footprint_bytes")),
    "memory_ring_bytes": ("The ring's part of it.", ("memory", "ring_bytes")),
    "memory_source_bytes": ("The part of indexes and tables of the data.", ("memory", "source_bytes")),
}
HISTOGRAMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "sample_read_seconds": ("Time of a reader for one sample.", ("sample_seconds",)),
    "batch_wait_seconds": ("Time that a trainer's loop waited for a batch that was not ready.", ("wait_seconds",)),
}
BY_DATASET: dict[str, tuple[str, tuple[str, ...]]] = {
    "dataset_samples": ("Samples of a data set.", ("n_samples",)),
    "dataset_batches_per_epoch": ("Batches in an epoch of a data set.", ("batches_per_epoch",)),
}
BY_AGENT: dict[str, tuple[str, str]] = {
    "agent_readers": ("Readers of an agent on another machine.", "readers"),
    "agent_tasks": ("Chunks that an agent has in hand.", "tasks"),
    "agent_round_trip_seconds": ("How long the last question to an agent took to be answered.", "round_trip_s"),
    "agent_memory_bytes": ("Memory that an agent takes for this daemon.", "memory_bytes"),
}
AGENT_COUNTERS: dict[str, tuple[str, str]] = {
    "agent_samples": ("Samples that an agent has made since it joined.", "samples"),
    "agent_received_bytes": ("Bytes received from an agent since it joined.", "received_bytes"),
    "agent_recalled_chunks": ("Chunks taken back from an agent, as they did not come in time.", "recalled"),
}
COUNTED: dict[str, tuple[str, Callable[[Report], float]]] = {
    "start_time_seconds": ("When the daemon started, in Unix time.", lambda report: time.time() - report["uptime_s"]),
    "readers": ("Reader processes.", lambda report: len(report["readers"])),
    "readers_busy": ("Readers with work in hand.", lambda report: sum(bool(r["tasks"]) for r in report["readers"])),
    "consumers": ("Loops that are attached.", lambda report: len(report["consumers"])),
    "consumers_waiting": (
        "Loops that wait for a batch.",
        lambda report: sum(c["waiting"] for c in report["consumers"]),
    ),
    "consumers_waiting_for_slower": (
        "Loops that wait for a slower loop.",
        lambda report: sum((c["waits_for"] or {}).get("reason") == "slower loop" for c in report["consumers"]),
    ),
}


def _at(report: Any, way: tuple[str, ...]) -> Any:
    for key in way:
        report = report[key]
    return report


class _Collector:
    """Asks the daemon at every scrape."""

    def __init__(self, ask: Callable[[], Report]) -> None:
        self._ask = ask

    def collect(self) -> Iterable[Any]:
        """Return every metric."""
        from prometheus_client import core

        try:
            report = self._ask()
        except PrefetchdError as error:
            log.warning("cannot answer a scrape of the metrics: %s", error)
            raise
        facts = {"version": report["version"], "name": report["name"]}
        yield core.InfoMetricFamily("prefetchd", "The daemon.", facts)
        for name, (text, way) in COUNTERS.items():
            yield core.CounterMetricFamily(f"prefetchd_{name}", text, value=_at(report, way))
        for name, (text, way) in GAUGES.items():
            yield core.GaugeMetricFamily(f"prefetchd_{name}", text, value=_at(report, way))
        for name, (text, count) in COUNTED.items():
            yield core.GaugeMetricFamily(f"prefetchd_{name}", text, value=count(report))
        for name, (text, way) in HISTOGRAMS.items():
            found = _at(report, way)
            buckets = [(repr(bound_s), n) for bound_s, n in found["at_most"]]
            yield core.HistogramMetricFamily(
                f"prefetchd_{name}", text, buckets=[*buckets, ("+Inf", found["count"])], sum_value=found["sum_s"]
            )
        if report["agents"]:
            for name, (text, key) in BY_AGENT.items():
                gauge = core.GaugeMetricFamily(f"prefetchd_{name}", text, labels=["agent"])
                for agent in report["agents"]:
                    gauge.add_metric([agent["name"]], agent[key])
                yield gauge
            for name, (text, key) in AGENT_COUNTERS.items():
                counter = core.CounterMetricFamily(f"prefetchd_{name}", text, labels=["agent"])
                for agent in report["agents"]:
                    counter.add_metric([agent["name"]], agent[key])
                yield counter
        for name, (text, way) in BY_DATASET.items():
            family = core.GaugeMetricFamily(f"prefetchd_{name}", text, labels=["dataset"])
            for dataset in report["datasets"]:
                family.add_metric([dataset["name"]], _at(dataset, way))
            yield family


class MetricsServer:
    """Serves the metrics from a thread until `close`.

    Args:
        port: TCP port to listen on.
        address: address to listen on.
        ask: returns the daemon's report; called in the thread.

    Raises:
        ConfigError: if prometheus_client is not installed.
        PrefetchdError: if nothing can listen there.
    """

    def __init__(self, port: int, address: str, ask: Callable[[], Report]) -> None:
        if not 1 <= port <= 65535:
            raise ConfigError(f"cannot use metrics-port={port}: it must be from 1 to 65535; 9400 is a good choice")
        try:
            from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
        except ImportError:
            raise ConfigError(
                "cannot serve metrics: prometheus_client is not installed; pip install 'prefetchd[metrics]'"
            ) from None
        registry = CollectorRegistry()
        registry.register(_Collector(ask))
        ProcessCollector(registry=registry)
        try:
            self._server, self._thread = start_http_server(port, address, registry)
        except OSError as error:
            raise PrefetchdError(
                f"cannot serve metrics on {address or repr(address)} port {port}: {error.strerror or error}; choose "
                "another port, or an address of this machine"
            ) from None
        # A scraper that hangs up, or a daemon that does not answer, would write a traceback into the daemon's log.
        handler: Any = self._server.RequestHandlerClass
        self._server.RequestHandlerClass = type("Handler", (handler,), {"get_stderr": lambda _: io.StringIO()})
        setattr(self._server, "handle_error", lambda *_: None)  # noqa: B010 - mypy takes no method

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
