"""Which data sets a daemon serves, with which options: command line over file, a data set's own over the common."""

from __future__ import annotations

import pytest

from prefetchd.config.datasets import make_configs, split_sources
from prefetchd.errors import ConfigError


def configs(common=None, by_dataset=None, file_common=None, file_by_dataset=None):
    return make_configs(
        common or {}, by_dataset or {}, file_common=file_common or {}, file_by_dataset=file_by_dataset or {}
    )


def test_source_without_a_name_is_the_only_data_set():
    assert split_sources(["train.txt"]) == {"": "train.txt"}
    assert split_sources(["train=lists/train.txt", "val=val.txt"]) == {"train": "lists/train.txt", "val": "val.txt"}
    assert split_sources(["runs/lr=0.1/train.txt"]) == {"": "runs/lr=0.1/train.txt"}
    assert split_sources(["./a=b.txt"]) == {"": "./a=b.txt"}
    assert split_sources([]) == {}


def test_file_whose_own_name_looks_like_a_named_source_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1.txt").write_text("")
    assert split_sources(["lr=1.txt"]) == {"": "lr=1.txt"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train.txt", "val=val.txt"], "'train.txt' has no name"),
        (["a=1.txt", "a=2.txt"], "two data sets of the name 'a'"),
        (["my set=1.txt"], "the name 'my set' must be 1 to 64 letters.* written ./my set=1.txt"),
        (["train=1.txt", "=2.txt"], "the name '' must be"),
        (["train="], "there is no path"),
    ],
)
def test_sources_that_are_not_told_apart_are_refused(words, says):
    with pytest.raises(ConfigError, match=says):
        split_sources(words)


def test_command_line_wins_over_the_file_and_the_data_set_over_what_is_common():
    made = configs(
        {"batch_size": 3},
        {"val": {"source": "v.txt", "image_size": 99}},
        {"seed": 5, "batch_size": 1, "num_workers": 2},
        {"train": {"source": "t.txt", "batch_size": 2, "shuffle": True}, "val": {"seed": 7}},
    )
    assert list(made) == ["train", "val"]
    train, val = made.values()
    assert (train.source, train.batch_size, train.seed, train.shuffle) == ("t.txt", 3, 5, True)
    assert (val.source, val.batch_size, val.seed, val.shuffle) == ("v.txt", 3, 7, False)
    assert val.image_size == (99, 99)
    assert train.num_workers == val.num_workers == 2


def test_single_source_takes_everything_together():
    made = configs({"batch_size": 3}, {"": {"source": "m.txt"}}, {"source": "other.txt", "seed": 1})
    assert list(made) == [""]
    assert (made[""].source, made[""].batch_size, made[""].seed) == ("m.txt", 3, 1)
    assert configs(file_common={"source": "m.txt"})[""].source == "m.txt"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"by_dataset": {"": {"source": "m"}}, "file_by_dataset": {"val": {"source": "v"}}}, "no name"),
        ({"by_dataset": {"val": {"seed": 1}}}, "no source"),
        ({"file_by_dataset": {"val": {"source": "v", "memory_budget": "1GiB"}}}, "the daemon's"),
        ({"file_by_dataset": {"a b": {"source": "v"}}}, "letters"),
        ({"file_by_dataset": {f"d{number}": {"source": "v"} for number in range(65)}}, "64 at most"),
        ({}, "no manifest"),
    ],
)
def test_data_sets_that_cannot_be_are_refused(arguments, says):
    with pytest.raises(ConfigError, match=says):
        configs(**arguments)
