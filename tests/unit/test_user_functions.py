"""Naming, importing and calling users' functions; what they may return, and whose fault an exception is."""

from __future__ import annotations

import functools
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefetchd.config.validate import make_config
from prefetchd.data.faults import EnvironmentFault, FaultKind, TransformFault, WrongResult
from prefetchd.data.images.user_functions import UserFunctions, import_function
from prefetchd.errors import ConfigError
from prefetchd.sampling.randomness import SampleRandomness
from tests.images import photograph

MODULE = """
import errno, os, random, sys
import numpy as np

VALUE = 3

def brighten(image, rng):
    return np.minimum(image.astype(int) + int(rng.integers(100)), 255).astype(np.uint8)

def spoil(image, rng):
    image[:] = 0
    return image

def floats(image, rng):
    return image.astype(np.float32) / 255

def gray(image, rng):
    return image[..., 0]

def smaller(image, rng):
    return image[1:]

def nothing(image, rng):
    pass

def raises(image, rng):
    raise ValueError("no\\n good")

class Speechless(Exception):
    def __str__(self):
        raise RuntimeError("no words")

def speechless(image, rng):
    raise Speechless

def odd_words(image, rng):
    raise ValueError("a\\x1b[2J\\udcff" + "b" * 5000)

def leaves(image, rng):
    sys.exit(3)

def interrupts(image, rng):
    raise KeyboardInterrupt

def starves(image, rng):
    raise MemoryError

def io_error(image, rng):
    raise OSError(errno.EIO, "the disk")

def missing(image, rng):
    open("/nowhere/at/all")

def globals_only(image, rng):
    return np.full_like(image, (random.random() + np.random.rand()) * 100)

class Ready:
    def __call__(self, image, rng):
        return image

ready = Ready()

def one_hot(label, rng):
    return np.eye(5, dtype=np.float32)[label]

def words(label, rng):
    return "cat"

class Pipeline:
    def __init__(self):
        self.rng = np.random.default_rng()
    def set_random_seed(self, seed):
        self.rng = np.random.default_rng(seed)
    def __call__(self, **targets):
        assert set(targets) <= {"image", "mask"}
        return {name: value[:, ::-1] if self.rng.random() < 0.5 else value for name, value in targets.items()}

Pipeline.__module__ = "albumentations.core.composition"
pipeline = Pipeline()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"users_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / f"broken_{name}.py").write_text("import no_such_library\n")
    (tmp_path / f"angry_{name}.py").write_text("raise RuntimeError('not today')\n")
    (tmp_path / f"leaving_{name}.py").write_text("raise SystemExit(2)\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return name


def functions(module: str, folder: Path, **options: Any) -> UserFunctions:
    for name in ("transform", "target_transform"):
        if name in options:
            options[name] = f"{module}:{options[name]}"
    config = make_config(source="m", image_size=(20, 30), python_path=[folder], **options)
    return UserFunctions(config, SampleRandomness(config.seed))


IMAGE = photograph(20, 30, 1)


def test_transform_draws_from_its_samples_randomness_alone(module: str, tmp_path: Path):
    one, other = functions(module, tmp_path, transform="brighten"), functions(module, tmp_path, transform="brighten")
    other.transform(IMAGE, 7, 7)
    assert np.array_equal(one.transform(IMAGE, 1, 5)[0], other.transform(IMAGE, 1, 5)[0])
    assert not np.array_equal(one.transform(IMAGE, 1, 5)[0], one.transform(IMAGE, 2, 5)[0])
    assert not np.array_equal(one.transform(IMAGE, 1, 5)[0], one.transform(IMAGE, 1, 6)[0])


def test_functions_that_use_global_generators_repeat_themselves_too(module: str, tmp_path: Path):
    made = functions(module, tmp_path, transform="globals_only")
    first = made.transform(IMAGE, 1, 5)[0].copy()
    random.random()
    np.random.rand()
    assert not np.array_equal(made.transform(IMAGE, 1, 6)[0], first)
    assert np.array_equal(made.transform(IMAGE, 1, 5)[0], first)


def test_transform_has_its_own_copy(module: str, tmp_path: Path):
    pixels = IMAGE.copy()
    result, _ = functions(module, tmp_path, transform="spoil").transform(pixels, 0, 0)
    assert not result.any()
    assert np.array_equal(pixels, IMAGE)


def test_floats_are_taken_for_float_types_only(module: str, tmp_path: Path):
    result, _ = functions(module, tmp_path, transform="floats", dtype="float16").transform(IMAGE, 0, 0)
    assert result.dtype == np.float32
    with pytest.raises(WrongResult, match=r'returned an array of \(20, 30, 3\) float32.*dtype="float32" takes'):
        functions(module, tmp_path, transform="floats").transform(IMAGE, 0, 0)


def test_gray_image_has_one_channel_and_may_lose_it(module: str, tmp_path: Path):
    result, _ = functions(module, tmp_path, transform="gray", color="gray").transform(IMAGE[..., 0].copy(), 0, 0)
    assert result.shape == (20, 30, 1)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("smaller", r"an array of \(19, 30, 3\) uint8, and it must be an array of \(20, 30, 3\)"),
        ("nothing", "returned None"),
        ("gray", r"an array of \(20, 30\)"),
    ],
)
def test_wrong_result_is_a_fault_that_says_both_shapes(module: str, tmp_path: Path, name: str, words: str):
    with pytest.raises(WrongResult, match=words):
        functions(module, tmp_path, transform=name).transform(IMAGE, 0, 0)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("raises", r"raised ValueError: no good \(users_\d+\.py line \d+, in raises\)"),
        ("leaves", "raised SystemExit: 3"),
        ("interrupts", "raised KeyboardInterrupt"),
        ("missing", "raised FileNotFoundError"),
    ],
)
def test_exception_is_a_fault_of_the_sample_with_its_traceback(module: str, tmp_path: Path, name: str, words: str):
    with pytest.raises(TransformFault, match=words) as caught:
        functions(module, tmp_path, transform=name).transform(IMAGE, 0, 0)
    assert caught.value.kind is FaultKind.CONTENT
    assert "Traceback" in caught.value.detail
    assert f"in {name}" in caught.value.detail
    assert "\n" not in caught.value.reason


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("speechless", r"raised Speechless: .*message cannot be shown.* \(users_\d+\.py line \d+, in speechless\)"),
        ("odd_words", r"raised ValueError: a\\x1b\[2J\\udcffb+\.\.\. \(users_\d+\.py line \d+, in odd_words\)"),
    ],
)
def test_exception_whose_message_cannot_be_said_is_a_fault_like_any_other(
    module: str, tmp_path: Path, name: str, words: str
):
    with pytest.raises(TransformFault, match=words) as caught:
        functions(module, tmp_path, transform=name).transform(IMAGE, 0, 0)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    assert "Traceback" in caught.value.detail
    caught.value.detail.encode()  # it goes to the daemon


@pytest.mark.parametrize("name", ["starves", "io_error"])
def test_what_the_machine_does_is_no_fault_of_the_sample(module: str, tmp_path: Path, name: str):
    with pytest.raises(EnvironmentFault):
        functions(module, tmp_path, transform=name).transform(IMAGE, 0, 0)


def test_target_transform_decides_shape_and_dtype(module: str, tmp_path: Path):
    made = functions(module, tmp_path, target_transform="one_hot")
    target = made.target(np.int64(3), 0, 0)
    assert (target.shape, target.dtype) == ((5,), np.float32)
    assert made.as_wanted(target, (5,), np.dtype("float32")) is target
    for shape, dtype in (((4,), "float32"), ((5,), "int64")):
        with pytest.raises(WrongResult, match="and for others"):
            made.as_wanted(target, shape, np.dtype(dtype))
    with pytest.raises(WrongResult, match="numbers only"):
        functions(module, tmp_path, target_transform="words").target(np.int64(3), 0, 0)


def test_albumentations_pipeline_is_called_by_name_seeded_and_given_the_mask(module: str, tmp_path: Path):
    made = functions(module, tmp_path, transform="pipeline")
    assert made.takes_masks
    seen = {}
    for sample_id in range(20):
        image, mask = made.transform(IMAGE, 0, sample_id, IMAGE[..., 0].copy())
        again, _ = made.transform(IMAGE, 0, sample_id)
        assert np.array_equal(again, image)
        seen[sample_id] = np.array_equal(image, IMAGE)
        assert mask is not None
    assert 0 < sum(seen.values()) < 20


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("no_such_module_x:f", "no module 'no_such_module_x' .*python_path"),
        ("{m}.deeper:f", "no module"),
        ("broken_{m}:f", "importing it raised ModuleNotFoundError: No module named 'no_such_library'"),
        ("angry_{m}:f", r"raised RuntimeError: not today \(angry_users_\d+.py line 1"),
        ("leaving_{m}:f", r"importing it raised SystemExit: 2 \(leaving_users_\d+.py line 1"),
        ("{m}:absent", "has no 'absent'"),
        ("{m}:VALUE", "is a int, which cannot be called"),
    ],
)
def test_what_cannot_be_imported_is_refused_in_one_line(module: str, tmp_path: Path, spec: str, words: str):
    with pytest.raises(ConfigError, match=words) as caught:
        import_function("transform", spec.replace("{m}", module), (str(tmp_path),))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("cannot use transform=")


def test_folders_are_appended_so_that_they_shadow_nothing(module: str, tmp_path: Path):
    (tmp_path / "json.py").write_text("raise RuntimeError\n")
    import_function("transform", f"{module}:brighten", (str(tmp_path),))
    assert sys.path[-1] == str(tmp_path)
    assert import_function("transform", f"{module}:ready", (str(tmp_path),)) is not None


def module_function(image: Any, rng: Any) -> Any:
    return image


class Holder:
    @staticmethod
    def function(image: Any, rng: Any) -> Any:
        return image


def test_function_object_becomes_its_name():
    assert make_config(source="m", transform=module_function).transform == f"{__name__}:module_function"
    assert make_config(source="m", transform=Holder.function).transform == f"{__name__}:Holder.function"
    text = make_config(source="m", transform=f"{__name__}:module_function")
    assert text.digest() == make_config(source="m", transform=module_function).digest()


def local() -> Any:
    def inner(image: Any, rng: Any) -> Any:
        return image

    return inner


in_script = type(module_function)(module_function.__code__, {"__name__": "__main__"}, "in_script")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (local(), "top level of a module and pass 'module:inner'"),
        (lambda image, rng: image, "is a lambda.*pass 'module:name'"),
        (in_script, "this script or notebook"),
        (functools.partial(module_function), "no name to import it by"),
        (Holder(), "no name to import it by"),
        (7, "no name"),
        ("just_a_name", "package.module:name"),
        ("a b:c", "package.module:name"),
        ("m:f()", "package.module:name"),
    ],
)
def test_function_that_cannot_be_named_is_refused(value: Any, words: str):
    with pytest.raises(ConfigError, match=words) as caught:
        make_config(source="m", transform=value)
    assert "\n" not in str(caught.value)
