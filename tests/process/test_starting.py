"""A daemon starts wherever its parent runs, or the caller gets one line that says what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import prefetchd

N_SAMPLES = 200
PACKAGE = Path(prefetchd.__file__).parent
OPTIONS = "batch_size=20, image_size=16, num_workers=1"
FULL = f"print('SUM', sum(int(y.sum()) for x, y in prefetchd.batches({{source!r}}, {OPTIONS})))"


def run(code: str, *flags: str, cwd: Path | str = "/", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter, which must end by itself."""
    return subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refusal(code: str, **environment: str) -> str:
    """Return the message of the `PrefetchdError` that `code` raises."""
    body = textwrap.indent(textwrap.dedent(code), "    ")
    result = run(
        f"import prefetchd\ntry:\n{body}\nexcept prefetchd.PrefetchdError as error:\n    print(error)", **environment
    )
    assert result.stderr == ""
    assert result.stdout.count("\n") == 1, result.stdout
    return result.stdout.strip()


@pytest.fixture
def sums(photographs) -> str:
    """Return the line that a whole epoch prints."""
    with prefetchd.batches(photographs, batch_size=20, image_size=16, num_workers=1) as loader:
        return f"SUM {sum(int(y.sum()) for _, y in loader)}\n"


def test_child_finds_the_same_prefetchd_and_the_working_directory_shadows_nothing(photographs, sums, tmp_path):
    """The parent finds another copy first in `sys.path`, beside files named as modules of the standard library."""
    shutil.copytree(PACKAGE, tmp_path / "prefetchd", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("selectors", "heapq", "psutil"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')")
    with open(tmp_path / "prefetchd/_version.py", "a") as file:
        file.write('\n__version__ = "9.9.copy"\n')
    code = f"""
        import selectors, heapq, psutil, sys
        sys.path.insert(0, {str(tmp_path)!r})
        import prefetchd
        with prefetchd.batches({str(photographs)!r}, {OPTIONS}) as loader:
            assert loader.status()["version"] == prefetchd.__version__ == "9.9.copy"
            print('SUM', sum(int(y.sum()) for x, y in loader))
    """
    result = run(code, "-P", cwd=tmp_path)
    assert (result.stdout, result.stderr) == (sums, "")


def test_variables_and_flags_for_the_users_program_change_nothing_and_print_nothing(photographs, sums):
    code = "import prefetchd\n" + FULL.format(source=str(photographs))
    noisy = {"PYTHONINSPECT": "1", "PYTHONWARNINGS": "error", "PYTHONDEVMODE": "1", "PYTHONVERBOSE": ""}
    for flags, environment in (((), noisy), (("-X", "dev", "-W", "error"), {})):
        result = run(code, *flags, **environment)
        assert (result.stdout, result.stderr) == (sums, "")


def test_a_working_directory_that_vanished_matters_only_to_relative_paths(photographs, sums, tmp_path):
    gone = tmp_path / "gone"
    code = f"""
        import os, sys
        os.makedirs({str(gone)!r}); os.chdir({str(gone)!r}); os.rmdir({str(gone)!r})
        import prefetchd
        {{0}}
    """
    if run(code.replace("import prefetchd", "import socket").format("")).stderr:
        pytest.skip("this Python itself imports nothing in such a folder")  # 3.13.0: SystemError
    result = run(code.format(FULL.format(source=str(photographs))))
    assert (result.stdout, result.stderr) == (sums, "")
    for call in ("prefetchd.batches('a.txt', image_size=8)", "prefetchd.batches('a.txt', image_size=8, share=True)"):
        result = run(code.format(f"try: {call}\n        except prefetchd.PrefetchdError as error: print(error)"))
        assert result.stderr == ""
        assert "a.txt" in result.stdout
        assert result.stdout.count("\n") == 1


def test_a_command_in_a_working_directory_that_vanished_ends_in_one_line(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    words = f"cd {gone} && rmdir {gone} && exec {sys.executable} -P -m prefetchd preview x.txt"
    result = subprocess.run(["sh", "-c", words], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("prefetchd: cannot go on: No such file or directory; check that the working ")
    assert result.stderr.count("\n") == 1


def test_a_private_daemon_needs_no_temporary_folder_and_a_shared_one_asks_for_it(photographs, sums):
    code = """
        import tempfile
        def nowhere(): raise FileNotFoundError(2, "No usable temporary directory found")
        tempfile.gettempdir = nowhere
        import prefetchd
    """
    result = run(textwrap.dedent(code) + FULL.format(source=str(photographs)), XDG_RUNTIME_DIR="")
    assert (result.stdout, result.stderr) == (sums, "")
    call = f"prefetchd.batches({str(photographs)!r}, image_size=8, share=True)"
    text = refusal(textwrap.dedent(code).replace("import prefetchd\n", "") + call, XDG_RUNTIME_DIR="")
    assert "no temporary folder is writable; set XDG_RUNTIME_DIR" in text


@pytest.mark.parametrize("closed", [(2,), (1, 2), (0, 1, 2)])
def test_a_program_without_standard_descriptors_keeps_its_daemon(photographs, sums, tmp_path, closed):
    """What the daemon says of readers that die must not get into a socket that became descriptor 2."""
    code = f"""
        import psutil, traceback
        try:
            import prefetchd
            with prefetchd.batches({str(photographs)!r}, {OPTIONS}) as loader:
                total = 0
                for number in range(3):
                    total += sum(int(y.sum()) for x, y in loader)
                    for child in psutil.Process(loader.status()["pid"]).children():
                        child.kill()
            said = f"SUM {{total // 3}}\\n"
        except BaseException:
            said = traceback.format_exc()
        open({str(tmp_path / "said")!r}, "w").write(said)
    """
    closing = " ".join(f"{fd}>&-" for fd in closed)
    subprocess.run(
        ["sh", "-c", f'exec "$@" {closing}', "sh", sys.executable, "-c", textwrap.dedent(code)],
        cwd="/",
        timeout=60,
        check=True,
    )
    assert (tmp_path / "said").read_text() == sums


@pytest.mark.parametrize("share", ["", ", share=True, timeout=5"])
def test_a_child_that_ends_at_once_is_described_by_its_exit_status_and_last_line(photographs, tmp_path, share):
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho first >&2\necho 'no such library' >&2\nexit 3\n")
    interpreter.chmod(0o755)
    call = f"prefetchd.batches({str(photographs)!r}, image_size=8{share})"
    text = refusal(f"import sys\nsys.executable = {str(interpreter)!r}\n{call}")
    assert "it ended at once (exit status 3); its last line: no such library; check that " in text
    assert "is missing" not in text
    text = refusal(f"import signal, sys\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nsys.executable = '/bin/false'\n"
                   f"prefetchd.batches({str(photographs)!r}, image_size=8)")  # fmt: skip
    assert "exit status unknown, as SIGCHLD is ignored); it printed nothing" in text


@pytest.mark.parametrize("executable", ["", None])
def test_a_program_that_does_not_say_where_its_interpreter_is_is_refused(photographs, executable):
    for share in ("", ", share=True"):
        call = f"prefetchd.batches({str(photographs)!r}, image_size=8{share})"
        assert "set sys.executable" in refusal(f"import sys\nsys.executable = {executable!r}\n{call}")


def test_a_module_that_is_missing_in_the_child_is_named(photographs, tmp_path):
    """The parent has loaded it from a folder that no child finds: this interpreter has no site-packages."""
    interpreter = tmp_path / "python"
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    interpreter.chmod(0o755)
    code = f"""
        import msgspec, os, sys
        import prefetchd.client.connection, prefetchd.client.api
        sys.path[:] = [folder for folder in sys.path if folder.startswith(os.path.dirname(os.__file__) + "/lib")]
        sys.executable = {str(interpreter)!r}
        prefetchd.batches({str(photographs)!r}, image_size=8)
    """
    text = refusal(code, PYTHONPATH="")
    assert "it ended at once (exit status 1); its last line: ModuleNotFoundError: No module named 'msgspec'" in text


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("import sys; sys.platform = 'darwin'", "it needs Linux, and this is darwin"),
        ("import os; del os.memfd_create", "memfd_create does not work"),
        ("import os; del os.pidfd_open", "pidfd_open does not work"),
        ("import socket; del socket.SOCK_SEQPACKET, socket.MSG_CMSG_CLOEXEC", "SOCK_SEQPACKET does not work"),
        ("import os; there = os.path.exists; os.path.exists = lambda p: p != '/proc/self/stat' and there(p)", "/proc"),
    ],
)
def test_a_system_that_lacks_something_is_refused_in_one_line_at_the_first_call(missing, words):
    text = refusal(f"{missing}\nprefetchd.batches('a.txt', image_size=8)")
    assert text.startswith("cannot use prefetchd here: ")
    assert words in text
    command = (
        "import runpy, sys; sys.argv = ['prefetchd', 'status']; runpy.run_module('prefetchd', run_name='__main__')"
    )
    result = run(f"{missing}\n{command}")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"prefetchd: {text}\n"


def test_ctrl_c_while_the_command_is_loaded_says_nothing():
    code = (
        "import sys\n\n\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'prefetchd.cli.commands':\n"
        "            raise KeyboardInterrupt\n\n\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from prefetchd.__main__ import main\n"
        "sys.exit(main())"
    )
    result = subprocess.run([sys.executable, "-c", code, "list"], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")
