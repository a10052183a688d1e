"""What packages prefetchd fits it: units, recipes for containers and conda, and what a service manager is told."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import socket
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from prefetchd._version import __version__
from prefetchd.cli.doctor.facts import LIBRARIES
from prefetchd.cli.main import make_parser
from prefetchd.ipc.service_manager import notify

ROOT = Path(__file__).parents[2]
PACKAGING = ROOT / "scripts" / "packaging"
UNITS = ("prefetchd@.service", "prefetchd-system@.service")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    parser.read_string((PACKAGING / name).read_text())
    return parser


@pytest.mark.parametrize("name", UNITS)
def test_unit_starts_a_command_that_exists(name):
    service = unit(name)["Service"]
    program, *words = shlex.split(service["ExecStart"].replace("%i", "train").replace("%h", "/home/me"))
    assert program.endswith("/bin/prefetchd")
    parsed = make_parser().parse_args(words)
    assert parsed.name == "train"
    assert parsed.config.endswith("/train.toml")
    assert service["Type"] == "notify"
    assert service["KillMode"] == "mixed"


@pytest.mark.parametrize("name", UNITS)
def test_systemd_accepts_the_unit(name, tmp_path):
    """With programs, folders and users that exist: whether they do is not the unit's matter."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", (PACKAGING / name).read_text(), flags=re.M)
    path = tmp_path / name.replace("@", "@train")
    path.write_text(text.replace("User=trainer", "User=root"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(path)],
        capture_output=True, text=True, timeout=60, env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if path.name in line or "Unknown" in line]
    assert (done.returncode, said) == (0, []), done.stderr


def test_service_manager_is_told(tmp_path, monkeypatch):
    for address in (str(tmp_path / "notify"), f"@prefetchd-test-{os.getpid()}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
            sock.settimeout(5)
            monkeypatch.setenv("NOTIFY_SOCKET", address)
            notify("READY=1")
            assert sock.recv(100) == b"READY=1"
    notify("READY=1")  # the manager is gone
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")


def test_container_recipe_runs_the_command_and_copies_what_exists():
    text = (PACKAGING / "Containerfile").read_text()
    (entry,) = re.findall(r"^ENTRYPOINT (\[.*\])$", text, re.M)
    assert shlex.split(entry.strip("[]").replace(",", " ")) == ["prefetchd", "serve"]
    (extras,) = re.findall(r'"prefetchd\[([\w,]+)\]', text)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    bases = re.findall(r"^FROM \S+/python:(3\.\d+)-slim", text, re.M)
    supported = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line}
    assert len(bases) == 2
    assert set(bases) <= supported
    instructions = re.findall(r"^([A-Z]+)\b", text, re.M)
    assert set(instructions) <= {"FROM", "COPY", "RUN", "USER", "ENV", "HEALTHCHECK", "ENTRYPOINT"}
    assert instructions.index("USER") < instructions.index("ENTRYPOINT"), "a daemon of root's serves no one else"


def recipe() -> Any:
    """Return conda's recipe as conda reads it: its one variable is filled in first."""
    yaml = pytest.importorskip("yaml")
    text = (PACKAGING / "conda" / "meta.yaml").read_text()
    variables = dict(re.findall(r'{% set (\w+) = "(.*?)" %}', text)) | {"PYTHON": "python"}
    text = re.sub(r"{%.*?%}\n", "", text)
    return yaml.safe_load(re.sub(r"{{ (\w+) }}", lambda match: variables[match[1]], text))


def test_conda_recipe_agrees_with_the_project():
    found = recipe()
    assert found["package"] == {"name": "prefetchd", "version": __version__}
    assert (PACKAGING / "conda" / found["source"]["path"]).resolve() == ROOT
    (entry,) = found["build"]["entry_points"]
    assert entry == f"prefetchd = {PROJECT['scripts']['prefetchd']}"
    assert found["about"]["license"] == PROJECT["license"]
    assert found["about"]["home"] == PROJECT["urls"]["Homepage"]
    assert found["about"]["summary"] == PROJECT["description"]
    names = {"opencv-python-headless": "py-opencv", "xxhash": "python-xxhash"}  # as conda has them
    needed = {f"python{PROJECT['requires-python']}", "__linux"}
    for each in PROJECT["dependencies"]:
        name, at_least, version = each.partition(">=")
        needed.add(f"{names.get(name, name)}{at_least}{version.removesuffix('.0.90')}")
    assert {each.replace(" ", "") for each in found["requirements"]["run"]} == needed
    for command in found["test"]["commands"]:
        assert command.split()[0] == "prefetchd"


def test_doctor_looks_for_what_the_project_needs():
    assert {each.partition(">=")[0] for each in PROJECT["dependencies"]} == set(LIBRARIES)
