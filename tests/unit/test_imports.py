"""Imports point one way: cli -> daemon -> pool -> reader -> leaves; the client never sees the daemon."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import prefetchd

ROOT = Path(prefetchd.__file__).parent
DAEMON_SIDE = frozenset(
    {
        "daemon",
        "foreman",
        "front_desk",
        "door",
        "hearing",
        "releases",
        "openings",
        "granting",
        "start_line",
        "guard",
        "pool",
        "reader",
        "reader_messages",
        "reader_handle",
        "zygote",
        "zygote_handle",
        "budget",
        "sources",
        "datasets",
        "admission",
        "groups",
    }
)
MACHINERY = frozenset(
    {"socket", "subprocess", "multiprocessing", "threading", "selectors", "select", "asyncio", "mmap"}
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
IMPORTED = {name: imported(path) for name, path in FILES.items()}
GRAPH = {
    name: {other for other in FILES if other and other != name and f"prefetchd.{other}" in names}
    for name, names in IMPORTED.items()
}


def reached_from(start: str) -> set[str]:
    found: set[str] = set()
    new = {start}
    while new:
        found |= new
        new = {other for name in new for other in GRAPH[name]} - found
    return found - {start}


def test_no_module_imports_itself_by_a_circle():
    packages = {name for name, path in FILES.items() if path.name == "__init__.py"}
    circles = [name for name in FILES if name and name not in packages and name in reached_from_others(name)]
    assert circles == []


def reached_from_others(name: str) -> set[str]:
    return {other for first in GRAPH[name] for other in {first} | reached_from(first)}


@pytest.mark.parametrize(
    "name", ["api", "loader", "session", "client", "uplink", "launch", "control", "messages", "segment"]
)
def test_consumers_side_never_imports_the_daemons(name):
    reached = {module.partition(".")[0] for module in reached_from(name)}
    assert not reached & (DAEMON_SIDE | {"cli", "commands", "tools", "consumers", "scheduler", "slots"})


@pytest.mark.parametrize("name", ["reader", "zygote", "sources.images"])
def test_readers_know_nothing_of_the_daemon(name):
    assert not reached_from(name) & {
        "cli",
        "commands",
        "daemon",
        "pool",
        "budget",
        "consumers",
        "scheduler",
        "client",
        "loader",
    }


@pytest.mark.parametrize("name", sorted(set(FILES) - {"commands.serve", "private_daemon", "shared_daemon"}))
def test_only_the_commands_that_are_a_daemon_import_it(name):
    assert not GRAPH[name] & {"daemon", "private_daemon", "shared_daemon"}


@pytest.mark.parametrize("name", sorted(set(FILES) - {"__main__"}))
def test_nothing_imports_the_command_line(name):
    assert "cli" not in GRAPH[name]


@pytest.mark.parametrize("name", ["slots", "scheduler", "windows", "cursor", "order", "shard", "layout", "filling"])
def test_pure_modules_reach_no_sockets_or_processes_and_use_no_clock(name):
    assert not IMPORTED[name] & {"os", "time"}
    for module in {name} | reached_from(name):
        top = {other.partition(".")[0] for other in IMPORTED[module]}
        assert not top & MACHINERY, module


@pytest.mark.parametrize("name", sorted(name for name in FILES if name.partition(".")[0] not in ("commands", "tools")))
def test_only_commands_use_the_tools(name):
    assert not any(other.partition(".")[0] == "tools" for other in GRAPH[name])


@pytest.mark.parametrize(
    "name", ["tools.charts", "tools.findings", "tools.frame", "tools.rates", "tools.display", "tools.status_text"]
)
def test_tools_that_judge_or_draw_are_pure(name):
    for module in {name} | reached_from(name):
        assert not {other.partition(".")[0] for other in IMPORTED[module]} & MACHINERY, module


@pytest.mark.parametrize(
    "module", ["prefetchd", "prefetchd.client.api", "prefetchd.client.launch", "prefetchd.cli.main"]
)
def test_import_loads_neither_numpy_nor_opencv(module):
    code = (
        f"import sys, {module}; print(sorted({{'numpy', 'cv2', 'psutil', 'torch', 'keras', 'jax'}} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
