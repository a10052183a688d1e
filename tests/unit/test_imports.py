"""Imports point one way, from the command line down to the errors: one list of layers holds for every module."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import prefetchd

ROOT = Path(prefetchd.__file__).parent
# A module imports from its own package, and from packages that stand above its own in this list.
LAYERS = (
    ("errors", "_version"),
    ("config", "sampling"),
    ("batch_options",),
    ("ipc",),
    ("ring",),
    ("columns",),
    ("data", "client"),
    ("reader",),
    ("torch", "keras", "tensorflow"),
    ("daemon.schedule",),
    ("daemon.readers",),
    ("daemon.memory",),
    ("daemon.consumers",),
    ("daemon",),
    ("remote",),
    ("cli.measure",),
    ("cli.views",),
    ("cli.verify", "cli.doctor"),
    ("dashboard",),
    ("cli",),
    ("__main__",),
)
LAYER_OF = {package: number for number, packages in enumerate(LAYERS) for package in packages}
# What the layers would allow, and must not be.
NEVER = (("client", "ring.slots"), ("reader", "client"), ("torch", "reader"), ("keras", "reader"), ("daemon", "torch"))
MACHINERY = frozenset(
    {"socket", "subprocess", "multiprocessing", "threading", "selectors", "select", "asyncio", "mmap"}
)
PURE = (
    "sampling.order",
    "sampling.permutation",
    "sampling.places",
    "sampling.blocks",
    "sampling.buckets",
    "sampling.shuffled",
    "sampling.apportion",
    "sampling.mixture",
    "sampling.first_fit",
    "sampling.packing",
    "ring.layout",
    "ring.slots",
    "daemon.schedule.cursor",
    "daemon.schedule.pacing",
    "daemon.schedule.windows",
    "daemon.schedule.scheduler",
    "daemon.readers.batch_job",
    "daemon.readers.job_tracker",
)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imported(path: Path) -> set[str]:
    """Return every module that a file imports when it runs, inside functions too, as written."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if is_type_checking(node):
            for child in node.orelse:  # type: ignore[attr-defined]
                visit(child)
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            module = node.module or ""
            found.add(module)
            found.update(f"{module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in ROOT.rglob("*.py")}


@functools.cache  # not read as the module is loaded: every worker loads it, and one runs its tests
def imports_of(name: str) -> set[str]:
    """Return every module that a module of ours imports, as written."""
    return imported(FILES[name])


@functools.cache
def ours_of(name: str) -> set[str]:
    """Return the modules of ours that a module imports."""
    return {other for other in FILES if other and other != name and f"prefetchd.{other}" in imports_of(name)}


def package_of(name: str) -> str:
    """Return the longest prefix of a module's name that stands in `LAYERS`."""
    while name not in LAYER_OF:
        name, _, last = name.rpartition(".")
        assert last, "a module that is in no layer"
    return name


def reached_from(start: str) -> set[str]:
    found: set[str] = set()
    new = {start}
    while new:
        found |= new
        new = {other for name in new for other in ours_of(name)} - found
    return found - {start}


@pytest.mark.parametrize("name", sorted(set(FILES) - {""}))
def test_each_module_imports_only_from_the_layers_above_its_own(name):
    mine = package_of(name)
    for other in ours_of(name):
        if FILES[other].name == "__init__.py" and other in ("data", "daemon", "cli"):
            continue  # a docstring
        theirs = package_of(other)
        assert theirs == mine or LAYER_OF[theirs] < LAYER_OF[mine], f"{name} imports {other}"
        assert not any(
            (name + ".").startswith(importer + ".") and (other + ".").startswith(never + ".")
            for importer, never in NEVER
        ), f"{name} imports {other}"


def test_no_module_imports_itself_by_a_circle():
    packages = {name for name, path in FILES.items() if path.name == "__init__.py"}
    circles = [name for name in FILES if name and name not in packages and name in reached_from_others(name)]
    assert circles == []


def reached_from_others(name: str) -> set[str]:
    return {other for first in ours_of(name) for other in {first} | reached_from(first)}


def test_ray_is_imported_by_the_bridge_and_by_its_actors_alone():
    users = {name for name in FILES if any(f"{other}.".startswith("ray.") for other in imports_of(name))}
    assert users == {"remote.ray_placer", "remote.ray_agent"}
    assert {name for name in FILES if "remote.ray_placer" in ours_of(name)} == {"remote.bridge"}
    assert {name for name in FILES if "remote.ray_agent" in ours_of(name)} == {"remote.ray_placer"}


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_reach_no_sockets_or_processes_and_use_no_clock(name):
    assert not imports_of(name) & {"os", "time"}
    for module in {name} | reached_from(name):
        top = {other.partition(".")[0] for other in imports_of(module)}
        assert not top & MACHINERY, module


def test_views_draw_without_machinery():
    for name in ("cli.views.charts", "cli.views.reports", "cli.verify.findings"):
        for module in {name} | reached_from(name):
            assert not {other.partition(".")[0] for other in imports_of(module)} & MACHINERY, module


@pytest.mark.parametrize("module", ["", ".client.api", ".client.launch", ".cli.main"])
def test_import_loads_neither_numpy_nor_opencv(module):
    heavy = "{'numpy', 'cv2', 'psutil', 'torch', 'keras', 'jax'}"
    code = f"import sys, prefetchd{module}; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
