"""Options: one form whatever they came as, and one line for what is wrong."""

from __future__ import annotations

import os

import pytest

from prefetchd.config.datasets import read_config_file
from prefetchd.config.validate import check_agrees, make_config
from prefetchd.errors import ConfigError


def test_text_and_values_give_the_same_configuration():
    """A command line's text and Python's values are the same options."""
    text = make_config(source="m", image_size="32x64", dtype="float32", scale="1/255", mean="0.5,0.25,0", shuffle="yes")
    values = make_config(
        source="m", image_size=(32, 64), dtype="float32", scale=1 / 255, mean=[0.5, 0.25, 0], shuffle=True
    )
    assert text == values


def test_only_content_options_enter_the_digest():
    """How fast a batch comes does not change what it is."""
    base = make_config(source="m")
    assert make_config(source="m", num_workers=7, memory_budget="1GiB", name="other").digest() == base.digest()
    assert make_config(source="m", seed=1).digest() != base.digest()


def test_path_that_is_not_utf8_survives_the_wire():
    """The wire holds text only, the file system bytes."""
    config = make_config(source=b"dir\xff/m.txt", root=os.fsdecode(b"\xfe"))
    wire = config.to_wire()
    wire["source"].encode()
    wire["root"].encode()
    assert make_config(**wire) == config


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batchsize": 3}, "did you mean 'batch_size'"),
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
        ({"name": "../x"}, "letters"),
        ({"shuffle": "perhaps"}, "true or false"),
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
