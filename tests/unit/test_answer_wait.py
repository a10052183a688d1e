"""A wait for a daemon that sends nothing: what is logged of it, how often, and when it is given up."""

from __future__ import annotations

import logging

import pytest

from prefetchd.client.channel import GIVE_UP_S, LOOK_S, REPORT_S, AnswerWait
from prefetchd.errors import DaemonLost


class World:
    """A clock, and the state of the process that is waited for."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.state = "S"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr("prefetchd.ipc.system.monotonic", lambda: world.now_s)
    monkeypatch.setattr("prefetchd.client.channel.process_state", lambda pid: world.state)
    monkeypatch.setattr("prefetchd.ipc.process.process_state", lambda pid: world.state)
    return world


def looks(one: AnswerWait, world: World, for_s: float) -> None:
    end_s = world.now_s + for_s
    while world.now_s < end_s:
        world.now_s += LOOK_S
        one.look()


def test_stopped_daemon_is_named_at_the_first_look_with_what_helps(world, caplog):
    world.state = "T"
    looks(AnswerWait("x", 77, lambda: None), world, REPORT_S / 2)
    assert [record.message for record in caplog.records] == [
        "has waited 2 s for the daemon 'x', which does not answer: pid 77 is stopped (SIGSTOP, or a debugger); "
        "continue it with: kill -CONT 77"
    ]


def test_one_that_opens_its_data_is_not_said_to_be_silent(world, caplog):
    one = AnswerWait("", 77)
    looks(one, world, REPORT_S)
    assert [record.message for record in caplog.records] == [
        "has waited 30 s for the daemon, which has not begun to serve yet (it reads its lists and headers first): "
        "pid 77 is alive (state S); see its log"
    ]
    world.state = "T"
    looks(one, world, LOOK_S)
    assert "the daemon, which does not answer: pid 77 is stopped" in caplog.records[-1].message


def test_daemon_at_work_is_asked_and_its_answer_is_told(world, caplog):
    asked = []
    one = AnswerWait("x", 77, lambda: asked.append(1))
    looks(one, world, REPORT_S - LOOK_S)
    assert not asked
    looks(one, world, LOOK_S)
    assert asked == [1]
    one.answered({"readers": [{"pid": 5, "does": "at work for 31 s on epoch 0 batch 3"}]})
    assert "its readers: pid 5 at work for 31 s on epoch 0 batch 3" in caplog.text
    one.answered({"readers": [{"pid": pid, "does": "idle"} for pid in range(18)]})
    assert caplog.text.rstrip().endswith("pid 14 idle; pid 15 idle; and 2 more")
    for _ in range(100):  # as long as it answers, it is waited for
        looks(one, world, REPORT_S)
        one.answered({"readers": "nonsense"})
    assert len(asked) == 101


@pytest.mark.parametrize("state", ["S", "T", "D", "Z"])
def test_daemon_that_answers_nothing_is_given_up(world, caplog, state):
    world.state = state
    one = AnswerWait("x", 77, lambda: None)
    with caplog.at_level(logging.CRITICAL), pytest.raises(DaemonLost, match=r"sent nothing for 30\d s: pid 77 "):
        looks(one, world, 2 * GIVE_UP_S)


def test_time_in_which_this_process_was_stopped_itself_is_no_silence(world):
    """As where a scheduler suspends a whole job, the daemon with it."""
    one = AnswerWait("x", 77, lambda: None)
    looks(one, world, 3 * LOOK_S)
    world.now_s += 2 * GIVE_UP_S
    looks(one, world, GIVE_UP_S - 6 * LOOK_S)
    with pytest.raises(DaemonLost, match=r"sent nothing for 30\d s"):
        looks(one, world, 6 * LOOK_S)


def test_one_that_starts_is_waited_for_unless_it_is_stopped(world):
    one = AnswerWait("", 77)
    looks(one, world, 3 * GIVE_UP_S)
    world.state = "T"
    looks(one, world, GIVE_UP_S - 2 * LOOK_S)
    world.state = "R"
    looks(one, world, LOOK_S)
    world.state = "T"
    with pytest.raises(DaemonLost, match="is stopped"):
        looks(one, world, 2 * GIVE_UP_S)
