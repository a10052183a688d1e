"""Which nodes of a Ray cluster decode, and with how many readers; and options that do not go together."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from prefetchd.config.validate import make_config
from prefetchd.errors import ConfigError
from prefetchd.remote import ray_placer
from prefetchd.remote.ray_placer import RayPlacer, Wanted, barred, eligible, wanted, wanted_nodes


def node(name: str, cores: float, *, alive: bool = True, label: str = "", **resources: float) -> dict[str, Any]:
    labels = {"prefetchd": label} if label else {}
    return {"NodeID": name, "Alive": alive, "Resources": {"CPU": cores, **resources}, "Labels": labels}


def test_nodes_with_accelerators_and_the_daemons_own_do_not_decode():
    nodes = [
        node("head", 8), node("gpu", 16, GPU=8), node("tpu", 16, TPU=4), node("a", 4), node("b", 2),
        node("dead", 64, alive=False), node("small", 0.5),
    ]  # fmt: skip
    assert eligible(nodes, "head") == {"a": 4, "b": 2}


def test_label_decides_where_there_is_one():
    nodes = [node("gpu", 16, GPU=8, label="decode"), node("a", 4), node("b", 2, label="other")]
    assert eligible(nodes, "head") == {"gpu": 16}
    assert eligible(nodes, "gpu") == {"gpu": 16}, "the daemon's own node too, if that is said"


def test_readers_are_a_core_each_on_few_nodes_and_the_rest_waits_for_nodes_to_come():
    cores = {"a": 4, "b": 16, "c": 8}
    assert wanted(cores, 20) == Wanted({"b": 16, "c": 4}, 0)
    assert wanted(cores, 64) == Wanted({"a": 4, "b": 16, "c": 8}, 36)
    assert wanted({}, 5) == Wanted({}, 5)


def test_automatic_nodes_are_whole_and_those_that_have_agents_keep_them():
    cores = {"a": 4, "b": 16, "c": 8}
    assert wanted_nodes(cores, 1, ()) == Wanted({"b": 16}, 0)
    assert wanted_nodes(cores, 2, {"a"}) == Wanted({"a": 4, "b": 16}, 0), "none is ended for a larger one"
    assert wanted_nodes(cores, 1, {"a", "c", ""}) == Wanted({"c": 8}, 0)
    assert wanted_nodes(cores, 4, ()) == Wanted({"a": 4, "b": 16, "c": 8}, 16), "one node more, for an autoscaler"
    assert wanted_nodes({}, 1, ()) == Wanted({}, 1)


def test_what_waits_for_nodes_to_come_is_not_placed_where_nothing_may_be():
    nodes = [node("head", 8), node("gpu", 16, GPU=8), node("a", 4), node("dead", 64, alive=False), node("small", 0.5)]
    assert barred(nodes, eligible(nodes, "head")) == ["head", "gpu", "small"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"remote_workers": 4}, "cannot use remote_workers without ray"),
        ({"ray": "auto", "tls_ca": "ca.pem"}, "cannot use TLS with ray"),
        ({"ray": "auto", "remote_workers": "many"}, "remote_workers='many'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], why: str):
    with pytest.raises(ConfigError, match=why):
        make_config(source="x", **options)


def test_digest_does_not_know_about_ray():
    config = make_config(source="x", ray="auto", remote_workers="auto")
    assert config.remote_workers == 0
    assert config.digest() == make_config(source="x").digest()
    assert make_config(**config.to_wire()) == config


class Ray:
    """Has the place of the library: a cluster that puts an actor where `run` says."""

    def __init__(self, nodes: list[dict[str, Any]]) -> None:
        self.all, self.actors, self.strategies = nodes, [], []
        self.exceptions = SimpleNamespace(RayError=RuntimeError)

    def nodes(self) -> list[dict[str, Any]]:
        return self.all

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "head")

    def wait(self, refs: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return [ref for ref in refs if ref], []

    def get(self, ref: list[tuple[str, str]]) -> tuple[str, str]:
        return ref[0]

    def remote(self, *, scheduling_strategy: Any, **options: Any) -> Any:
        def make(*args: Any) -> Any:
            where: list[tuple[str, str]] = []
            begun: list[bool] = []
            end: list[int] = []
            actor = SimpleNamespace(
                place=where,
                begun=begun,
                runs=SimpleNamespace(remote=lambda: begun),
                where=SimpleNamespace(remote=lambda: where),
                wait=SimpleNamespace(remote=lambda: end),
            )
            self.actors.append(actor)
            self.strategies.append(scheduling_strategy)
            return actor

        return lambda cls: SimpleNamespace(remote=make)

    def kill(self, actor: Any) -> None:
        self.actors.remove(actor)

    def run(self, actor: Any, node: str) -> None:
        actor.place.append((f"{node}:1", node))


class Strategies:
    """Has the place of Ray's module of them: each is what it was made of."""

    NodeAffinitySchedulingStrategy = staticmethod(lambda node, soft: node)
    NodeLabelSchedulingStrategy = staticmethod(lambda hard: hard["ray.io/node-id"])
    NotIn = staticmethod(lambda *nodes: set(nodes))


def pretend(monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, Any]]) -> Ray:
    """Put a cluster of these nodes in the library's place, and run no thread of the placer's."""
    ray = Ray(nodes)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", Strategies)
    monkeypatch.setattr(ray_placer.threading, "Thread", lambda **options: SimpleNamespace(start=lambda: None))
    return ray


@pytest.mark.parametrize("runs", [True, False])
def test_fewer_readers_are_asked_for_where_others_have_the_cores_and_not_where_the_agent_is_slow(
    runs: bool, monkeypatch: pytest.MonkeyPatch
):
    ray = pretend(monkeypatch, [node("head", 8), node("a", 4)])
    placer = RayPlacer("auto", 4, (b"", False, []), joined=print, left=print, failed=print)
    placer._look()
    (asked,) = ray.actors
    if runs:
        asked.begun.append(True)
    now_s = time.monotonic() + 60
    monkeypatch.setattr(ray_placer.time, "monotonic", lambda: now_s)
    placer._look()
    assert (ray.actors == [asked]) == runs
    asked_for = {placed.node: placed.n_readers for placed in placer._placed}
    assert asked_for == ({"a": 4} if runs else {"a": 2, "": 2}), "the others wait for cores to become free"


@pytest.mark.parametrize("n_workers", [1, 0])
def test_another_node_is_asked_where_others_have_all_cores_of_one(n_workers: int, monkeypatch: pytest.MonkeyPatch):
    ray = pretend(monkeypatch, [node("head", 8), node("a", 1), node("b", 1)])
    placer = RayPlacer("auto", n_workers, (b"", False, []), joined=print, left=print, failed=print)
    now_s = time.monotonic()
    monkeypatch.setattr(ray_placer.time, "monotonic", lambda: now_s)
    for asked in ("a", "b", {"head"}, {"head"}):
        placer._look()
        assert len(ray.actors) == 1
        assert ray.strategies[-1] == asked
        now_s += 60
    ray.run(ray.actors[0], "a")
    for _ in range(3):
        placer._look()
        assert [placed.node for placed in placer._placed] == ["a"], "it is one of those that are wanted, and no more"
        now_s += 60


@pytest.mark.parametrize("n_workers", [6, 0])
def test_agent_on_a_node_with_accelerators_that_joined_later_is_ended(n_workers: int, monkeypatch: pytest.MonkeyPatch):
    """Ray bars the nodes that were there as the actor was asked for, and no others."""
    ray = pretend(monkeypatch, [node("head", 8), node("a", 4)])
    there: list[str] = []
    ended: list[tuple[str, bool]] = []
    placer = RayPlacer(
        "auto", n_workers, (b"", False, []), joined=there.append, left=lambda *agent: ended.append(agent), failed=print
    )
    placer.n_nodes = 2
    placer._look()
    assert ray.strategies == ["a", {"head"}]
    ray.run(ray.actors[0], "a")
    ray.all.append(node("gpu", 16, GPU=8))
    ray.run(ray.actors[1], "gpu")
    placer._look()
    assert ended == [("gpu:1", True)]
    assert ray.strategies[2:] == [{"head", "gpu"}], "it is asked for again, elsewhere"
    assert len(ray.actors) == 2
    ray.all.append(node("b", 2))
    ray.run(ray.actors[1], "b")
    placer._look()
    assert ended == [("gpu:1", True)]
    assert there == ["a:1", "gpu:1", "b:1"]
