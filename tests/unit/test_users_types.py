"""What type checkers and `help` tell of the API."""

from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import prefetchd
from prefetchd import batch_options, errors
from prefetchd.config.options import OPTIONS

ROOT = Path(prefetchd.__file__).parents[1]

USERS_CODE = """
from typing import Any, assert_type

from numpy.typing import NDArray

import prefetchd
import prefetchd.torch


def train(manifest: str) -> float:
    with prefetchd.batches(manifest, batch_size=64, image_size=(224, 160), shuffle=True, mean=[0.5]) as data:
        assert_type(len(data), int)
        assert_type(data.classes, tuple[str, ...] | None)
        for x, y in data:
            assert_type(x, NDArray[Any])
            assert_type(y, NDArray[Any])
        batch = next(iter(data))
        assert_type(batch, prefetchd.Batch)
        assert_type((batch.epoch, batch.index, batch.repeated), tuple[int, int, bool])
        state = data.state_dict()
        data.load_state_dict(state)
        data.set_epoch(3)
    try:
        prefetchd.batches(daemon="other", rank="env", reconnect=True, epochs=None)
    except prefetchd.PrefetchdError as error:
        print(error)
    tensors = prefetchd.torch.batches(manifest, device="cuda", batch_size=64, normalize="device", scale=1 / 255)
    for item in tensors:
        assert_type(item.index, int)
    assert_type(prefetchd.set_options("val", memory_budget="1GiB", num_workers=4), str)
    return float(batch.x.mean())


prefetchd.batches("train.txt", batch_size="64")  # type: ignore[arg-type]
prefetchd.batches("train.txt", colour="rgb")  # type: ignore[call-arg]
prefetchd.batches("train.txt", color="blue")  # type: ignore[arg-type]
prefetchd.set_options(batch_size=64)  # type: ignore[call-arg]
prefetchd.torch.batches("train.txt", batch_size="64")  # type: ignore[arg-type]
prefetchd.torch.batches("train.txt", colour="rgb")  # type: ignore[call-arg]
"""


def test_strict_mypy_passes_users_code_and_sees_their_mistakes(tmp_path):
    if not importlib.util.find_spec("mypy"):
        pytest.skip("needs mypy")
    (tmp_path / "train.py").write_text(USERS_CODE)
    # PyTorch takes mypy half a minute; here it need not be installed at all.
    settings = "[mypy]\nstrict = True\n[mypy-torch.*]\nfollow_imports = skip\nignore_missing_imports = True\n"
    (tmp_path / "mypy.ini").write_text(settings)
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(ROOT / ".mypy_cache/users"), "train.py"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=110)
    assert result.returncode == 0, result.stdout + result.stderr


def test_package_says_that_it_is_typed():
    assert (Path(prefetchd.__file__).parent / "py.typed").exists()


def test_options_type_is_the_signature_of_batches():
    """An argument that `batches` gets must be put into `BatchOptions` too, or the adapters do not pass it on."""
    parameters = {
        name: parameter.annotation
        for name, parameter in inspect.signature(prefetchd.batches).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    options = {name: hint.__forward_arg__ for name, hint in batch_options.BatchOptions.__annotations__.items()}
    assert set(batch_options.DataOptions.__annotations__) == set(OPTIONS) - {"source", "name"}
    assert options == parameters


def test_help_explains_every_argument_of_batches():
    text = inspect.getdoc(prefetchd.batches) or ""
    described = text[text.index("Args:") : text.index("Raises:")]
    missing = [name for name in inspect.signature(prefetchd.batches).parameters if f"\n    {name}: " not in described]
    assert missing == []


def test_errors_are_one_documented_family():
    family = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    page = (ROOT / "docs" / "errors.md").read_text()
    for name, error in family.items():
        assert issubclass(error, prefetchd.PrefetchdError)
        assert getattr(prefetchd, name) is error
        assert error.__doc__
        assert re.search(rf"^## .*\b{name}\b|`prefetchd\.{name}`", page, re.MULTILINE), name


@pytest.mark.parametrize("name", prefetchd.__all__)
def test_public_names_exist_and_are_documented(name):
    assert inspect.getdoc(getattr(prefetchd, name))


def test_completion_shows_the_public_names_and_no_others():
    assert dir(prefetchd) == sorted(prefetchd.__all__)
