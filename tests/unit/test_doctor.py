"""What `prefetchd doctor` says of machines: facts that were made up, each with what it must lead to."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from prefetchd.cli.commands.doctor import _lines
from prefetchd.cli.doctor.facts import gather
from prefetchd.cli.doctor.judge import Finding, judge

GIB = 1 << 30
MIB = 1 << 20
GOOD: dict[str, Any] = {
    "prefetchd": {"version": "1.2.3", "protocol": 7},
    "python": {"version": "3.12.1", "implementation": "CPython", "executable": "/usr/bin/python3"},
    "system": {
        "kernel": "6.8.0", "machine": "x86_64", "distribution": "Debian 13", "libc": "glibc 2.41", "container": "",
        "missing": "", "ptrace_scope": 0,
    },
    "cores": {"online": 16, "usable": 16, "quota": None, "load": 0.5},
    "memory": {
        "total_bytes": 64 * GIB, "available_bytes": 50 * GIB, "swap_bytes": 0, "commit_limit_bytes": 32 * GIB,
        "committed_bytes": 8 * GIB, "overcommit": 0, "huge_pages": 0, "transparent_huge_pages": "madvise",
        "transparent_huge_pages_shared": "never", "control_groups": [], "headroom_bytes": 50 * GIB,
        "headroom_of": "available memory", "pressure": True, "stalled_percent": 0.0,
    },
    "shared_memory": {"path": "/dev/shm", "total_bytes": 32 * GIB, "free_bytes": 32 * GIB, "writable": True},
    "temporary": {"path": "/tmp", "total_bytes": 32 * GIB, "free_bytes": 32 * GIB, "writable": True},
    "run_directory": {"path": "/run/user/1000/prefetchd"},
    "limits": {
        "nofile": [1024, 524288], "nproc": [None, None], "as": [None, None], "data": [None, None],
        "memlock": [MIB, MIB], "pids": None,
    },
    "locale": {"text": "UTF-8", "files": "utf-8", "name": "C.UTF-8"},
    "clock": {"utc": "2026-11-29T12:00:00Z", "year": 2026},
    "gpu": {"devices": [], "error": ""},
    "libraries": {"numpy": "2.4", "opencv-python-headless": "4.13", "msgspec": "0.20", "psutil": "7", "xxhash": "3.5"},
    "optional": {"torch": "2.13"},
    "environment": {},
}  # fmt: skip


def changed(path: str, value: Any) -> dict[str, Any]:
    facts = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    at = facts
    for name in parents:
        at = at[name]
    at[last] = value
    return facts


def test_good_machine_has_nothing_to_note():
    findings = judge(GOOD)
    assert {each.level for each in findings} == {"ok"}
    assert all(each.found and each.meaning for each in findings)
    assert len({each.name for each in findings}) == len(findings)


@pytest.mark.parametrize(
    ("path", "value", "name", "level", "words"),
    [
        ("system.missing", "cannot use prefetchd here: pidfd_open does not work", "system", "bad", "pidfd_open"),
        ("system.container", "/.dockerenv", "container", "ok", "limits are this container's"),
        ("system.ptrace_scope", 1, "ptrace scope", "ok", "py-spy"),
        ("python.implementation", "PyPy", "versions", "note", "CPython alone"),
        ("libraries.msgspec", None, "libraries", "bad", "msgspec cannot be found"),
        ("optional", {"opencv-python": "4.13"}, "libraries", "note", "keep one"),
        ("cores.quota", 2.5, "cores", "note", "num_workers=2"),
        ("cores.load", 40.0, "cores", "note", "busy"),
        ("memory.headroom_bytes", 100 * MIB, "memory", "bad", "100 MiB can be taken"),
        ("memory.stalled_percent", 12.0, "memory", "note", "12 % of the last 10 s"),
        ("memory.pressure", False, "pressure", "note", "memory_budget"),
        ("memory.overcommit", 2, "overcommit", "note", "vm.overcommit_memory=0"),
        ("memory.huge_pages", 512, "huge pages", "ok", "512"),
        ("shared_memory.free_bytes", 64 * MIB, "/dev/shm", "ok", "--shm-size need not"),
        ("shared_memory", {"path": "/dev/shm", "error": "No such file"}, "/dev/shm", "note", "anonymous memory"),
        ("run_directory", {"error": "cannot use the run directory /x"}, "run directory", "bad", "/x"),
        ("temporary", {"path": "/t", "error": "gone"}, "temporary folder", "note", "TMPDIR"),
        ("limits.nofile", [256, 256], "open files", "note", "ulimit -n"),
        ("limits.pids", 20, "processes", "note", "pids.max"),
        ("limits.as", [4 * GIB, None], "address space (ulimit -v)", "note", "unlimited"),
        ("gpu", {"devices": ["H200, 140 GiB", "H200, 140 GiB"], "error": ""}, "GPU", "ok", "8 cores a GPU"),
        ("gpu", {"devices": [], "error": "no driver"}, "GPU", "note", 'device="cuda" will fail'),
        ("locale.files", "ascii", "locale", "note", "LC_ALL=C.UTF-8"),
        ("clock.year", 1970, "clock", "bad", "signed requests"),
        ("environment", {"WORLD_SIZE": "8"}, "environment", "note", "rank='env'"),
    ],
)
def test_fact_leads_to_a_finding_with_what_to_do(path, value, name, level, words):
    (found,) = [each for each in judge(changed(path, value)) if each.name == name]
    assert (found.level, words in found.meaning) == (level, True), found


def test_opencv_of_another_package_is_enough():
    facts = changed("libraries.opencv-python-headless", None)
    facts["optional"] = {"opencv-contrib-python": "4.13"}
    assert [each.level for each in judge(facts) if each.name == "libraries"] == ["ok"]


def test_lines_say_how_many_will_not_work():
    findings = [
        Finding("a", "ok", "x" * 300, "fine"),
        Finding("longer", "bad", "broken", "mend it"),
    ]
    lines = _lines(findings)
    assert all(len(line) <= 100 or " " not in line.strip() for line in lines)
    assert lines[-1] == "1 of 2 will not work (X)"
    assert any(line.startswith("X longer  broken") for line in lines)
    assert _lines(findings[:1])[-1] == "everything works"


def test_facts_of_this_machine_can_be_judged_and_are_json():
    facts = gather()
    assert set(facts) == set(GOOD)
    for name, value in GOOD.items():
        if isinstance(value, dict) and name not in ("shared_memory", "temporary", "run_directory", "optional",
                                                    "environment"):  # fmt: skip
            assert set(facts[name]) == set(value), name
    assert json.loads(json.dumps(facts)) == facts
    assert judge(facts)
