"""`serve --metrics-port` and `--log-format json`: what Prometheus and log collectors get from a running daemon."""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import urllib.request
from pathlib import Path

import pytest

import prefetchd
from prefetchd.daemon import metrics
from tests.process.commands import refused

pytest.importorskip("prometheus_client")
DOCS = Path(__file__).parents[2] / "docs"
QUICK = ("--batch-size", "4", "--image-size", "16", "--num-workers", "1")


@pytest.fixture
def port() -> int:
    """A port that is free now, and none that the kernel gives to a socket that asks for any."""
    while True:
        number = random.randrange(20_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", number)):
            return number


def scrape(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def names() -> set[str]:
    """The names as a query has them."""
    found = {f"prefetchd_{name}_total" for name in metrics.COUNTERS} | {"prefetchd_info"}
    found |= {f"prefetchd_{name}_{part}" for name in metrics.HISTOGRAMS for part in ("bucket", "sum", "count")}
    return found | {f"prefetchd_{name}" for name in (*metrics.GAUGES, *metrics.COUNTED, *metrics.BY_DATASET)}


def test_scrape_tells_what_was_delivered_and_how_long_it_took(serve, photographs, port):
    daemon = serve(photographs, *QUICK, "--metrics-port", port, name="seen")
    before = scrape(port)
    assert before["prefetchd_batches_delivered_total"] == 0
    assert before["prefetchd_consumers"] == 0
    with prefetchd.batches(daemon="seen") as loader:
        loop = iter(loader)
        held = [next(loop), next(loop)]
        now = scrape(port)
        assert now["prefetchd_consumers"] == 1
        assert now["prefetchd_ring_slots_leased"] >= len(held)
        del held
        assert len([*loop]) == 11
    after = scrape(port)
    assert {re.sub(r"\{.*", "", name) for name in after} >= names()
    assert after["prefetchd_batches_delivered_total"] == 13
    assert after["prefetchd_batches_made_total"] >= 13
    assert after["prefetchd_sample_read_seconds_count"] >= 50
    assert after['prefetchd_sample_read_seconds_bucket{le="+Inf"}'] == after["prefetchd_sample_read_seconds_count"]
    assert after["prefetchd_sample_read_seconds_sum"] > 0
    assert after["prefetchd_batch_wait_seconds_count"] <= 13
    assert after["prefetchd_memory_footprint_bytes"] <= after["prefetchd_memory_budget_bytes"]
    assert after['prefetchd_dataset_samples{dataset=""}'] == 50
    assert any(name.startswith("prefetchd_info{") and 'name="seen"' in name for name in after)
    assert abs(after["prefetchd_start_time_seconds"] - before["prefetchd_start_time_seconds"]) < 1
    daemon.process.terminate()
    assert daemon.process.wait(20) == 0


def test_port_that_is_taken_or_none_is_refused_in_one_line(photographs):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        assert f"port {port}: Address already in use; choose" in refused(
            "serve", photographs, *QUICK, "--metrics-port", port
        )
    assert "from 1 to 65535" in refused("serve", photographs, *QUICK, "--metrics-port", "0")


def test_documentation_names_every_metric_and_the_dashboard_no_other():
    page = (DOCS / "metrics.md").read_text()
    assert {name for name in names() if not re.search(r"_(bucket|sum|count)$", name)} <= set(
        re.findall(r"`(\w+)`", page)
    )
    assert {f"prefetchd_{name}" for name in metrics.HISTOGRAMS} <= set(re.findall(r"`(\w+)`", page))
    dashboard = json.loads((DOCS / "grafana-dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    used = {name for query in queries for name in re.findall(r"prefetchd_\w+", query)}
    assert used
    assert used <= names()


def test_json_log_is_an_object_a_line(serve, photographs, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    manifest = tmp_path / "list.txt"
    good = photographs.read_text().splitlines()[0].rsplit(" ", 1)[0]
    manifest.write_text(f"{photographs.parent / good} 0\nbad.jpg 1\n")
    daemon = serve(manifest, *QUICK, "--log-format", "json", "--on-error", "skip", name="logs")
    with prefetchd.batches(daemon="logs") as loader:
        assert [len(batch.x) for batch in loader] == [1]
    entries = [json.loads(line) for line in daemon.log.splitlines()]
    assert {entry["daemon"] for entry in entries} == {"logs"}
    assert {entry["pid"] for entry in entries} == {daemon.pid}
    assert [entry["level"] for entry in entries if "ready:" in entry["message"]] == ["info"]
    assert [entry["level"] for entry in entries if "bad sample 1:" in entry["message"]] == ["warning"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", entry["time"]) for entry in entries)
