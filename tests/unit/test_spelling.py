"""What a command prints names options as flags, whatever part of prefetchd wrote the message."""

from __future__ import annotations

import logging

import pytest

from prefetchd.cli.main import make_parser
from prefetchd.cli.spelling import FlagFormatter, as_flags
from prefetchd.config.options import OPTIONS, flag_of


@pytest.mark.parametrize(
    ("python", "flags"),
    [
        ('use on_error="skip"', "use --on-error skip"),
        ("use on_error='skip', or none", "use --on-error skip, or none"),
        ('give memory_budget="512MiB" or more', "give --memory-budget 512MiB or more"),
        ("raise memory_budget= or lower batch_size=", "raise --memory-budget or lower --batch-size"),
        ("lower batch_size, image_size or num_workers", "lower --batch-size, --image-size or --num-workers"),
        ("use shuffle=True; or shrink_on_load=False.", "use --shuffle; or --no-shrink-on-load."),
        ("serves image_size=(224, 320)", "serves --image-size 224x320"),
        ("cannot use batch_size=0: it must be from 1 to 5", "cannot use --batch-size 0: it must be from 1 to 5"),
        ("scale=1/255, dtype=float32", "--scale 1/255, --dtype float32"),
        ("with target=mask.", "with --target mask."),
        (
            "give label_separator='|' or label_separator=\"\" for none",
            "give --label-separator '|' or --label-separator '' for none",
        ),
        ("give root='/my data'", "give --root '/my data'"),
        ("cannot use stop without mix; give it", "cannot use --stop without --mix; give it"),
        ("cannot use weights together with pack: a row", "cannot use --weights together with --pack: a row"),
        ("cannot use mix together with the source 'a'", "cannot use --mix together with the source 'a'"),
        (
            "cannot use epoch_samples without weights or mix: no",
            "cannot use --epoch-samples without --weights or --mix: no",
        ),
        ("cannot use replace=False without weights: no", "cannot use --no-replace without --weights: no"),
        ("cannot use pack='concat' without offsets, which", "cannot use --pack concat without --offsets, which"),
        ("cannot use where with the column 'fold'", "cannot use --where with the column 'fold'"),
        ("cannot use subset together with order, which", "cannot use --subset together with --order, which"),
        ("cannot use keep: it is full", "cannot use --keep: it is full"),
    ],
)
def test_options_in_pythons_spelling_become_flags(python: str, flags: str) -> None:
    assert as_flags(python) == flags


@pytest.mark.parametrize(
    "text",
    [
        "cannot read /data/root=1/a.jpg: it is empty",
        "the labels of the root are in a cache by that name",  # English words that are options too
        "start it with --batch-size 4 --name x",
        "my_batch_size=3 and batch_sizes",
        "'batch_size': a file's key",
        "batch 3 of epoch 2, the first batch",
        "cannot mix sources with labels and without labels: it is",
        "cannot use the field label: it is empty",
    ],
)
def test_everything_else_stays_as_it_is(text: str) -> None:
    assert as_flags(text) == text


@pytest.mark.parametrize("name", sorted(set(OPTIONS) - {"source"}))
def test_every_option_is_translated(name: str) -> None:
    assert as_flags(f"set {name}=1; then go on") == f"set --{flag_of(name)} 1; then go on"


def test_log_lines_are_translated_and_their_arguments_with_them() -> None:
    record = logging.LogRecord("prefetchd", logging.INFO, "", 0, "raise %s to %d", ("memory_budget", 5), None)
    assert FlagFormatter("prefetchd: %(message)s").format(record) == "prefetchd: raise --memory-budget to 5"


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--batchsize", "did you mean --batch-size; see"),
        ("--no-shufle", "did you mean --shuffle; see"),
        ("--workers", "it is another loader's, here use --num-workers; see"),
        ("--nonsense", "prefetchd serve: unrecognized arguments: --nonsense; see prefetchd serve --help"),
    ],
)
def test_unknown_flag_gets_the_one_that_is_meant(flag: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_parser().parse_args(["serve", "train.txt", flag])
    assert meant in capsys.readouterr().err


def test_unknown_command_gets_the_one_that_is_meant(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_parser().parse_args(["verfy", "train.txt"])
    assert "); did you mean verify; see prefetchd --help" in capsys.readouterr().err
