"""What the facts of a machine mean for prefetchd: a finding each, in words. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from prefetchd.config.units import format_bytes

MIB = 1 << 20
_LEAST_BYTES = 256 * MIB  # of memory, below which not much more than a test runs
_FEW_FILES = 1024
_FEW_PROCESSES = 64
_FIRST_YEAR = 2025

Level = Literal["ok", "note", "bad"]
Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what it is.
        level: `ok`; `note`, where something is worth knowing; `bad`, where something will not work.
        found: what was found.
        meaning: what that means for prefetchd on this machine, and what to do.
    """

    name: str
    level: Level
    found: str
    meaning: str


def judge(facts: Facts) -> list[Finding]:
    """Return the findings on all `facts`, as `facts.gather` returns them."""
    return [finding for check in _CHECKS for finding in check(facts)]


def _kernel(facts: Facts) -> Iterator[Finding]:
    of = facts["system"]
    where = ", ".join(each for each in (of["distribution"], of["machine"], of["libc"]) if each)
    found = f"Linux {of['kernel']}" + (f" ({where})" if where else "")
    if of["missing"]:
        yield Finding("system", "bad", found, of["missing"])
    else:
        yield Finding("system", "ok", found, "memfd, pidfd, message sockets and /proc work")
    if of["container"]:
        yield Finding(
            "container", "ok", of["container"],
            "limits are this container's; trainers and daemon in different containers share the run directory and user",
        )  # fmt: skip
    if of["ptrace_scope"]:
        yield Finding(
            "ptrace scope", "ok", str(of["ptrace_scope"]),
            "prefetchd does not trace; py-spy and gdb need root, or 0 in /proc/sys/kernel/yama/ptrace_scope",
        )  # fmt: skip


def _python(facts: Facts) -> Iterator[Finding]:
    of, ours = facts["python"], facts["prefetchd"]
    found = f"prefetchd {ours['version']} (protocol {ours['protocol']}), {of['implementation']} {of['version']}"
    if of["implementation"] != "CPython":
        yield Finding("versions", "note", found, "prefetchd is tested with CPython alone")
    else:
        yield Finding("versions", "ok", found, "daemon and trainers must have the same version of prefetchd")
    missing = [name for name, version in facts["libraries"].items() if version is None]
    listed = ", ".join(f"{name} {version}" for name, version in facts["libraries"].items() if version)
    optional = facts["optional"]
    others = [name for name in optional if name.startswith("opencv")]
    if "opencv-python-headless" in missing and others:
        missing.remove("opencv-python-headless")
    if missing:
        yield Finding("libraries", "bad", listed, f"{', '.join(missing)} cannot be found: pip install prefetchd again")
    elif len(others) + (facts["libraries"]["opencv-python-headless"] is not None) > 1:
        yield Finding(
            "libraries", "note", f"{listed}, {', '.join(others)}",
            "several packages of OpenCV write to one folder, and the last one installed wins: keep one",
        )  # fmt: skip
    else:
        yield Finding("libraries", "ok", listed, "all that prefetchd needs")
    frameworks = ", ".join(f"{name} {version}" for name, version in optional.items())
    yield Finding("optional", "ok", frameworks or "none", "each is loaded only where it is used")


def _cores(facts: Facts) -> Iterator[Finding]:
    of = facts["cores"]
    usable, quota = of["usable"], of["quota"]
    found = f"{usable} usable of {of['online']}" + (f", a quota of {quota:g}" if quota else "")
    found += f", load {of['load']:g}" if of["load"] is not None else ""
    if quota and quota < usable:
        meaning = (
            f"the control group allows {quota:g} cores' worth of time, and num_workers=auto begins with {usable} "
            f"readers: give num_workers={max(1, round(quota))}"
        )
        yield Finding("cores", "note", found, meaning)
    elif of["load"] is not None and of["load"] > 1.5 * usable:
        yield Finding("cores", "note", found, "the cores are busy with other work: decoding will be slower than alone")
    else:
        yield Finding("cores", "ok", found, f"num_workers=auto begins with {usable} readers, and half for arrays")


def _memory(facts: Facts) -> Iterator[Finding]:
    of = facts["memory"]
    found = f"{format_bytes(of['available_bytes'])} available of {format_bytes(of['total_bytes'])}"
    found += f", swap {format_bytes(of['swap_bytes'])}" if of["swap_bytes"] else ""
    for group in of["control_groups"]:
        found += f"; limit of {format_bytes(group['limit_bytes'])} ({format_bytes(group['used_bytes'])} used)"
        found += f" in {group['folder']}"
    headroom = format_bytes(of["headroom_bytes"])
    if of["headroom_bytes"] < _LEAST_BYTES:
        yield Finding(
            "memory", "bad", found,
            f"{headroom} can be taken in {of['headroom_of']}: too little for readers and a ring; free memory, or raise "
            "the limit",
        )  # fmt: skip
    elif of["stalled_percent"] >= 5:
        yield Finding(
            "memory", "note", found,
            f"tasks waited for memory {of['stalled_percent']:.0f} % of the last 10 s: state a memory_budget",
        )  # fmt: skip
    else:
        yield Finding("memory", "ok", found, f"an automatic memory_budget stays below {headroom} ({of['headroom_of']})")
    if not of["pressure"]:
        yield Finding(
            "pressure", "note", "/proc/pressure/memory is missing",
            "an automatic budget cannot see that tasks stall for memory: state a memory_budget on a full machine",
        )  # fmt: skip
    if of["overcommit"] == 2:
        limit, used = of["commit_limit_bytes"] or 0, of["committed_bytes"] or 0
        yield Finding(
            "overcommit", "note", f"2: {format_bytes(max(0, limit - used))} can be promised still",
            "each reader is a fork and promises memory that it may not use: with many, forks fail although memory is "
            "free; vm.overcommit_memory=0, or fewer num_workers",
        )  # fmt: skip
    huge = of["huge_pages"] or 0
    what = ", ".join(
        f"{name} {of[key]}"
        for name, key in (("for programs", "transparent_huge_pages"), ("shared", "transparent_huge_pages_shared"))
        if of[key]
    )
    meaning = "prefetchd asks for none" + (f"; the {huge} that are set aside are lost to it" if huge else "")
    yield Finding("huge pages", "ok", what or "no transparent ones", meaning)


def _shared_memory(facts: Facts) -> Iterator[Finding]:
    of = facts["shared_memory"]
    if "error" in of or not of["writable"]:
        found = f"{of['path']}: {of.get('error', 'not writable')}"
        yield Finding("/dev/shm", "note", found, "slots are anonymous memory files instead, which work as well")
        return
    if not of["total_bytes"]:
        yield Finding("/dev/shm", "ok", "no limit", "slots are made there")
        return
    found = f"{format_bytes(of['free_bytes'])} free of {format_bytes(of['total_bytes'])}"
    small = of["free_bytes"] < _LEAST_BYTES
    meaning = "slots that do not fit are anonymous memory files: --shm-size need not be raised for prefetchd"
    yield Finding("/dev/shm", "ok", found, meaning if small else "slots are made there")


def _folders(facts: Facts) -> Iterator[Finding]:
    run, temporary = facts["run_directory"], facts["temporary"]
    if "error" in run:
        yield Finding("run directory", "bad", "cannot be used", run["error"])
    else:
        yield Finding("run directory", "ok", run["path"], "daemon and trainers meet here: both must see this folder")
    if "error" in temporary or not temporary["writable"]:
        found = f"{temporary['path']}: {temporary.get('error', 'not writable')}"
        yield Finding("temporary folder", "note", found, "indexes of shards cannot be kept there: set TMPDIR")
    else:
        found = f"{temporary['path']}, {format_bytes(temporary['free_bytes'])} free"
        yield Finding("temporary folder", "ok", found, "writable")


def _limits(facts: Facts) -> Iterator[Finding]:
    of = facts["limits"]
    soft, hard = of["nofile"]
    found = f"{_shown(soft)} open files, up to {_shown(hard)}"
    if hard is not None and hard < _FEW_FILES:
        meaning = "each slot takes one, and each loader some: a long ring does not fit; raise it (ulimit -n)"
        yield Finding("open files", "note", found, meaning)
    else:
        yield Finding("open files", "ok", found, "the daemon raises its own limit as far as it may")
    n_processes = [each for each in (of["nproc"][0], of["pids"]) if each is not None]
    if n_processes and min(n_processes) < _FEW_PROCESSES:
        meaning = "readers are processes: with fewer than it has cores, forks fail; raise ulimit -u or pids.max"
        yield Finding("processes", "note", f"{min(n_processes)} at most", meaning)
    for name, what in (("as", "address space (ulimit -v)"), ("data", "data (ulimit -d)")):
        if of[name][0] is not None:
            meaning = "it binds daemon, readers and trainer one by one, on top of the budget: unlimited is best"
            yield Finding(what, "note", format_bytes(of[name][0]), meaning)


def _gpu(facts: Facts) -> Iterator[Finding]:
    of = facts["gpu"]
    if of["devices"]:
        n_cores = facts["cores"]["usable"]
        meaning = f'device="cuda" copies ahead; {n_cores / len(of["devices"]):g} cores a GPU decode for it'
        yield Finding("GPU", "ok", "; ".join(of["devices"]), meaning)
    elif of["error"]:
        meaning = 'device="cuda" will fail until the driver works; everything else does not need it'
        yield Finding("GPU", "note", of["error"], meaning)
    else:
        yield Finding("GPU", "ok", "none of NVIDIA's", "batches are delivered to the processor's memory")


def _texts(facts: Facts) -> Iterator[Finding]:
    of, clock = facts["locale"], facts["clock"]
    found = f"{of['text']}, file names {of['files']}" + (f" ({of['name']})" if of["name"] else "")
    if of["files"].replace("-", "").lower() != "utf8":
        yield Finding(
            "locale", "note", found, "names of files that are not ASCII are shown escaped: set LC_ALL=C.UTF-8"
        )
    else:
        yield Finding("locale", "ok", found, "lists are read as UTF-8 in every locale")
    if clock["year"] < _FIRST_YEAR:
        meaning = "the clock is wrong: stores of objects refuse signed requests, and certificates do not hold"
        yield Finding("clock", "bad", clock["utc"], meaning)
    else:
        yield Finding("clock", "ok", clock["utc"], "durations come from a clock that nobody sets")
    if facts["environment"]:
        listed = ", ".join(f"{name}={value}" for name, value in facts["environment"].items())
        ranks = facts["environment"].get("WORLD_SIZE", "1") not in ("", "0", "1")
        meaning = "loaders want rank='env', or rank=0, world_size=1" if ranks else "variables that prefetchd looks at"
        yield Finding("environment", "note" if ranks else "ok", listed, meaning)


def _shown(limit: int | None) -> str:
    return "any number" if limit is None else f"{limit:,}"


_CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _python, _kernel, _cores, _memory, _shared_memory, _folders, _limits, _gpu, _texts,
)  # fmt: skip
