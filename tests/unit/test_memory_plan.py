"""The memory budget's arithmetic: limits, plans, reservations, and the sizes that people write."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetchd.config.units import format_bytes, parse_bytes
from prefetchd.config.validate import make_config
from prefetchd.daemon.memory import limits
from prefetchd.daemon.memory.budget import Budget
from prefetchd.daemon.memory.plan import (
    ALLOWANCE_BYTES,
    DAEMON_BYTES,
    MIB,
    MIN_SLOTS,
    READER_BYTES,
    Limit,
    Plan,
    explain,
    make_plan,
    smallest_budget,
)
from prefetchd.errors import BudgetError, ConfigError
from prefetchd.ipc import system
from prefetchd.ipc.process import private_bytes

SLOT = 32 * 224 * 224 * 3
PLENTY = Limit(1 << 40, "available memory")


def plan_of(*, limit: Limit = PLENTY, slot_bytes: int = SLOT, **options: object) -> Plan:
    return make_plan(make_config(source="-", **options), slot_bytes, limit)


# --- sizes


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("512MiB", 512 << 20),
        ("512 mib", 512 << 20),
        ("1.5GB", 1_500_000_000),
        ("1.5GiB", 3 << 29),
        ("2K", 2048),
        ("2kb", 2000),
        (" 7 ", 7),
        ("10b", 10),
        (".5G", 1 << 29),
        ("25%", 250),
        ("100%", 1000),
        ("0.1%", 1),
    ],
)
def test_parse_bytes(text: str, n_bytes: int) -> None:
    assert parse_bytes(text, whole_bytes=1000) == n_bytes


@pytest.mark.parametrize("text", ["", "MiB", "-1MiB", "1 2", "1e9", "12XB", "nan", "inf", "1,5GB", "%"])
def test_parse_bytes_refuses(text: str) -> None:
    with pytest.raises(ConfigError, match=r"512MiB, 1.5GB or 25%"):
        parse_bytes(text, whole_bytes=1000)


def test_percentage_needs_a_whole() -> None:
    with pytest.raises(ConfigError, match=r"it is not like 512MiB or 1.5GB; write"):
        parse_bytes("25%")


@pytest.mark.parametrize(
    ("text", "why"), [("0%", "above 0%"), ("101%", "up to 100%"), ("9" * 400, "below 4194304.0 TiB")]
)
def test_sizes_that_cannot_be_are_told_apart_from_those_that_cannot_be_read(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        parse_bytes(text, whole_bytes=1000)
    assert len(str(refused.value)) < 200


@given(st.integers(0, 1 << 50))
def test_format_bytes_is_read_back_within_its_precision(n_bytes: int) -> None:
    assert math.isclose(parse_bytes(format_bytes(n_bytes)), n_bytes, rel_tol=0.051, abs_tol=1)


# --- plans


@given(
    readers=st.integers(1, 64),
    slot_bytes=st.integers(1, 1 << 32),
    above_mib=st.integers(0, 10_000),
)
def test_plan_never_exceeds_its_budget(readers: int, slot_bytes: int, above_mib: int) -> None:
    """Whatever is asked: everything planned fits in the budget, and there is what the loop cannot do without."""
    given_mib = smallest_budget(readers, slot_bytes) // MIB + above_mib
    plan = plan_of(num_workers=readers, memory_budget=f"{given_mib}MiB", slot_bytes=slot_bytes)
    assert plan.n_readers == readers
    assert plan.n_slots >= MIN_SLOTS
    used = DAEMON_BYTES + readers * (READER_BYTES + ALLOWANCE_BYTES) + plan.n_slots * slot_bytes
    assert used <= plan.budget_bytes == given_mib * MIB


@given(readers=st.integers(1, 64), slot_bytes=st.integers(1, 1 << 32))
def test_refusal_names_the_smallest_budget_that_works(readers: int, slot_bytes: int) -> None:
    least = smallest_budget(readers, slot_bytes) // MIB
    with pytest.raises(BudgetError) as caught:
        plan_of(num_workers=readers, memory_budget=f"{least - 1}MiB", slot_bytes=slot_bytes)
    named = re.search(r'memory_budget="(\d+)MiB" or more', str(caught.value))
    assert named is not None
    assert int(named[1]) == least
    assert plan_of(num_workers=readers, memory_budget=f"{least}MiB", slot_bytes=slot_bytes).n_slots >= MIN_SLOTS


def test_readers_that_were_not_asked_for_are_given_up_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "usable_cores", lambda: 8)
    three = smallest_budget(3, SLOT) // MIB
    assert plan_of(memory_budget=f"{three}MiB").n_readers == 3
    assert plan_of(memory_budget=f"{smallest_budget(8, SLOT) // MIB}MiB").n_readers == 8
    with pytest.raises(BudgetError, match="8 reader"):
        plan_of(memory_budget=f"{three}MiB", num_workers=8)
    with pytest.raises(BudgetError, match=f'give memory_budget="{smallest_budget(1, SLOT) // MIB}MiB"'):
        plan_of(memory_budget="20MiB")


@pytest.mark.parametrize("slot_bytes", [100_000, 2 * MIB, 10 * MIB, 200 * MIB])
def test_auto_can_decode_a_photograph_of_12_megapixels_whole_whatever_the_batches(slot_bytes: int) -> None:
    """It takes 73 MiB; the budget grows for it."""
    assert Budget(plan_of(num_workers=2, slot_bytes=slot_bytes)).largest_decode_bytes >= 73 * MIB


def test_auto_is_comfortable_and_heeds_the_machine() -> None:
    plan = plan_of(num_workers=2)
    assert plan.limited_by == "auto"
    assert plan.n_slots >= 8
    assert plan.ceiling_bytes == int(0.6 * PLENTY.n_bytes)
    room = plan.budget_bytes - DAEMON_BYTES - 2 * (READER_BYTES + ALLOWANCE_BYTES) - plan.n_slots * SLOT
    assert room >= 32 * MIB, "an ordinary large image fits beside the ring"
    tight = plan_of(num_workers=2, limit=Limit(250 * MIB, "cgroup /x"))
    assert tight.limited_by == "cgroup /x"
    assert tight.ceiling_bytes == tight.budget_bytes
    assert tight.budget_bytes <= 250 * MIB
    assert tight.n_slots >= MIN_SLOTS


def test_the_machine_bounds_what_was_asked_for() -> None:
    plan = plan_of(num_workers=1, memory_budget="10GiB", limit=Limit(300 * MIB, "cgroup /x"))
    assert plan.budget_bytes == 300 * MIB
    assert plan.limited_by == "cgroup /x"
    assert plan_of(num_workers=1, memory_budget="200MiB").limited_by == "memory-budget"


# --- limits


def fake_cgroup(monkeypatch: pytest.MonkeyPatch, folder: Path, entries: str, files: dict[str, str]) -> None:
    """Have `/proc/self/cgroup` and `/sys/fs/cgroup` read as given."""
    (folder / "proc-self-cgroup").write_text(entries)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    def redirected(path: str) -> bytes:
        if path == "/proc/self/cgroup":
            return (folder / "proc-self-cgroup").read_bytes()
        assert path.startswith(("/sys/fs/cgroup", "/proc/pressure"))
        return (folder / path.removeprefix("/")).read_bytes()

    monkeypatch.setattr(system, "read_file", redirected)


def test_cgroup_v2_limits_of_all_ancestors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/user/job/memory.max": "max\n",
        "sys/fs/cgroup/user/memory.max": f"{300 * MIB}\n",
        "sys/fs/cgroup/memory.max": f"{900 * MIB}\n",
    }
    fake_cgroup(monkeypatch, tmp_path, "0::/user/job\n", files)
    assert sorted(limit.n_bytes for limit in limits.cgroup_limits()) == [300 * MIB, 900 * MIB]
    limit = limits.machine_limits()[0]
    assert limit.n_bytes == 300 * MIB - limits.ample_bytes(300 * MIB)
    assert "user" in limit.source


def test_cgroup_v1_limit_and_its_way_of_saying_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": f"{200 * MIB}\n",
        "sys/fs/cgroup/memory/docker/memory.limit_in_bytes": "9223372036854771712\n",
    }
    entries = "11:cpu,cpuacct:/docker/abc\n5:memory:/docker/abc\n0::/docker/abc\n"
    fake_cgroup(monkeypatch, tmp_path, entries, files)
    assert [limit.n_bytes for limit in limits.cgroup_limits()] == [200 * MIB]


def test_path_of_another_namespace_still_finds_the_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a container the path is often the host's, and only the mounted root is there."""
    fake_cgroup(monkeypatch, tmp_path, "0::/host/only\n", {"sys/fs/cgroup/memory.max": f"{100 * MIB}\n"})
    assert [limit.n_bytes for limit in limits.cgroup_limits()] == [100 * MIB]


def test_no_cgroup_is_no_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(system, "read_file", lambda path: (tmp_path / "nowhere").read_bytes())
    assert limits.cgroup_limits() == []
    assert limits.machine_limits()[0].source == "available memory"


def test_daemon_that_takes_all_that_it_may_is_not_short_of_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else it would give back at once what the plan took, and never have it again."""
    for total in (200 * MIB, 4096 * MIB):
        files = {"sys/fs/cgroup/job/memory.max": f"{total}\n", "sys/fs/cgroup/job/memory.current": f"{50 * MIB}\n"}
        fake_cgroup(monkeypatch, tmp_path, "0::/job\n", files)
        taken = limits.machine_limits()[0].n_bytes
        (tmp_path / "sys/fs/cgroup/job/memory.current").write_text(f"{50 * MIB + taken}\n")
        shortage = limits.read_shortage()
        assert shortage.headroom_bytes >= limits.ample_bytes(shortage.limit_bytes)


# --- reservations


def test_reservations() -> None:
    plan = plan_of(num_workers=1, memory_budget=f"{smallest_budget(1, SLOT) // MIB + 20}MiB")
    held = Budget(plan)
    for _ in range(plan.n_slots):
        assert held.spare_bytes >= SLOT
        held.ring_bytes += SLOT
    assert 0 <= held.spare_bytes < SLOT
    held.large_bytes = held.spare_bytes
    assert held.spare_bytes == 0


@given(decode_bytes=st.integers(1, 1 << 34), slot_bytes=st.integers(1, 1 << 28), readers=st.integers(1, 16))
def test_budget_named_for_a_decode_is_the_smallest(decode_bytes: int, slot_bytes: int, readers: int) -> None:
    least = smallest_budget(readers, slot_bytes) // MIB
    held = Budget(plan_of(num_workers=readers, memory_budget=f"{least}MiB", slot_bytes=slot_bytes))
    named = held.budget_for(decode_bytes)
    enough = plan_of(num_workers=readers, memory_budget=f"{named}MiB", slot_bytes=slot_bytes)
    assert Budget(enough).largest_decode_bytes >= decode_bytes
    if named > least:
        short = plan_of(num_workers=readers, memory_budget=f"{named - 1}MiB", slot_bytes=slot_bytes)
        assert Budget(short).largest_decode_bytes < decode_bytes


# --- measuring


def test_measuring_this_process() -> None:
    before = private_bytes(os.getpid())
    block = bytearray(os.urandom(1 << 20) * 32)
    after = private_bytes(os.getpid())
    assert 31 * MIB < after - before < 40 * MIB
    assert len(block) == 32 * MIB
    assert private_bytes(2**22 + 1) == 0
    footprint = limits.measure([os.getpid(), 2**22 + 1], 5)
    assert footprint.total_bytes == footprint.processes[os.getpid()] + 5
    assert limits.Footprint({1: 2, 3: 4}, 5).total_bytes == 11


def test_what_users_functions_take_is_part_of_every_readers_share():
    plain = smallest_budget(2, MIB)
    assert smallest_budget(2, MIB, 0, 30 * MIB) == plain + 2 * 30 * MIB
    config = make_config(source="-", num_workers=2, memory_budget=f"{plain // MIB}MiB")
    limit = Limit(1 << 40, "test")
    assert make_plan(config, MIB, limit).n_slots >= 3
    with pytest.raises(BudgetError, match=f'give memory_budget="{(plain + 60 * MIB) // MIB}MiB"'):
        make_plan(config, MIB, limit, 0, 30 * MIB)
    roomy = make_config(source="-", num_workers=2, memory_budget="1GiB")
    plan = make_plan(roomy, MIB, limit, 0, 30 * MIB)
    assert plan.reader_share_bytes == make_plan(roomy, MIB, limit).reader_share_bytes + 30 * MIB


def test_file_cache_does_not_count_against_a_control_groups_headroom(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What neighbours use is gone; what the kernel can drop is not."""
    files = {
        "sys/fs/cgroup/job/memory.max": f"{400 * MIB}\n",
        "sys/fs/cgroup/job/memory.current": f"{350 * MIB}\n",
        "proc/pressure/memory": "some avg10=12.50 avg60=0.10 avg300=0.00 total=7\nfull avg10=9.00\n",
        "sys/fs/cgroup/job/memory.stat": f"anon 1\nactive_file {100 * MIB}\ninactive_file {150 * MIB}\n",
    }
    fake_cgroup(monkeypatch, tmp_path, "0::/job\n", files)
    kept = limits.ample_bytes(400 * MIB)
    assert limits.machine_limits()[0].n_bytes == 300 * MIB - kept
    assert limits.machine_limits(own_bytes=60 * MIB)[0].n_bytes == 360 * MIB - kept
    shortage = limits.read_shortage()
    assert (shortage.headroom_bytes, shortage.limit_bytes) == (300 * MIB, 400 * MIB)
    assert shortage.stalled_percent == 12.5


def test_plan_with_more_readers_takes_their_room_from_the_ring() -> None:
    plan = plan_of(num_workers=2, memory_budget="400MiB")
    more = plan.with_readers(4, MIN_SLOTS)
    assert more is not None
    assert more.n_slots < plan.n_slots or more.large_bytes < plan.large_bytes
    assert more.large_bytes >= 0
    assert Budget(more).largest_decode_bytes == Budget(plan).largest_decode_bytes, "no decode fails for more readers"
    back = more.with_readers(2, MIN_SLOTS)
    assert back is not None
    assert (back.n_readers, back.n_slots) == (plan.n_readers, plan.n_slots)
    assert plan.with_readers(1000, MIN_SLOTS) is None


def test_explanation_names_every_part_and_what_would_allow_more() -> None:
    text = explain(plan_of(num_workers=2, memory_budget="400MiB", limit=Limit(800 * MIB, "cgroup /x")))
    for part in (
        "48.0 MiB for the daemon",
        "2 readers of 24.0 MiB",
        "400 MiB set by memory-budget",
        "cgroup /x 800 MiB",
    ):
        assert part in text
    grows = explain(plan_of(num_workers=2, limit=Limit(1 << 30, "cgroup /x")))
    assert "growing up to 614 MiB" in grows
    assert "growing" not in text


@given(st.lists(st.tuples(st.sampled_from(("readers", "slots", "large")), st.integers(1, 200)), max_size=20))
def test_auto_plan_never_exceeds_its_ceiling_however_it_grows_and_shrinks(steps: list[tuple[str, int]]) -> None:
    plan = plan_of(num_workers=2, limit=Limit(1 << 30, "cgroup /x"))
    for what, amount in steps:
        if what == "readers":
            plan = plan.with_readers(amount, MIN_SLOTS) or plan
        elif what == "slots":
            plan = plan.with_slots(amount)
        else:
            plan = plan.with_large(amount * MIB)
        assert plan.budget_bytes <= plan.ceiling_bytes
        assert plan.large_bytes >= 0
        assert plan.n_slots >= 1


def test_idle_time_of_the_cores_is_counted_and_never_goes_back() -> None:
    before = system.idle_seconds()
    assert 0 < before <= system.idle_seconds()
