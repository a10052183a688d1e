"""Choosing among measured plans, and drawing them."""

from __future__ import annotations

import dataclasses
import shlex
from xml.etree import ElementTree

import pytest

from prefetchd.cli.arguments import configs_of
from prefetchd.cli.main import make_parser
from prefetchd.cli.measure import plan_choice
from prefetchd.cli.measure.measure import Measured
from prefetchd.cli.measure.plan_choice import plot
from prefetchd.config.validate import make_config

MIB = 1 << 20


def point(n_readers, budget_mib, images_per_s, **other):
    plain = {
        "n_slots": 3, "footprint_bytes": budget_mib * MIB - MIB, "first_batch_s": 0.3, "readers_busy": 0.9,
        "on_cpu": 1.0, "loader_bound": 1.0, "bad_samples": 0,
    }  # fmt: skip
    return Measured(
        **{**plain, "n_readers": n_readers, "budget_bytes": budget_mib * MIB, "images_per_s": images_per_s, **other}
    )


POINTS = [point(1, 90, 400.0), point(2, 120, 780.0), point(2, 150, 930.0), point(4, 210, 1000.0)]


@pytest.mark.parametrize(("n_cores", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16])])
def test_readers_are_tried_up_to_the_cores(n_cores, counts):
    assert plan_choice.reader_counts(n_cores) == counts


def test_steps_end_after_two_that_gain_nothing():
    assert plan_choice.is_worth_more([100, 101])
    assert plan_choice.is_worth_more([100, 101, 150])
    assert plan_choice.is_worth_more([100, 150, 101])
    assert not plan_choice.is_worth_more([100, 101, 99])


def test_the_knee_is_the_cheapest_with_nine_tenths_of_the_best():
    assert plan_choice.knee(POINTS) is POINTS[2]
    lines = plan_choice.table(POINTS)
    assert [line.split()[-1] for line in lines if "<-" in line] == ["knee", "best"]


def test_a_target_takes_the_cheapest_plan_that_holds_it():
    config = make_config(source="m.txt")
    chosen, said = plan_choice.advise(POINTS, 700, 4, config)
    assert chosen is POINTS[1]
    assert "700 images/s are held with 120 MiB and 2 readers" in said[1]
    assert plan_choice.advise(POINTS, None, 4, config)[0] is POINTS[2]


def test_a_target_out_of_reach_says_what_would_help():
    config = make_config(source="m.txt", transform="a:b", shrink_on_load=False)
    chosen, said = plan_choice.advise(POINTS, 3000, 4, config)
    text = "\n".join(said)
    assert chosen is POINTS[3]
    for remedy in ("3.0 times too slow", "it takes about 12, and there are 4", "cache", "smaller size", "--transform"):
        assert remedy in text
    assert "faster disk" not in text
    waits = [dataclasses.replace(POINTS[3], on_cpu=0.3)]
    assert "faster disk" in "\n".join(plan_choice.advise(waits, 3000, 4, config)[1])


def test_the_command_line_means_the_configuration_that_was_measured():
    config = make_config(
        source="a list.txt", batch_size=8, image_size="96x128", shuffle=True, shrink_on_load=False, dtype="float32",
        scale="1/255", mean=(-0.5, 0.0, 0.25), augment="hflip(p=0.25), rotate(degrees=10)", python_path=["/a", "/b"],
        y_column="a,b", seed=7, target="mask",
    )  # fmt: skip
    with_fields = make_config(source="a.csv", fields={"depth": "image(d, channels=1)", "caption": "text('.txt')"})
    for each in (config, with_fields):
        words = shlex.split(plan_choice.command_line(each, POINTS[1]))
        assert words[0] == "prefetchd"
        (parsed,) = configs_of(make_parser().parse_args(words[1:])).values()
        assert parsed == dataclasses.replace(each, num_workers=2, memory_budget="120MiB")


def test_the_plot_is_an_svg_with_a_line_for_each_number_of_readers():
    root = ElementTree.fromstring(plot(POINTS, POINTS[2], "a < b & c", target=1200))
    names = [element.tag.rpartition("}")[2] for element in root.iter()]
    assert names.count("polyline") == 3
    assert names.count("circle") == len(POINTS) + 1
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert {"a < b & c", "1 reader", "4 readers", "target 1,200"} <= set(texts)
    width, height = 720, 440
    for circle in root.iter("{http://www.w3.org/2000/svg}circle"):
        assert 0 < float(circle.get("cx", -1)) < width
        assert 0 < float(circle.get("cy", -1)) < height
