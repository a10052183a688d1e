"""What `augment` says: one canonical form for equal wishes, and one clear line for what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from prefetchd.config.augment import AUGMENTATIONS, canonical, parameters
from prefetchd.config.datasets import read_config_file
from prefetchd.config.validate import make_config
from prefetchd.errors import ConfigError


@pytest.mark.parametrize(
    "same",
    [
        "hflip, random_resized_crop(scale=(0.2, 1))",
        "random_resized_crop(scale=(0.2,1.0)),hflip(p=0.5)",
        ["random_resized_crop(scale=[0.2, 1])", "hflip"],
        ("random_resized_crop(ratio=(0.75, 1.3333333333333333), scale=(0.2, 1))", " hflip() "),
        ["random_resized_crop(scale=(0.2, 1)), hflip"],
        "random_resized_crop(\n  scale=(0.2, 1),\n),\nhflip",
    ],
)
def test_equal_wishes_have_one_form_and_one_digest(same: Any):
    """Order, spaces, defaults written out and the kind of list do not matter."""
    form = canonical(same)
    assert form == (
        "random_resized_crop(scale=(0.2, 1.0), ratio=(0.75, 1.3333333333333333))",
        "hflip(p=0.5)",
    )
    reference = make_config(source="m", augment="random_resized_crop(scale=(0.2, 1)), hflip")
    config = make_config(source="m", augment=same)
    assert config.digest() == reference.digest() != make_config(source="m").digest()
    assert make_config(**config.to_wire()) == config


def test_canonical_form_of_everything_is_its_own_canonical_form():
    everything = canonical(list(AUGMENTATIONS))
    assert len(everything) == len(AUGMENTATIONS)
    assert canonical(everything) == canonical(", ".join(everything)) == everything
    assert parameters(everything)["color_jitter"] == {
        "brightness": (0.6, 1.4),
        "contrast": (0.6, 1.4),
        "saturation": (0.6, 1.4),
        "hue": (-0.1, 0.1),
        "p": 1.0,
    }


@pytest.mark.parametrize("nothing", [None, "", [], (), "  "])
def test_nothing_is_no_augmentation(nothing: Any):
    assert canonical(nothing) == ()


def test_one_number_stands_for_a_range_around_what_changes_nothing():
    given = parameters(
        canonical("rotate(degrees=20), affine(translate=(0.1, 0.2), shear=5), color_jitter(brightness=2)")
    )
    assert given["rotate"]["degrees"] == (-20, 20)
    assert given["affine"]["translate"] == (0.1, 0.2)
    assert given["affine"]["shear"] == (-5, 5)
    assert given["color_jitter"]["brightness"] == (0, 3)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("hflp", "did you mean hflip"),
        ("RandomResizedCrop", "did you mean random_resized_crop"),
        ("haze", "there are random_resized_crop, hflip"),
        ("blur", "did you mean gaussian_blur"),
        ("hflip(q=1)", "no parameter 'q'; it has p"),
        ("color_jitter(brightnes=1)", "did you mean brightness"),
        ("hflip(p=1.5)", "p must be from 0 to 1"),
        ("hflip(p='x')", "p must be a number"),
        ("hflip(p=True)", "p must be a number"),
        ("hflip, vflip, hflip", "named twice"),
        ("hflip(p=1, p=0)", "the p of hflip is given twice"),
        ("hflip(0.5)", "by name"),
        ("hflip(**{'p': 1})", "plain numbers"),
        ("hflip(p=__import__('os'))", "plain numbers"),
        ("hflip(", "cannot be read"),
        ("hflip] + [vflip", "names with commas"),
        ("#", "cannot be read"),
        ("3", "names with commas"),
        ("a.b", "names with commas"),
        ("rotate(degrees=400)", "within 360"),
        ("rotate(degrees=-5)", "within 360"),
        ("rotate(degrees=(5, -5))", "smaller one first"),
        ("affine(scale=1)", "two numbers"),
        ("affine(scale=(0, 1))", "above 0"),
        ("affine(translate=2)", "fraction from 0 to 1"),
        ("affine(shear=90)", "within 80"),
        ("random_resized_crop(scale=(0, 1))", "above 0 and up to 1"),
        ("random_resized_crop(scale=(0.5, 1.5))", "above 0 and up to 1"),
        ("random_resized_crop(ratio=(1e400, 1))", "a number"),
        ("RandAugment", "did you mean rand_augment"),
        ("invert", r"did you mean solarize\(threshold=0\)"),
        ("CutMix", "mixes whole batches, on the device"),
        ("CenterCrop", "give the option resize='crop'"),
        ("solarise", "did you mean solarize"),
        ("solarize(treshold=9)", "did you mean threshold"),
        ("solarize(threshold=256)", "threshold must be from 0 to 255"),
        ("posterize(bits=9)", "a whole number from 0 to 8"),
        ("posterize(bits=2.5)", "a whole number from 0 to 8"),
        ("gaussian_blur(kernel_size=4)", "an odd whole number"),
        ("gaussian_blur(kernel_size=(3, 5, 7))", "an odd whole number"),
        ("gaussian_blur(kernel_size=True)", "an odd whole number"),
        ("gaussian_blur(sigma=0)", "above 0"),
        ("gaussian_blur(sigma=(2, 1))", "smaller one first"),
        ("sharpness(sharpness_factor=-1)", "a factor from 0"),
        ("grayscale(p=2)", "p must be from 0 to 1"),
        ("rand_augment(num_ops=0)", "a whole number from 1 to 8"),
        ("rand_augment(num_ops=9)", "a whole number from 1 to 8"),
        ("rand_augment(magnitude=31)", "magnitude must be from 0 to 30, for num_magnitude_bins=31"),
        ("rand_augment(magnitude=9, num_magnitude_bins=9)", "magnitude must be from 0 to 8"),
        ("trivial_augment_wide(num_magnitude_bins=1)", "a whole number from 2"),
        ("trivial_augment_wide(num_ops=2)", "it has num_magnitude_bins"),
        ("random_erasing(scale=(0.5, 2))", "above 0 and up to 1"),
        ("color_jitter(hue=0.6)", "within 0.5"),
        ("color_jitter(contrast=-1)", "0 or more"),
        (7, "must be text"),
        (["hflip", 3], "must be text"),
        ({"hflip": 1}, "must be text"),
    ],
)
def test_wrong_wish_is_refused_in_one_line(wrong: Any, words: str):
    with pytest.raises(ConfigError, match=words) as caught:
        make_config(source="m", augment=wrong)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("cannot use augment=")


def test_parameters_that_one_number_or_a_pair_gives():
    given = parameters(canonical("gaussian_blur(kernel_size=(5, 7), sigma=1), random_erasing(value=[1, 2, 3])"))
    assert given["gaussian_blur"] == {"kernel_size": (5, 7), "sigma": (1.0, 1.0), "p": 1.0}
    assert given["random_erasing"]["value"] == (1.0, 2.0, 3.0)
    given = parameters(canonical("gaussian_blur(kernel_size=5), random_erasing(value='random')"))
    assert given["gaussian_blur"]["kernel_size"] == (5, 5)
    assert given["random_erasing"]["value"] == "random"


def test_toml_takes_a_text_or_a_list(tmp_path):
    path = tmp_path / "a.toml"
    forms = []
    for value in ('"rotate(degrees=10), hflip"', '["rotate(degrees=10)", "hflip"]'):
        path.write_text(f"augment = {value}\n")
        forms.append(make_config(source="m", **read_config_file(str(path))[0]).augment)
    assert forms[0] == forms[1] == ("hflip(p=0.5)", "rotate(degrees=(-10.0, 10.0))")
