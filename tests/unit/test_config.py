"""Options: one form whatever they came as, and one line for what is wrong."""

from __future__ import annotations

import os
import re
from collections import UserList
from pathlib import Path

import numpy as np
import pytest

from prefetchd.batch_options import BatchOptions
from prefetchd.config.contradictions import doubts
from prefetchd.config.datasets import read_config_file
from prefetchd.config.other_loaders import ELSEWHERE
from prefetchd.config.validate import check_agrees, make_config
from prefetchd.errors import ConfigError

# Words on the page on other loaders that are no keywords of a loader.
NO_KEYWORDS = {"on_epoch_end", "get_state", "set_state", "device", "fit", "rng", "random_split"}


def test_text_and_values_give_the_same_configuration():
    """A command line's text and Python's values are the same options."""
    text = make_config(source="m", image_size="32x64", dtype="float32", scale="1/255", mean="0.5,0.25,0", shuffle="yes")
    values = make_config(
        source="m", image_size=(32, 64), dtype="float32", scale=1 / 255, mean=[0.5, 0.25, 0], shuffle=True
    )
    assert text == values


def test_digests_in_states_that_were_saved_before_an_option_came_stay_the_same():
    """An option that came later (`later=True`) is left out of the digest where it has its default."""
    assert make_config(source="m").digest() == "94559aa9711a931e"
    given = make_config(source="m", batch_size=64, shuffle=True, augment="hflip", dtype="float32")
    assert given.digest(decoder="opencv 1") == "15bb83a3d4b1ba2d"


def test_only_content_options_enter_the_digest():
    """How fast a batch comes does not change what it is."""
    base = make_config(source="m")
    assert make_config(source="m", num_workers=7, memory_budget="1GiB", name="other").digest() == base.digest()
    assert make_config(source="m", seed=1).digest() != base.digest()


@pytest.mark.parametrize(
    ("options", "digest"),
    [
        ({}, "df2f6386b4e8d654"),
        ({"color": "gray", "dtype": "float32", "scale": "1/255", "mean": 0.5}, "2253ded91e10ca0c"),
        (
            {"augment": "random_resized_crop, color_jitter", "shuffle": True, "seed": 7, "layout": "nchw"},
            "34c3c2266ebe7b9d",
        ),
        ({"target": "mask", "batch_size": 8}, "55ffaa4109c02b97"),
    ],
)
def test_digest_without_later_options_is_what_states_of_earlier_versions_have(options, digest):
    assert make_config(source="m", **options).digest(decoder="opencv 4") == digest


def test_channels_without_color_keeps_those_of_the_file():
    config = make_config(source="m", channels=3)
    assert (config.color, config.n_channels, config.is_exact) == ("unchanged", 3, True)
    assert make_config(**config.to_wire()) == config
    assert config.digest() != make_config(source="m").digest()
    converted = make_config(source="m", channels=3, color="rgb")
    assert not converted.is_exact
    assert [make_config(source="m", dtype=d, channels=4).pixel_dtype for d in ("uint8", "float16", "float32")] == [
        "uint8",
        "uint8",
        "float32",
    ]


def test_path_that_is_not_utf8_survives_the_wire():
    """The wire holds text only, the file system bytes."""
    config = make_config(source=b"dir\xff/m.txt", root=os.fsdecode(b"\xfe"))
    wire = config.to_wire()
    wire["source"].encode()
    wire["root"].encode()
    assert make_config(**wire) == config


@pytest.mark.parametrize("seed", [0, 2**31, 2**53 + 1, 1764355883123456789, 2**63 - 1])
def test_seed_is_taken_exactly_as_number_and_as_text(seed):
    """A float holds 53 bits of it."""
    for value in (seed, str(seed), np.uint64(seed), np.array(seed)):
        made = make_config(source="m", seed=value).seed
        assert (made, type(made)) == (seed, int)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("batch_size", np.int32(4), 4),
        ("batch_size", 4.0, 4),
        ("image_size", np.array([8, 16]), (8, 16)),
        ("image_size", np.int64(8), (8, 8)),
        ("image_size", 8.0, (8, 8)),
        ("image_size", UserList([8, 16]), (8, 16)),
        ("mean", np.array([1, 2, 3], np.float32), (1.0, 2.0, 3.0)),
        ("mean", ["1/2"], (0.5,)),
        ("std", np.float32(0.5), (0.5,)),
        ("scale", np.float32(0.25), 0.25),
        ("shuffle", np.bool_(True), True),
        ("shuffle", 1, True),
        ("drop_last", np.array(False), False),
        ("dtype", np.float16, "float16"),
        ("dtype", np.dtype("float32"), "float32"),
        ("dtype", np.str_("float32"), "float32"),
        ("color", np.str_("bgr"), "bgr"),
        ("num_workers", np.int64(3), 3),
        ("memory_budget", np.int64(1 << 30), "1073741824"),
        ("cache_size", np.int64(1 << 30), "1073741824"),
        ("reader_timeout", np.float64(3), 3.0),
        ("y_column", UserList(["a", 2]), "a,2"),
        ("python_path", UserList(["/a", Path("/b")]), ("/a", "/b")),
        ("augment", UserList(["hflip"]), ("hflip(p=0.5)",)),
    ],
)
def test_value_of_numpy_or_of_another_list_is_an_option_value(name, value, expected):
    made = getattr(make_config(source="m", **{"dtype": "float32", name: value}), name)
    assert made == expected
    assert type(made) is type(expected)


def test_dtype_of_torch_is_an_option_value():
    torch = pytest.importorskip("torch")
    assert make_config(source="m", dtype=torch.float16).dtype == "float16"
    assert make_config(source="m", seed=torch.tensor(2**62 + 1)).seed == 2**62 + 1


@pytest.mark.parametrize("options", [{"image_size": 7.5}, {"shuffle": 2}, {"dtype": float}, {"batch_size": np.ones(2)}])
def test_value_that_is_not_exactly_an_option_value_is_refused(options):
    with pytest.raises(ConfigError, match="it must be"):
        make_config(source="m", **options)


def test_name_of_another_loader_gets_what_the_page_on_other_loaders_says():
    """Every keyword of that page's tables is an option or in the list, and the other way round."""
    pages = (Path(__file__).parents[2] / "docs" / "coming-from").glob("*.md")
    page = "\n".join(path.read_text() for path in pages)
    first_cells = " ".join(re.findall(r"^\| ([^|]+) \|", page, re.MULTILINE))
    assert [name for name in ELSEWHERE if not re.search(rf"\b{name}\b", first_cells)] == []
    keywords = set(re.findall(r"`(?:[A-Z]+: )?([a-z_]+)(?:=[^`]*)?`", first_cells)) - NO_KEYWORDS
    assert keywords - set(BatchOptions.__annotations__) - set(ELSEWHERE) == set()
    for name, instead in ELSEWHERE.items():
        with pytest.raises(ConfigError) as caught:
            make_config(source="m", **{name: 1})
        assert instead in str(caught.value)
        used = set(re.findall(r"\b([a-z_]+)=", instead)) - {"device", "degrees", "scale"}
        assert used <= set(BatchOptions.__annotations__)


@pytest.mark.parametrize(
    ("options", "warns"),
    [
        ({"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}, True),
        ({"std": 0.5}, True),
        ({"mean": 0.5, "std": 0.5, "scale": 1 / 255}, False),
        ({"mean": 123.7, "std": 58.4}, False),
        ({"mean": 127.5, "std": 1}, False),
        ({"mean": 0, "std": 1}, False),
        ({}, False),
    ],
)
def test_mean_and_std_of_pixels_from_0_to_1_without_scale_are_doubted(options, warns):
    assert ("pass scale=1/255" in doubts(make_config(source="m", dtype="float32", **options))) == warns


@pytest.mark.parametrize(
    ("options", "warns"),
    [
        ({"mean": [123.7, 116.8, 103.9], "std": [58.4, 57.1, 57.4], "scale": 1 / 255}, True),
        ({"mean": [123.7, 116.8, 103.9], "scale": "1/256"}, True),
        ({"std": 58.4, "scale": 0.0039}, True),
        ({"mean": 0.5, "std": 0.5, "scale": 1 / 255}, False),
        ({"mean": 1, "std": 1, "scale": 1 / 255}, False),
        ({"mean": 127.5, "std": 127.5, "scale": 1}, False),
        ({"mean": 1.5, "scale": 1 / 64}, False),
        ({"mean": 123.7, "scale": 1 / 255, "channels": 3, "color": "unchanged"}, False),
    ],
)
def test_mean_and_std_of_pixels_from_0_to_255_beside_a_scale_are_doubted(options, warns):
    said = doubts(make_config(source="m", dtype="float32", **options))
    assert ("these are for pixels from 0 to 255" in said and "divide them by 255" in said) == warns


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batchsize": 3}, "did you mean 'batch_size'"),
        ({"Batch_Size": 3}, "did you mean 'batch_size'"),
        ({"img_size": 3}, "did you mean 'image_size'"),
        ({"pin_memory": True}, "another loader's; here use"),
        ({"zyx": True}, r"see help\(prefetchd.batches\)"),
        ({"batch_size": 0}, "from 1 to 262144; raise it"),
        ({"seed": 1 << 63}, "from 0 to 9223372036854775807; lower it"),
        ({"label_columns": -1}, "0 or more; raise it"),
        ({"max_length": 0}, "from 1 to 1099511627776; raise it"),
        ({"scale": "inf", "dtype": "float32"}, "finite; give"),
        ({"batch_size": 1.5}, "a whole number"),
        ({"image_size": "0"}, "pixels from 1"),
        ({"scale": "1/0"}, "a number"),
        ({"scale": 2.0}, "uint8"),
        ({"dtype": "float32", "std": "0"}, "other than 0"),
        ({"dtype": "float32", "mean": "1,2"}, "one a channel"),
        ({"color": "cmyk"}, "one of rgb, bgr, gray"),
        ({"color": "unchanged"}, "color='unchanged' without channels"),
        ({"channels": 0}, "from 1 to 512; raise it"),
        ({"channels": 2, "color": "rgb"}, "channels=2 with color='rgb', which has 3 or 4; leave color out"),
        ({"channels": 3, "color": "gray"}, "channels=3 with color='gray', which has 1; leave"),
        ({"channels": 5, "dtype": "float32", "mean": "1,2,3"}, "one number or 5, one a channel"),
        ({"dtype": "uint16", "scale": 2.0}, "cannot scale uint16 pixels"),
        ({"channels": 2, "augment": "color_jitter"}, "the saturation of color_jitter with channels=2"),
        (
            {"dtype": "uint16", "augment": "solarize"},
            "the augmentation solarize with 3 channels of uint16: it is for grey",
        ),
        ({"channels": 4, "color": "rgb", "augment": "equalize"}, "equalize with 4 channels of uint8"),
        ({"dtype": "uint16", "augment": "random_erasing(value=0.5)"}, "whole numbers from 0 to 65535"),
        ({"channels": 4, "augment": "color_jitter(saturation=0)"}, "the hue of color_jitter with channels=4"),
        ({"name": "../x"}, "letters"),
        ({"shuffle": "perhaps"}, "true or false, or blocks"),
    ],
)
def test_wrong_option_is_refused_in_one_line(options: dict, words: str):
    """The line names the option, what is wrong, and what would do."""
    with pytest.raises(ConfigError, match=words) as caught:
        make_config(source="m", **options)
    assert "\n" not in str(caught.value)


def test_file_options_are_relative_to_the_file(tmp_path):
    """A configuration file can be used from anywhere."""
    path = tmp_path / "serve.toml"
    path.write_text('source = "train.txt"\nbatch-size = 64\n')
    assert read_config_file(str(path)) == ({"source": str(tmp_path / "train.txt"), "batch_size": 64}, {})


def test_table_of_the_file_is_a_data_set(tmp_path):
    """Its paths are relative to the file too."""
    path = tmp_path / "serve.toml"
    path.write_text('batch-size = 64\n[val]\nsource = "val.txt"\ndrop-last = true\n')
    assert read_config_file(str(path)) == (
        {"batch_size": 64},
        {"val": {"source": str(tmp_path / "val.txt"), "drop_last": True}},
    )


def test_equal_options_agree_however_they_are_written():
    """What a consumer expects is compared by meaning."""
    config = make_config(
        source="m", memory_budget="256MiB", dtype="float32", mean=0.5, std=(0.2, 0.2, 0.2), root="here/../there"
    )
    check_agrees(
        config, {"memory_budget": "0.25GiB", "mean": [0.5, 0.5, 0.5], "std": "1/5", "root": os.path.abspath("there")}
    )
    check_agrees(make_config(source="m", memory_budget="290MB"), {"memory_budget": "0.29 GB"})
    check_agrees(make_config(source="m", memory_budget="25%"), {"memory_budget": "25.0 %"})
    paths = make_config(source="m", agents="a:1", **dict.fromkeys(("token_file", "tls_ca", "keep"), "here/../t"))
    check_agrees(paths, dict.fromkeys(("token_file", "tls_ca", "keep"), os.path.abspath("t")))
    check_agrees(config, {"scale": None, "image_size": "224x224", "shuffle": "no"})
    with pytest.raises(ConfigError, match="its configuration decides"):
        check_agrees(make_config(source="m", memory_budget="25%"), {"memory_budget": "256TiB"})
    for options in ({"memory_budget": "1GiB"}, {"mean": 0.4}, {"root": "there"}, {"seed": 1}, {"image_size": 225}):
        with pytest.raises(ConfigError, match="its configuration decides"):
            check_agrees(make_config(source="m"), options)
    with pytest.raises(ConfigError, match="no such option"):
        check_agrees(config, {"to_wire": 1})


def test_auto_readers_are_written_auto_or_0():
    assert make_config(source="-", num_workers="auto") == make_config(source="-", num_workers=0)


@pytest.mark.parametrize("option", ["cache", "root", "keep", "python_path", "labels"])
def test_path_with_a_nul_character_is_refused(option):
    with pytest.raises(ConfigError, match="no path has a NUL character; give a file or a directory"):
        make_config(**{"source": "x.txt", option: "a\0b"})
    with pytest.raises(ConfigError, match=r"cannot use the path '\\x00no hexadecimal': no path has a NUL"):
        make_config(source="\0no hexadecimal")


@pytest.mark.parametrize("address", [True, "", " ", 6379])
def test_address_of_ray_is_text(address):
    with pytest.raises(ConfigError, match=r"ray=.*: it must be auto, or the address of a cluster"):
        make_config(source="x.txt", ray=address)
