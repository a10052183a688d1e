"""What commands refuse before they do anything: names of daemons and configuration files that make no sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefetchd.cli.main import main


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


@pytest.mark.parametrize("command", ["status", "stop", "top", "dashboard"])
def test_empty_name_is_not_the_default_daemon(command: str, capsys: pytest.CaptureFixture[str]):
    """Such as that of a variable of a shell that is not set."""
    assert "cannot use --name '': it must be 1 to 64" in refused(capsys, command, "")
    assert "cannot use --name '': it must be 1 to 64" in refused(capsys, command, "--name", "")


def test_two_names_of_daemons_are_refused(capsys: pytest.CaptureFixture[str]):
    assert "two names of daemons, 'a' and 'b'; give one" in refused(capsys, "status", "a", "--name", "b")
    assert "cannot use --pid 1 with a daemon's name" in refused(capsys, "status", "--pid", "1", "--name", "")


@pytest.mark.parametrize("table", ["", "[train]\nsource = 'x.txt'\n"])
def test_options_of_the_command_alone_are_named_as_such(table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "own.toml"
    path.write_text(f"{table}metrics-port = 9400\n")
    why = f"cannot use metrics-port in {path}: it is no option of the data; give --metrics-port"
    assert why in refused(capsys, "serve", "--config", str(path))


def test_configuration_that_has_no_end_is_refused(capsys: pytest.CaptureFixture[str]):
    why = "cannot read the configuration /dev/zero: it has more than 16 MiB; see that it is the TOML file"
    assert why in refused(capsys, "serve", "--config", "/dev/zero")


def test_source_without_a_name_is_named(capsys: pytest.CaptureFixture[str]):
    why = "cannot serve 'train.txt' beside the data sets val: it has no name"
    assert why in refused(capsys, "serve", "train.txt", "--val.batch-size", "3")


def test_address_for_metrics_that_is_none_is_not_laid_to_the_port():
    pytest.importorskip("prometheus_client")
    from prefetchd.daemon.metrics import MetricsServer
    from prefetchd.errors import PrefetchdError

    with pytest.raises(
        PrefetchdError, match=r"on '' port 9400: .*; choose another port, or an address of this machine"
    ):
        MetricsServer(9400, "", dict)


def test_command_without_memory_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("prefetchd.cli.arguments.split_sources", fail)
    why = "cannot go on: it has no memory left; free some memory, or raise its limits (ulimit -v, ulimit -d)"
    assert why in refused(capsys, "serve", "train.txt")
