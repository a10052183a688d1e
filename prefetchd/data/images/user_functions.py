"""Users' functions: importing `package.module:function`, calling it with a sample's randomness, checking its result.

Loaded in readers and in the dry run only: the daemon never imports or runs user code. An exception in a function is a
fault of its sample (`TransformFault`, with the traceback), except for those that the environment causes: no memory, and
I/O errors. `sys.exit` or `KeyboardInterrupt` in it counts as an exception, since no signal raises one in a reader. The
daemon's pool handles crashes and hangs, as with a decoder.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import random
import resource
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.config.units import format_bytes
from prefetchd.data.faults import EnvironmentFault, FaultKind, SampleFault, TransformFault, WrongResult, fault_of
from prefetchd.data.fields.parts import BadValue
from prefetchd.errors import ConfigError, one_line
from prefetchd.ring.layout import DTYPES
from prefetchd.sampling import randomness

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.options import Config

_MAX_DETAIL_CHARACTERS = 8000
_MESSAGE_CHARACTERS = 250  # of an exception; the log has its traceback
_ALBUMENTATIONS = ("albumentations", "albumentationsx", "albucore")


def import_function(option: str, spec: str, python_path: tuple[str, ...]) -> Callable[..., Any]:
    """Return the function that `spec` names.

    Args:
        option: the option that gave it, for errors.
        spec: `package.module:name`.
        python_path: folders, appended to `sys.path` so that they shadow nothing.

    Raises:
        ConfigError: if it cannot be imported, does not exist, or cannot be called.
    """
    sys.path.extend(folder for folder in python_path if folder not in sys.path)
    module_name, _, attribute = spec.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            looked = ", ".join(python_path[:3]) or "the installed packages"
            raise ConfigError(
                f"cannot use {option}={spec!r}: there is no module {error.name!r} (looked in {looked} and more); "
                "check the name, or give its folder as python_path"
            ) from None
        raise _cannot_import(option, spec, error) from None
    except BaseException as error:
        raise _cannot_import(option, spec, error) from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            file = getattr(sys.modules[module_name], "__file__", None) or "built in"
            raise ConfigError(f"cannot use {option}={spec!r}: {module_name} ({file}) has no {part!r}; check the name")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(
            f"cannot use {option}={spec!r}: it is a {type(found).__name__}, which cannot be called; name a function"
        )
    return found  # type: ignore[no-any-return]


def _cannot_import(option: str, spec: str, error: BaseException) -> ConfigError:
    return ConfigError(
        f"cannot use {option}={spec!r}: importing it raised {describe(error)}{raised_at(error)}; mend the module"
    )


def describe(error: BaseException) -> str:
    """Return `ValueError: its message` on one line."""
    try:
        text = one_line(" ".join(str(error).split()))
    except Exception:  # anything that the exception's own `__str__` raises
        text = "(its message cannot be shown)"
    if len(text) > _MESSAGE_CHARACTERS:
        text = text[: _MESSAGE_CHARACTERS - 3] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def raised_at(error: BaseException) -> str:
    """Return ` (file.py line 3, in f)`, the innermost frame of `error`; empty if unknown."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename != __file__ and not frame.filename.startswith("<frozen")]
    if not own:
        return ""
    return f" ({os.path.basename(own[-1].filename)} line {own[-1].lineno}, in {own[-1].name})"


class UserFunctions:
    """The imported functions of one configuration. One thread.

    Args:
        config: names them.
        rng: the samples' randomness, shared with the augmentations.

    Raises:
        ConfigError: if one cannot be imported.
    """

    def __init__(self, config: Config, rng: randomness.SampleRandomness) -> None:
        self._rng = rng
        self._shape = (*config.image_size, config.n_channels)
        self._pixel_dtype = config.pixel_dtype
        self._floats_too = config.dtype.startswith("float")
        self._transform_name = "transform", config.transform
        self._target_name = "target_transform", config.target_transform
        self._transform: Callable[..., Any] | None = None
        self._target: Callable[..., Any] | None = None
        self._is_pipeline = False
        if config.transform is not None:
            self._transform = import_function("transform", config.transform, config.python_path)
            self._is_pipeline = is_albumentations(self._transform)
            if self._is_pipeline and config.fields:
                raise ConfigError(
                    f"cannot use transform={config.transform!r} with fields: it is a pipeline, and cannot know which "
                    "field is its image; give a function (sample, rng) -> sample that calls it"
                )
        if config.target_transform is not None:
            self._target = import_function("target_transform", config.target_transform, config.python_path)

    @property
    def has_transform(self) -> bool:
        """Whether there is a `transform`."""
        return self._transform is not None

    @property
    def takes_masks(self) -> bool:
        """Whether `transform` changes a mask along with its image, as Albumentations does."""
        return self._is_pipeline

    def transform(
        self, pixels: NDArray[Any], epoch: int, sample_id: int, mask: NDArray[Any] | None = None, view: int = 0
    ) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Return what `transform` gives for a copy of `pixels`, (H, W, C), and the mask, if it takes masks.

        Raises:
            TransformFault: if it raises, or its result cannot be delivered.
            EnvironmentFault: if it failed for lack of memory, or by an I/O error.
        """
        assert self._transform is not None
        image = pixels.reshape(self._shape).copy()  # a new one each time: the function may change or keep it
        rng = self._rng.generator(epoch, sample_id, randomness.TRANSFORM, view)
        try:
            self._seed_globals(epoch, sample_id, 0, view)
            if self._is_pipeline:
                result, mask = self._call_pipeline(image, rng, mask)
            else:
                result = self._transform(image, rng)
        except BaseException as error:
            raise _fault(self._transform_name, error) from None
        if wrong := self._wrong_image(result):
            raise WrongResult(*self._transform_name, f"returned {wrong}")
        return result.reshape(self._shape), mask

    def transform_sample(
        self,
        shown: dict[str, Any],
        taking: Mapping[str, Callable[[Any], None]],
        epoch: int,
        sample_id: int,
    ) -> None:
        """Call `transform` with a whole sample, and give each field to the function of its name in `taking`.

        Raises:
            TransformFault, EnvironmentFault: as `transform` does.
        """
        assert self._transform is not None
        rng = self._rng.generator(epoch, sample_id, randomness.TRANSFORM)
        try:
            self._seed_globals(epoch, sample_id, 0)
            result = self._transform(shown, rng)
        except BaseException as error:
            raise _fault(self._transform_name, error) from None
        if not isinstance(result, Mapping):
            raise WrongResult(
                *self._transform_name,
                f"returned {_what(result)}, and with fields it must be a dictionary of them; give a function "
                "(sample, rng) -> sample",
            )
        if result.keys() != taking.keys():
            names = ", ".join(map(str, result.keys()))
            raise WrongResult(*self._transform_name, f"returned the fields {names}, not {', '.join(taking)}")
        for name, take in taking.items():
            try:
                take(result[name])
            except BadValue as wrong:
                raise WrongResult(*self._transform_name, f"returned the field {name} as {wrong}") from None

    def target(self, label: Any, epoch: int, sample_id: int) -> NDArray[Any]:
        """Return what `target_transform` gives for `label` (a scalar, a vector or a mask) as an array; or `label`.

        Raises:
            TransformFault, EnvironmentFault: as `transform` does.
        """
        if self._target is None:
            return np.asarray(label)
        rng = self._rng.generator(epoch, sample_id, randomness.TARGET_TRANSFORM)
        try:
            self._seed_globals(epoch, sample_id, 1)
            result = np.asarray(self._target(label.copy(), rng))
        except BaseException as error:
            raise _fault(self._target_name, error) from None
        if result.dtype.name not in DTYPES:
            raise WrongResult(*self._target_name, f"returned {_what(result)}, and y can hold numbers only")
        return result

    def as_wanted(self, value: NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return `value`, a result of `target`, if it is as the dry run found it.

        Raises:
            WrongResult: if it has another shape, or a dtype that does not fit.
        """
        if value.shape != shape or not np.can_cast(value.dtype, dtype, "same_kind"):
            raise WrongResult(*self._target_name, f"returned {_what(value)}, and for others {shape} {dtype.name}")
        return value

    def _call_pipeline(
        self, image: NDArray[Any], rng: np.random.Generator, mask: NDArray[Any] | None
    ) -> tuple[Any, NDArray[Any] | None]:
        """Call an Albumentations pipeline, which has a random state of its own in newer versions."""
        pipeline: Any = self._transform
        if hasattr(pipeline, "set_random_seed"):
            pipeline.set_random_seed(int(rng.integers(2**31)))
        if mask is None:
            return pipeline(image=image)["image"], None
        result = pipeline(image=image, mask=mask.copy())
        turned = result["mask"]
        if not isinstance(turned, np.ndarray) or turned.shape != mask.shape:
            what = f"returned the mask as {_what(turned)}, and it was {_what(mask)}"
            raise WrongResult(*self._transform_name, what)
        return result["image"], turned.astype(mask.dtype, copy=False)

    def _seed_globals(self, epoch: int, sample_id: int, which: int, view: int = 0) -> None:
        """Seed the global generators, so that functions which do not use `rng` give the same results again."""
        word = self._rng.word(epoch, sample_id, randomness.GLOBAL_SEEDS, view) + which
        random.seed(word)
        np.random.seed(word & 0xFFFFFFFF)
        torch = sys.modules.get("torch")
        if torch is not None and hasattr(torch, "manual_seed"):
            torch.manual_seed(word & 0x7FFFFFFFFFFFFFFF)

    def _wrong_image(self, result: Any) -> str:
        """Return what is wrong with a transform's result; empty if nothing is."""
        gray = self._shape[2] == 1
        fits = isinstance(result, np.ndarray) and (
            result.shape == self._shape or (gray and result.shape == self._shape[:2])
        )
        if fits and (result.dtype == self._pixel_dtype or (self._floats_too and result.dtype.kind == "f")):
            return ""
        dtypes = f'{self._pixel_dtype} (dtype="float32" takes floating point too)'
        if self._floats_too:
            dtypes = "floating point" if self._pixel_dtype == "float32" else "uint8 or floating point"
        return f"{_what(result)}, and it must be an array of {self._shape} {dtypes}"


def is_albumentations(function: object) -> bool:
    """Return whether `function` is an object of one of Albumentations' classes, and is called as its pipeline."""
    return any(cls.__module__.partition(".")[0] in _ALBUMENTATIONS for cls in type(function).__mro__)


def _what(value: Any) -> str:
    if isinstance(value, np.ndarray | np.generic):
        return f"an array of {value.shape} {value.dtype}"
    return "None" if value is None else f"a {type(value).__name__}"


def _fault(name: tuple[str, str | None], error: BaseException) -> SampleFault:
    """Return the fault for `error`, which the user's function raised; `name` is its option and spec."""
    if isinstance(error, SampleFault):
        return error
    if isinstance(error, MemoryError):
        return EnvironmentFault(f"{name[0]} {name[1]} ran out of memory{_limit()}", needs_fresh_reader=True)
    if isinstance(error, OSError) and error.errno is not None and fault_of(error).kind is FaultKind.ENVIRONMENT:
        return EnvironmentFault(f"{name[0]} {name[1]} raised {describe(error)}")
    lines = "".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace").decode()
    return TransformFault(*name, f"raised {describe(error)}{raised_at(error)}", lines[-_MAX_DETAIL_CHARACTERS:])


def _limit() -> str:
    """Return the reader's own limit in words: it is seldom the machine's memory that is short."""
    soft = resource.getrlimit(resource.RLIMIT_DATA)[0]
    return "" if soft == resource.RLIM_INFINITY else f" (its reader may map {format_bytes(soft)})"


def code_digest(spec: str) -> str:
    """Return a digest of the function's module: the bytes of its source, and the versions of known libraries.

    What that module imports itself is not part of it.
    """
    module = sys.modules[spec.partition(":")[0]]
    digest = hashlib.blake2b(spec.encode(), digest_size=8)
    with contextlib.suppress(OSError, TypeError):
        path = getattr(module, "__file__", None)
        digest.update(Path(path).read_bytes() if path else b"")
    for library in _ALBUMENTATIONS:
        digest.update(str(getattr(sys.modules.get(library), "__version__", "")).encode())
    return digest.hexdigest()
