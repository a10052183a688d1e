"""Many loaders on one daemon: pacing, late joiners, groups, barriers, and daemons that are found or elected."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import psutil
import pytest

import prefetchd
from prefetchd.cli.views.reports import describe
from prefetchd.client.launch import shared_config
from prefetchd.config.validate import make_config
from prefetchd.ipc.run_directory import RunLock, daemon_paths, lock_owner, remove_left_files
from tests.conftest import end_thread, wait_until
from tests.process.commands import large_ring, start_script

QUICK = ("--batch-size", "4", "--image-size", "16", "--num-workers", "1")
OPTIONS = {"batch_size": 4, "image_size": 16, "num_workers": 1}


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


# --- patience


def test_leader_waits_for_the_laggard_up_to_the_patience_and_then_goes_on_alone(serve, photographs):
    daemon = serve(photographs, *large_ring(5), "--patience", "0.5")
    with prefetchd.batches() as one, prefetchd.batches() as other:
        laggard, leader = iter(one), iter(other)
        held = next(laggard)
        started_s = time.monotonic()
        indexes = [batch.index for batch in leader]
        waited_s = time.monotonic() - started_s
        assert indexes == list(range(13))
        assert waited_s > 0.4
        assert "waited 0.5 s for the loop of pid" in daemon.log
        made = daemon.status()["batches_made"]
        assert [held.index, *(batch.index for batch in laggard)] == list(range(13))  # its own are made for it
        assert daemon.status()["batches_made"] > made


@pytest.mark.parametrize("other_loop", ["of another data set", "at another epoch"])
def test_patience_is_charged_while_other_loops_have_slots_of_their_own(serve, photographs, other_loop):
    """Slots that the daemon keeps for other loops are free for none of those that wait."""
    daemon = serve(f"train={photographs}", f"val={photographs}", *large_ring(7), "--patience", "1.5")
    with (
        prefetchd.batches(dataset="train", name="paused.py") as one,
        prefetchd.batches(dataset="train") as other,
        prefetchd.batches(dataset="val" if other_loop == "of another data set" else "train") as third,
    ):
        third.set_epoch(5)
        resting = iter(third)
        first = next(resting)
        if other_loop == "of another data set":
            del first, resting  # the loop has ended, and its data set's first batches stay ready
        laggard, leader = iter(one), iter(other)
        held = next(laggard)
        indexes: list[int] = []
        thread = threading.Thread(target=lambda: indexes.extend(batch.index for batch in leader), daemon=True)
        thread.start()
        wait_until(lambda: waits(daemon), "the leader waits for the paused loop")
        assert waits(daemon)[0]["name"] == "paused.py"
        assert waits(daemon)[0]["pid"] == os.getpid()
        assert f"waits for the slower loop of pid {os.getpid()} (paused.py)" in describe(daemon.status())
        end_thread(thread)
        assert indexes == list(range(13))
        assert "waited 1.5 s for the loop of pid" in daemon.log
        (waited_s,) = (found["waited_for_slower_s"] for found in daemon.status()["consumers"] if found["number"] == 2)
        assert 1.4 < waited_s < 10
        assert held.index == 0


def waits(daemon) -> list[dict]:
    reports = [found["waits_for"] for found in daemon.status()["consumers"] if found["waiting"]]
    return [report for report in reports if report["reason"] == "slower loop"]


def test_loops_within_the_window_share_what_is_made_however_slow_one_is(serve, photographs):
    daemon = serve(photographs, *large_ring(4), "--patience", "inf")
    with prefetchd.batches() as one, prefetchd.batches() as other:
        slow = iter(one)
        first = next(slow)  # kept, so that the other one finds it
        seen = []
        thread = threading.Thread(target=lambda: seen.extend(batch.index for batch in other))
        thread.start()
        wait_until(lambda: any(one["waited_for"] for one in daemon.status()["consumers"]), "the fast one stands still")
        assert not seen[5:]
        del first
        assert [batch.index for batch in slow] == list(range(1, 13))
        end_thread(thread)
        assert seen == list(range(13))
        assert daemon.status()["batches_made"] <= 13 + 4  # with what was made ahead of the next epoch


def test_loader_that_the_ring_has_no_slots_for_is_refused_with_numbers_and_the_others_go_on(serve, photographs):
    serve(photographs, *large_ring(5))  # two slots for each of two places, and one to fill
    ranks = [prefetchd.batches(rank=rank, world_size=3) for rank in range(2)]
    with ranks[0], ranks[1]:
        loops = [iter(rank) for rank in ranks]
        seen = [[next(loop).index] for loop in loops]
        with pytest.raises(prefetchd.BudgetError, match=r"2 other loops: it takes 7 slots, .* holds 5 slots .*\d+MiB"):
            prefetchd.batches(rank=2, world_size=3)
        for loop, mine in zip(loops, seen, strict=True):
            mine += [batch.index for batch in loop]
        assert seen == [[0, 3, 6, 9, 12], [1, 4, 7, 10, 0]]


# --- late joiners


def test_join_now_begins_where_others_are_and_gets_the_whole_epoch(serve, photographs):
    serve(photographs, *large_ring(8), "--shuffle", "--patience", "0.5")  # the running one stands still in the end
    with prefetchd.batches(epochs=None) as running, prefetchd.batches(join="now") as late:
        items = iter(running)
        whole = {}
        for _ in range(13 + 5):
            batch = next(items)
            whole[batch.epoch, batch.index] = batch.sample_ids.tolist()
        joined = iter(late)
        first = next(joined)
        assert first.epoch == 1
        assert first.index >= 5
        state = json.loads(json.dumps(late.state_dict()))
        rest = [(batch.epoch, batch.index) for batch in joined]
        rotated = [(1, (first.index + step) % 13) for step in range(13)]
        assert [(1, first.index), *rest] == rotated
        with prefetchd.batches() as resumed:
            resumed.load_state_dict(state)
            assert [(batch.epoch, batch.index) for batch in resumed] == rotated[1:]
        rank = prefetchd.batches(rank=0, world_size=2)
        with rank, pytest.raises(prefetchd.ConfigError, match="2 ranks cannot share"):
            rank.load_state_dict(state)


def test_join_now_with_nobody_there_begins_at_the_beginning(module_daemon):
    with prefetchd.batches(join="now") as loader:
        assert [batch.index for batch in loader] == list(range(13))
        assert [(batch.epoch, batch.index) for batch in loader] == [(1, index) for index in range(13)]


# --- starting together


def test_loaders_that_start_together_wait_for_each_other(module_daemon):
    started = []
    barrier_s = []

    def run():
        with prefetchd.batches(start_together=3) as loader:
            for batch in loader:
                if not batch.index:
                    started.append(time.monotonic())

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads[:2]:
        thread.start()
    with prefetchd.batches() as free:  # whoever does not ask for it does not wait
        assert len(list(free)) == 13
    assert not started
    barrier_s.append(time.monotonic())
    threads[2].start()
    for thread in threads:
        end_thread(thread)
    assert len(started) == 3
    assert min(started) > barrier_s[0]


def test_who_waits_in_vain_to_start_together_says_how_many_came(module_daemon):
    why = f"1 of 3 loaders .*pids {os.getpid()}"
    with prefetchd.batches(start_together=3, timeout=1) as loader, pytest.raises(prefetchd.PrefetchdError, match=why):
        next(iter(loader))


def test_loop_that_begins_anew_while_it_waits_to_start_together_has_its_whole_time(module_daemon):
    """Ctrl-C and the cell run again: the first loop's time is none of the second's."""
    with prefetchd.batches(start_together=2, timeout=1) as loader:
        loader._connection.open_cursor(99, loader._shard, 0, 0, 1)
        loader._connection.close_cursor(99)
        time.sleep(0.5)  # no synchronisation: half of the first loop's time
        begun_s = time.monotonic()
        with pytest.raises(prefetchd.PrefetchdError, match="1 of 2 loaders"):
            next(iter(loader))
        assert time.monotonic() - begun_s > 0.9


# --- groups

MEMBER = """
import sys
import prefetchd
loader = prefetchd.batches(group="workers")
for batch in loader:
    print(batch.epoch, batch.index, flush=True)
    if sys.stdin.readline() == "stop\\n":
        break
print("end", flush=True)
"""


def test_word_of_a_loop_that_is_over_does_not_end_the_members_present_one(serve, photographs):
    """As a generator that another thread was running, and that is closed after the next one has begun."""
    serve(photographs, *QUICK)
    with prefetchd.batches(group="workers") as loader:
        batches = iter(loader)
        indices = [next(batches).index]
        loader._connection.close_cursor(loader._serial - 1)
        assert indices + [batch.index for batch in batches] == list(range(13))


def test_each_batch_goes_to_one_member_and_those_of_one_that_died_to_another(serve, photographs, tmp_path):
    serve(photographs, *QUICK, "--memory-budget", "256MiB")
    doomed = start_script(tmp_path / "doomed.py", MEMBER)
    assert doomed.stdout.readline() == "0 0\n"
    with prefetchd.batches(group="workers") as loader:
        assert len(loader) == 13
        items = iter(loader)
        mine = [next(items).index for _ in range(12)]
        assert mine == list(range(1, 13))
        ended = []
        thread = threading.Thread(target=lambda: ended.extend(batch.index for batch in items))
        thread.start()  # every batch was given, and one is not done yet
        thread.join(0.3)
        assert thread.is_alive()
        doomed.kill()
        doomed.wait()
        end_thread(thread)
        assert ended == [0]
        assert [batch.epoch for batch in loader] == [1] * 13  # the next pass is the next epoch
        with pytest.raises(prefetchd.ConfigError, match="member of the group 'workers'"):
            loader.state_dict()
    for pipe in (doomed.stdin, doomed.stdout, doomed.stderr):
        pipe.close()


def test_pass_ends_for_all_members_when_all_are_done(serve, photographs):
    serve(photographs, *QUICK, "--memory-budget", "256MiB")
    seen = []

    def run(pace_s):
        with prefetchd.batches(group="workers") as loader:
            for batch in loader:
                seen.append(batch.index)
                time.sleep(pace_s)  # work
        return

    threads = [threading.Thread(target=run, args=(pace_s,)) for pace_s in (0.001, 0.004, 0.01)]
    for thread in threads:
        thread.start()
    for thread in threads:
        end_thread(thread)
    # A thread that came when the pass was over had the next one to itself.
    assert len(seen) % 13 == 0
    assert sorted(seen[:13]) == list(range(13)) or sorted(seen) == sorted(list(range(13)) * (len(seen) // 13))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"group": "w", "rank": 0, "world_size": 2}, "world_size"),
        ({"group": "w", "reconnect": True}, "reconnect"),
        ({"group": "w", "join": "now"}, "join"),
        ({"group": ""}, "a name"),
        ({"join": "later"}, "'start' or 'now'"),
        ({"join": "now", "rank": 0, "world_size": 2}, "join='now'"),
        ({"start_together": 0}, "from 1"),
        ({"start_together": True}, "whole number"),
        ({"share": True}, "without a source"),
        ({"source": "x.txt", "share": "yes"}, "True, False or None"),
        ({"source": "x.txt", "group": "w"}, "share=True"),
        ({"source": "x.txt", "start_together": 2}, "share=True"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(prefetchd.ConfigError, match=words):
        prefetchd.batches(**options)


# --- sharing without setup

SHARE = """
import sys, prefetchd
try:
    loader = prefetchd.batches(sys.argv[1], batch_size=4, image_size=16, num_workers=1{more})
    with loader:
        print(loader._info.pid, flush=True)
        sys.stdin.readline()
        print([batch.index for batch in loader], flush=True)
except prefetchd.PrefetchdError as error:
    print(type(error).__name__, error, flush=True)
"""


def start_sharing(folder, n, source, more=", share=True", env=None):
    script = folder / "share.py"
    script.write_text(SHARE.format(more=more))
    return [
        subprocess.Popen(
            [sys.executable, str(script), str(source)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **(env(number) if env else {})},
        )
        for number in range(n)
    ]  # fmt: skip


def test_processes_that_ask_for_the_same_find_one_daemon_that_outlives_its_starter(photographs, tmp_path):
    processes = start_sharing(tmp_path, 4, photographs)
    pids = {int(process.stdout.readline()) for process in processes}
    assert len(pids) == 1
    (daemon,) = pids
    for process in processes[:3]:  # the starter is among them, whichever it was
        process.kill()
        process.communicate()
    assert psutil.pid_exists(daemon)
    out, err = processes[3].communicate("\n", timeout=100)
    assert (processes[3].returncode, out, err) == (0, f"{list(range(13))}\n", "")
    wait_until(lambda: not psutil.pid_exists(daemon), "the daemon ends after its last loader")


def sharing_daemon(process: subprocess.Popen) -> psutil.Process:
    return psutil.Process(int(process.stdout.readline()))


def run_files() -> list[str]:
    return sorted(path.name for path in daemon_paths("any").lock.parent.iterdir())


def left_alone(photographs, tmp_path) -> None:
    """Have a shared daemon and all around it killed in one moment: nobody clears up."""
    (process,) = start_sharing(tmp_path, 1, photographs)
    daemon = sharing_daemon(process)
    (log,) = daemon_paths("any").lock.parent.glob("*.log")
    wait_until(lambda: "ready:" in log.read_text(), "no segment is just being made")
    family = [daemon, *daemon.children(recursive=True)]
    for one in family:
        one.suspend()
    process.kill()
    process.communicate()
    for one in family:
        one.kill()
    psutil.wait_procs(family, 10)
    assert [name.rpartition(".")[2] for name in run_files()] == ["lock", "log", "sock"]


def test_killed_shared_daemon_leaves_no_file(photographs, tmp_path):
    (process,) = start_sharing(tmp_path, 1, photographs)
    sharing_daemon(process).kill()
    wait_until(lambda: not run_files(), "its fork server has removed its files", 10)
    out, _ = process.communicate("\n", timeout=30)
    assert out.startswith("DaemonLost"), out


def test_files_of_a_shared_daemon_that_was_killed_with_its_fork_server_go_with_the_loader_that_loses_it(
    photographs, tmp_path
):
    with prefetchd.batches(photographs, **OPTIONS, share=True, epochs=None) as loader:
        batches = iter(loader)
        daemon = psutil.Process(loader.status()["pid"])
        (log,) = daemon_paths("any").lock.parent.glob("*.log")
        wait_until(lambda: "ready:" in log.read_text(), "no segment is just being made")
        (fork_server,) = daemon.children()
        family = [daemon, *daemon.children(recursive=True)]
        daemon.suspend()  # or it would start another fork server
        wait_until(lambda: daemon.status() == psutil.STATUS_STOPPED, "it has stopped")
        fork_server.kill()
        daemon.kill()
        psutil.wait_procs(family, 10)
        assert run_files()
        with pytest.raises(prefetchd.DaemonLost):
            for _ in batches:
                pass
        assert not run_files()


def test_files_that_nobody_asks_for_again_go_when_any_other_daemon_starts_or_its_name_is_asked_for(
    photographs, serve, tmp_path
):
    left_alone(photographs, tmp_path)
    name = run_files()[0].partition(".")[0]
    status = subprocess.run([sys.executable, "-m", "prefetchd", "status", name], capture_output=True, text=True)
    assert status.returncode == 1
    assert "none is running" in status.stderr
    assert not run_files()
    left_alone(photographs, tmp_path)
    serve(photographs, *QUICK)
    assert run_files() == ["default.lock", "default.sock"]


def test_clearing_up_never_takes_the_files_of_a_daemon_that_is_just_being_elected(tmp_path):
    """Several that look for a dead daemon's files, all the time, while others take its name over and let it go."""
    paths = daemon_paths("contested", create=True)
    over = threading.Event()

    def clear_up() -> None:
        while not over.is_set():
            remove_left_files(paths.files)

    threads = [threading.Thread(target=clear_up) for _ in range(3)]
    for thread in threads:
        thread.start()
    elected = 0
    try:
        while elected < 200:
            lock = RunLock.acquire(paths)
            if lock is None:
                continue  # all that time somebody looked
            elected += 1
            paths.socket.touch()
            time.sleep(0.0005)  # no synchronisation: others look meanwhile
            assert lock_owner(paths.lock) == os.getpid()
            assert paths.socket.exists()
            if elected % 2:
                lock.release()
            else:
                os.close(lock._fd)  # as a kill does
    finally:
        over.set()
        for thread in threads:
            end_thread(thread)
    remove_left_files(paths.files)
    assert not run_files()


def test_error_at_the_start_reaches_every_process_that_waits(tmp_path):
    manifest = tmp_path / "bad.txt"
    manifest.write_text("nothing here.jpg\n" * 3 + "\0\n")
    for process in start_sharing(tmp_path, 3, manifest):
        out, _ = process.communicate("\n", timeout=100)
        assert out.startswith("ManifestError cannot"), out
    missing = start_sharing(tmp_path, 2, tmp_path / "none.txt")
    for process in missing:
        assert process.communicate("\n", timeout=100)[0].startswith("ManifestError cannot")


def test_shared_daemon_that_cannot_make_its_files_says_so_at_once(photographs):
    config = shared_config(make_config(source=photographs, **OPTIONS))
    paths = daemon_paths(config.name, create=True)
    paths.socket.mkdir()
    try:
        with pytest.raises(prefetchd.ConfigError, match="cannot make the files of the shared daemon"):
            prefetchd.batches(photographs, **OPTIONS, share=True, timeout=20)
    finally:
        paths.socket.rmdir()


def test_processes_of_one_torchrun_share_by_default(photographs, tmp_path):
    processes = start_sharing(
        tmp_path, 2, photographs, ', rank="env"',
        lambda rank: {"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2", "RANK": str(rank)},
    )  # fmt: skip
    assert len({process.stdout.readline() for process in processes}) == 1
    out = [process.communicate("\n", timeout=100)[0] for process in processes]
    assert out == [f"{[0, 2, 4, 6, 8, 10, 12]}\n", f"{[1, 3, 5, 7, 9, 11, 0]}\n"]


def test_name_of_a_shared_daemon_follows_everything_that_it_serves_and_how():
    one = shared_config(make_config(source="a.txt", batch_size=4))
    assert one.name == shared_config(make_config(source=os.path.abspath("a.txt"), batch_size="4")).name
    assert one.name != shared_config(make_config(source="a.txt", batch_size=5)).name
    assert one.name != shared_config(make_config(source="a.txt", batch_size=4, memory_budget="1GiB")).name
