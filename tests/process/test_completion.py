"""`prefetchd completion`: the scripts are sound, and bash completes with them what the parser has."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.process.commands import refused, run_command

pytest.importorskip("shtab")

COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9
function=$(complete -p prefetchd | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$function prefetchd "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "completion.bash"
    result = run_command("completion", "bash")
    assert result.returncode == 0, result.stderr
    path.write_text(result.stdout)
    return path


def completed(script: Path, *words: str) -> list[str]:
    """What bash offers after these words, the last of which is being typed."""
    command = ["bash", "-c", COMPLETE, "bash", str(script), "prefetchd", *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=script.parent)
    assert result.returncode == 0, result.stderr
    return [word.strip() for word in result.stdout.split()]


def test_bash_completes_commands_options_choices_and_files(script: Path):
    assert completed(script, "ser") == ["serve"]
    assert completed(script, "serve", "--shu") == ["--shuffle", "--shuffle-block"]
    assert set(completed(script, "serve", "--color", "")) == {"rgb", "bgr", "gray", "unchanged"}
    (script.parent / "train.txt").touch()
    assert "train.txt" in completed(script, "serve", "tra")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_can_read_theirs(shell: str):
    result = run_command("completion", shell)
    assert result.returncode == 0, result.stderr
    assert "shuffle" in result.stdout
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=result.stdout, text=True, timeout=100).returncode == 0


@pytest.mark.parametrize(
    ("shell", "place"),
    [
        ("bash", "data/bash-completion/completions/prefetchd"),
        ("zsh", "data/zsh/site-functions/_prefetchd"),
        ("fish", "config/fish/completions/prefetchd.fish"),
    ],
)
def test_script_is_installed_where_the_shell_looks_for_it(shell, place, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("BASH_COMPLETION_USER_DIR", raising=False)
    monkeypatch.setenv("SHELL", f"/usr/bin/{shell}")
    result = run_command("completion", "--install")
    assert result.returncode == 0, result.stderr
    assert str(tmp_path / place) in result.stdout
    assert "shuffle" in (tmp_path / place).read_text()


def test_unknown_shell_is_refused_in_one_line(monkeypatch):
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    assert "$SHELL is 'tcsh'; name one of bash, zsh, fish" in refused("completion", "--install")
