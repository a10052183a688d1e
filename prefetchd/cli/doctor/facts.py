"""What this machine is, as plain values: gathered without starting anything but `nvidia-smi`, and judged elsewhere.

A fact that cannot be found out is `None`, or empty; nothing here fails. Only those environment variables are read that
hold no secret (`VARIABLES`).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import locale
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

from prefetchd._version import __version__
from prefetchd.errors import ConfigError, PrefetchdError, one_line
from prefetchd.ipc import messages, system

LIBRARIES = ("numpy", "opencv-python-headless", "msgspec", "psutil", "xxhash")
OPTIONAL = (
    "starlette", "uvicorn", "ray",
    "torch", "keras", "jax", "jaxlib", "tensorflow", "tensorflow-cpu", "pyarrow", "zstandard", "obstore",
    "prometheus-client", "shtab", "albumentations", "lightning", "accelerate", "opencv-python",
    "opencv-contrib-python", "opencv-contrib-python-headless",
)  # fmt: skip
VARIABLES = (
    "PREFETCHD_NAME", "XDG_RUNTIME_DIR", "TMPDIR", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS",
    "KERAS_BACKEND", "CUDA_VISIBLE_DEVICES", "LD_PRELOAD", "MALLOC_ARENA_MAX", "PYTHONMALLOC",
)  # fmt: skip
_GPU_S = 10.0


def gather() -> dict[str, Any]:
    """Return the facts, JSON values by name."""
    return {
        "prefetchd": {"version": __version__, "protocol": messages.PROTOCOL},
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "executable": sys.executable,
        },
        "system": _system(),
        "cores": _cores(),
        "memory": _memory(),
        "shared_memory": _folder("/dev/shm"),
        "temporary": _folder(_temporary()),
        "run_directory": _run_directory(),
        "limits": _limits(),
        "locale": _locale(),
        "clock": {"utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "year": time.gmtime().tm_year},
        "gpu": _gpu(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "optional": {name: found for name in OPTIONAL if (found := _version(name))},
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _system() -> dict[str, Any]:
    distribution = ""
    with contextlib.suppress(OSError):
        distribution = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    container = next((name for name in ("/.dockerenv", "/run/.containerenv") if os.path.exists(name)), "")
    return {
        "kernel": os.uname().release,
        "machine": os.uname().machine,
        "distribution": distribution,
        "libc": " ".join(platform.libc_ver()).strip(),
        "container": container or (_read("/run/systemd/container") or ""),
        "missing": _missing(),
        "ptrace_scope": _number("/proc/sys/kernel/yama/ptrace_scope"),
    }


def _missing() -> str:
    """Return what prefetchd needs of the system and it lacks, as its error; empty if it has everything."""
    try:
        from prefetchd.client import check_platform

        check_platform()
    except PrefetchdError as error:
        return str(error)
    return ""


def _cores() -> dict[str, Any]:
    load = None
    with contextlib.suppress(OSError):
        load = round(os.getloadavg()[0], 1)
    return {"online": os.cpu_count(), "usable": system.usable_cores(), "quota": _quota(), "load": load}


def _quota() -> float | None:
    """Return how many cores the control groups allow, the least of them; `None` for no limit."""
    found = []
    for line in (_read("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folder = os.path.join("/sys/fs/cgroup", path.lstrip("/"))
            while folder.startswith("/sys/fs/cgroup"):
                words = (_read(os.path.join(folder, "cpu.max")) or "").split()
                if len(words) == 2 and words[0].isdigit():
                    found.append(int(words[0]) / int(words[1]))
                folder = os.path.dirname(folder)
        elif "cpu" in controllers.split(","):
            for folder in (os.path.join("/sys/fs/cgroup/cpu", path.lstrip("/")), "/sys/fs/cgroup/cpu"):
                quota, period = (_number(os.path.join(folder, f"cpu.cfs_{what}_us")) for what in ("quota", "period"))
                if quota and period and quota > 0:
                    found.append(quota / period)
    return round(min(found), 2) if found else None


def _memory() -> dict[str, Any]:
    from prefetchd.daemon.memory.limits import cgroups, read_shortage

    kernel = {}
    for line in (_read("/proc/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            kernel[name] = int(words[0]) * (1024 if words[-1] == "kB" else 1)
    available_bytes, total_bytes = system.memory()
    shortage = read_shortage()
    return {
        "total_bytes": total_bytes,
        "available_bytes": available_bytes,
        "swap_bytes": kernel.get("SwapTotal"),
        "commit_limit_bytes": kernel.get("CommitLimit"),
        "committed_bytes": kernel.get("Committed_AS"),
        "overcommit": _number("/proc/sys/vm/overcommit_memory"),
        "huge_pages": kernel.get("HugePages_Total"),
        "transparent_huge_pages": _chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
        "transparent_huge_pages_shared": _chosen("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
        "control_groups": [
            {"limit_bytes": group.limit_bytes, "used_bytes": group.used_bytes, "folder": group.folder}
            for group in cgroups()
        ],
        "headroom_bytes": shortage.headroom_bytes,
        "headroom_of": shortage.source,
        "pressure": os.path.exists("/proc/pressure/memory"),
        "stalled_percent": shortage.stalled_percent,
    }


def _folder(path: str) -> dict[str, Any]:
    """Return a file system's size and free bytes, and whether it can be written; 0 bytes for one without a limit."""
    try:
        state = os.statvfs(path)
    except OSError as error:
        return {"path": path, "error": one_line(error.strerror or str(error))}
    return {
        "path": path,
        "total_bytes": state.f_blocks * state.f_frsize,
        "free_bytes": state.f_bavail * state.f_frsize,
        "writable": os.access(path, os.W_OK),
    }


def _temporary() -> str:
    with contextlib.suppress(OSError):
        return tempfile.gettempdir()
    return os.environ.get("TMPDIR", "/tmp")


def _run_directory() -> dict[str, Any]:
    from prefetchd.ipc.run_directory import daemon_paths

    try:
        return {"path": os.fspath(daemon_paths("doctor").socket.parent)}
    except ConfigError as error:
        return {"error": str(error)}


def _limits() -> dict[str, Any]:
    """Return soft and hard limits of this process; `None` for none."""
    found: dict[str, Any] = {}
    for name in ("NOFILE", "NPROC", "AS", "DATA", "MEMLOCK"):
        limits = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
        found[name.lower()] = [None if each == resource.RLIM_INFINITY else each for each in limits]
    found["pids"] = None
    for line in (_read("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "pids" in controllers.split(","):
            root = "/sys/fs/cgroup" if controllers == "" else "/sys/fs/cgroup/pids"
            found["pids"] = _number(os.path.join(root, path.lstrip("/"), "pids.max"))
    return found


def _locale() -> dict[str, Any]:
    return {
        "text": locale.getpreferredencoding(False),
        "files": sys.getfilesystemencoding(),
        "name": os.environ.get("LC_ALL") or os.environ.get("LC_CTYPE") or os.environ.get("LANG") or "",
    }


def _gpu() -> dict[str, Any]:
    """Return what `nvidia-smi` says of each GPU: name, memory, driver; or why it says nothing."""
    device = os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/nvidia0")
    program = shutil.which("nvidia-smi")
    if program is None:
        return {"devices": [], "error": "nvidia-smi is not installed" if device else ""}
    command = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GPU_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        return {"devices": [], "error": one_line(str(error))}
    if done.returncode:
        return {"devices": [], "error": one_line((done.stderr or done.stdout).strip()) or f"status {done.returncode}"}
    return {"devices": [line.strip() for line in done.stdout.splitlines() if line.strip()], "error": ""}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read(path: str) -> str | None:
    try:
        return system.read_file(path).decode(errors="replace").strip()
    except OSError:
        return None


def _number(path: str) -> int | None:
    text = _read(path) or ""
    return int(text) if text.lstrip("-").isdigit() else None


def _chosen(path: str) -> str | None:
    """Return the word in brackets of a file such as `always [madvise] never`."""
    text = _read(path) or ""
    return text.partition("[")[2].partition("]")[0] or None
