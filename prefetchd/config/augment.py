"""The option `augment`: from `random_resized_crop(scale=(0.2, 1)), hflip` to one canonical form. Pure.

`validate` calls `canonical`: equal augmentations have equal texts with all defaults, and so equal digests. Geometry and
colour jitter take the numbers from `parameters`. Text is parsed with `ast`, literals only: no code of it ever runs.

The order in which augmentations are written does not matter; they are applied in the order of `AUGMENTATIONS`.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable, Sequence
from typing import Any

from prefetchd.config.augment_values import (
    WrongValue,
    around,
    as_erased,
    as_factors,
    as_kernel_size,
    as_probability,
    as_shift,
    number_within,
    range_within,
    whole_within,
)
from prefetchd.errors import ConfigError

# What is defined for grey and colours of 8 bits alone.
OF_BYTES = (
    "rand_augment", "trivial_augment_wide", "grayscale", "solarize", "posterize", "auto_contrast", "equalize",
)  # fmt: skip
MAX_OPERATIONS = 8  # of rand_augment: each has four of the block's 32 random words
_TURN = around(0, 360, "a number of degrees n, for -n to n, or two such as (-10, 30), within 360")
_SHEAR = around(0, 80, "a number of degrees n, for -n to n, or two such as (-5, 10), within 80")
_HUE = around(0, 0.5, "a number n, for -n to n, or two such as (-0.1, 0.2), within 0.5")
_PART = range_within(0, 1, "two fractions of the image's area, above 0 and up to 1, the smaller one first")
_POSITIVE = range_within(0, 1000, "two numbers above 0 and up to 1000, the smaller one first")
_SIGMA = range_within(0, 100, "a number of pixels above 0 and up to 100, or two, the smaller one first", one=True)
_LEVEL = number_within(0, 255, "from 0 to 255")
_SHARPNESS = number_within(0, 1000, "a factor from 0 to 1000")
_STEPS = number_within(0, 1000, "from 0 to 1000")
_BINS = whole_within(2, 1000)

# The order decides in which order they are applied, and which block of random words each draws. Add new ones at the
# end, or the randomness of those below changes. Names of parameters and most defaults are torchvision's.
AUGMENTATIONS: dict[str, dict[str, tuple[Any, Callable[[Any], Any]]]] = {
    "random_resized_crop": {"scale": ((0.08, 1.0), _PART), "ratio": ((3 / 4, 4 / 3), _POSITIVE)},
    "hflip": {"p": (0.5, as_probability)},
    "vflip": {"p": (0.5, as_probability)},
    "rotate": {"degrees": (15, _TURN)},
    "affine": {
        "degrees": (10, _TURN),
        "translate": (0.1, as_shift),
        "scale": ((0.9, 1.1), _POSITIVE),
        "shear": (0, _SHEAR),
    },
    "color_jitter": {
        "brightness": (0.4, as_factors),
        "contrast": (0.4, as_factors),
        "saturation": (0.4, as_factors),
        "hue": (0.1, _HUE),
        "p": (1.0, as_probability),
    },
    "rand_augment": {
        "num_ops": (2, whole_within(1, MAX_OPERATIONS)),
        "magnitude": (9, _STEPS),
        "num_magnitude_bins": (31, _BINS),
        "magnitude_std": (0, _STEPS),
        "p": (1.0, as_probability),
    },
    "trivial_augment_wide": {"num_magnitude_bins": (31, _BINS)},
    "grayscale": {"p": (0.1, as_probability)},
    "gaussian_blur": {"kernel_size": (23, as_kernel_size), "sigma": ((0.1, 2.0), _SIGMA), "p": (1.0, as_probability)},
    "solarize": {"threshold": (128, _LEVEL), "p": (0.5, as_probability)},
    "posterize": {"bits": (4, whole_within(0, 8)), "p": (0.5, as_probability)},
    "sharpness": {"sharpness_factor": (2, _SHARPNESS), "p": (0.5, as_probability)},
    "auto_contrast": {"p": (0.5, as_probability)},
    "equalize": {"p": (0.5, as_probability)},
    "random_erasing": {
        "p": (0.5, as_probability),
        "scale": ((0.02, 0.33), _PART),
        "ratio": ((0.3, 3.3), _POSITIVE),
        "value": (0, as_erased),
    },
}
# Parameters that came after their augmentation. A canonical text leaves them out where they are the default, so that
# the digests of those who never used them stay as they were.
_LATER = {("color_jitter", "p")}
_OTHER_NAMES = {
    "randomresizedcrop": "random_resized_crop", "crop": "random_resized_crop", "horizontal_flip": "hflip",
    "random_horizontal_flip": "hflip", "randomhorizontalflip": "hflip", "flip": "hflip", "vertical_flip": "vflip",
    "random_vertical_flip": "vflip", "randomverticalflip": "vflip", "randomrotation": "rotate",
    "random_rotation": "rotate", "rotation": "rotate", "randomaffine": "affine", "random_affine": "affine",
    "colorjitter": "color_jitter", "colour_jitter": "color_jitter", "jitter": "color_jitter",
    "randaugment": "rand_augment", "randaug": "rand_augment", "trivialaugmentwide": "trivial_augment_wide",
    "trivialaugment": "trivial_augment_wide", "trivial_augment": "trivial_augment_wide", "gray": "grayscale",
    "randomgrayscale": "grayscale", "random_grayscale": "grayscale", "togray": "grayscale", "greyscale": "grayscale",
    "gaussianblur": "gaussian_blur", "blur": "gaussian_blur", "randomsolarize": "solarize", "solarization": "solarize",
    "randomposterize": "posterize", "randomadjustsharpness": "sharpness", "adjust_sharpness": "sharpness",
    "sharpen": "sharpness", "randomautocontrast": "auto_contrast", "autocontrast": "auto_contrast",
    "randomequalize": "equalize", "randomerasing": "random_erasing", "erasing": "random_erasing",
    "cutout": "random_erasing", "randominvert": "solarize(threshold=0)", "invert": "solarize(threshold=0)",
}  # fmt: skip
# What other libraries' pipelines do, and options do here.
_OPTIONS = {
    "resize": "image_size", "centercrop": "resize='crop'", "center_crop": "resize='crop'", "pad": "resize='pad'",
    "normalize": "scale, mean and std", "totensor": "dtype and scale", "to_tensor": "dtype and scale",
    "todtype": "dtype and scale",
}  # fmt: skip
# What mixes a batch is done on the device, where the batch is.
_ON_THE_DEVICE = ("mixup", "cutmix", "mix_up", "cut_mix")


def canonical(value: object) -> tuple[str, ...]:
    """Return the augmentations that `value` names, each as `name(parameter=value, ...)`, all defaults filled in.

    Args:
        value: text with commas between augmentations, or a list of such texts; empty or `None` for none.

    Raises:
        ConfigError: for an unknown name or parameter, a value out of range, or an augmentation named twice.
    """
    if value is None:
        return ()
    if not isinstance(value, str | Sequence) or not all(isinstance(part, str) for part in value):
        raise _refuse(value, "it must be text, or a list of texts, such as 'random_resized_crop, hflip(p=0.5)'")
    found: dict[str, dict[str, Any]] = {}
    for part in [value] if isinstance(value, str) else value:
        for name, given in _parse(part):
            if name in found:
                raise _refuse(value, f"{name} is named twice; give it once")
            found[name] = _checked(name, given)
    return tuple(_write(name, found[name]) for name in AUGMENTATIONS if name in found)


def parameters(texts: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return the parameters in the canonical `texts`, by the name of the augmentation; ranges are pairs of numbers."""
    found = {name: given for text in texts for name, given in _parse(text)}
    for name, parameter in _LATER:
        if name in found:
            found[name].setdefault(parameter, AUGMENTATIONS[name][parameter][0])
    return found


def _refuse(value: object, why: str) -> ConfigError:
    shown = value if isinstance(value, str) else repr(value)
    return ConfigError(
        f"cannot use augment={shown!r}: {why}" if shown is value else f"cannot use augment={shown}: {why}"
    )


def _parse(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the names in `text`, each with the parameters that are given."""
    try:
        tree = ast.parse(f"[{' '.join(text.split())}]", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _refuse(text, "it cannot be read; write names with commas, such as hflip, rotate(degrees=10)") from None
    calls: list[tuple[str, dict[str, Any]]] = []
    for node in tree.elts if isinstance(tree, ast.List) else [tree]:
        keywords: list[ast.keyword] = []
        name = node
        if isinstance(node, ast.Call):
            name, keywords = node.func, node.keywords
            if node.args:
                raise _refuse(text, "parameters are given by name, such as rotate(degrees=10)")
        if not isinstance(name, ast.Name):
            raise _refuse(text, "it must be names with commas between them, such as hflip, rotate(degrees=10)")
        given: dict[str, Any] = {}
        for keyword in keywords:
            try:
                if keyword.arg is None:
                    raise ValueError
                if keyword.arg in given:
                    raise _refuse(text, f"the {keyword.arg} of {name.id} is given twice; give it once")
                given[keyword.arg] = ast.literal_eval(keyword.value)
            except (ValueError, TypeError, MemoryError, RecursionError):
                raise _refuse(text, f"the {keyword.arg or '**'} of {name.id} must be plain numbers or text") from None
        calls.append((name.id, given))
    return calls


def _checked(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return all parameters of the augmentation `name`, those `given` checked."""
    if name not in AUGMENTATIONS:
        if name.lower() in _ON_THE_DEVICE:
            raise _refuse(name, "it mixes whole batches, on the device; the recipe is in docs/augmentation.md")
        if name.lower() in _OPTIONS:
            raise _refuse(name, f"it is no augmentation here; give the option {_OPTIONS[name.lower()]}")
        near = difflib.get_close_matches(name, AUGMENTATIONS, 1)
        meant = _OTHER_NAMES.get(name.lower()) or (near[0] if near else None)
        hint = f"did you mean {meant}?" if meant else f"there are {', '.join(AUGMENTATIONS)}"
        raise _refuse(name, f"there is no such augmentation; {hint}")
    known = AUGMENTATIONS[name]
    for parameter in given:
        if parameter not in known:
            near = difflib.get_close_matches(parameter, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
            raise _refuse(name, f"it has no parameter {parameter!r}; {hint}")
    checked = {}
    for parameter, (default, convert) in known.items():
        value = given.get(parameter, default)
        try:
            checked[parameter] = convert(value)
        except WrongValue as wrong:
            raise _refuse(f"{name}({parameter}={value!r})", f"{parameter} must be {wrong}") from None
    if name == "rand_augment" and checked["magnitude"] > (most := checked["num_magnitude_bins"] - 1):
        raise _refuse(
            f"{name}(magnitude={given.get('magnitude', checked['magnitude'])})",
            f"magnitude must be from 0 to {most}, for num_magnitude_bins={most + 1}; lower it, or give more bins",
        )
    return checked


def _write(name: str, given: dict[str, Any]) -> str:
    shown = {
        parameter: value
        for parameter, value in given.items()
        if (name, parameter) not in _LATER or value != AUGMENTATIONS[name][parameter][0]
    }
    return f"{name}({', '.join(f'{parameter}={value!r}' for parameter, value in shown.items())})"
