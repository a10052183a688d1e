"""`prefetchd completion`: a shell script that completes commands and options, made from the parser by shtab."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

from prefetchd.cli.arguments import Subparsers, add_debug
from prefetchd.errors import ConfigError

SHELLS = ("bash", "zsh", "fish")


def add(commands: Subparsers, datasets: Iterable[str]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "completion",
        help="print or install a shell script that completes commands and options",
        description="Print a shell script that completes prefetchd's commands and options; with --install, write it "
        "where the shell looks for it. Needs the extra completion.",
        epilog='For this shell alone: eval "$(prefetchd completion bash)".',
    )
    parser.add_argument("shell", nargs="?", choices=SHELLS, help="which shell (that of $SHELL)")
    parser.add_argument("--install", action="store_true", help="write the script into this user's folder for the shell")
    add_debug(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the script, or install it."""
    try:
        import shtab
    except ImportError:
        raise ConfigError(
            "cannot make the script: shtab is not installed; pip install 'prefetchd[completion]'"
        ) from None
    shell = arguments.shell or os.path.basename(os.environ.get("SHELL", ""))
    if shell not in SHELLS:
        raise ConfigError(f"cannot make the script: $SHELL is {shell!r}; name one of {', '.join(SHELLS)}")
    if shell not in shtab.SUPPORTED_SHELLS:
        raise ConfigError(f"cannot make the script for {shell}: this shtab is too old; upgrade it")
    parser = arguments.whole_parser
    for action in _actions(parser):
        words = action.metavar if isinstance(action.metavar, str) else ""
        if "DIR" in words:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif any(part in words for part in ("MANIFEST", "FILE", ".npy", ".png")):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    script = shtab.complete(parser, shell)
    if not arguments.install:
        print(script)
        return 0
    path = _place(shell)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(script + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; print the script and put it elsewhere") from None
    print(f"{path}: new shells complete prefetchd's words")
    if shell == "zsh":
        print(f"  if ~/.zshrc does not name its folder yet, add before compinit: fpath+=({path.parent})")
    elif shell == "bash":
        print("  this needs the package bash-completion, which loads it")
    return 0


def _place(shell: str) -> Path:
    """Return the file in which the shell of this user looks for the completion of prefetchd."""
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    if shell == "bash":
        own = os.environ.get("BASH_COMPLETION_USER_DIR")
        return (Path(own) if own else data / "bash-completion") / "completions/prefetchd"
    if shell == "zsh":
        return data / "zsh/site-functions/_prefetchd"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "fish/completions/prefetchd.fish"


def _actions(parser: argparse.ArgumentParser) -> Iterable[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
