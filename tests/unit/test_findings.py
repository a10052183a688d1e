"""What facts say about a data set."""

from __future__ import annotations

import json

import numpy as np

from prefetchd.cli.verify.findings import KEPT, describe, summarise
from prefetchd.data.images.headers.header import FORMATS


def facts(*rows: dict) -> np.ndarray:
    made = np.zeros(len(rows), KEPT)
    plain = {"seen": True, "n_bytes": 1000, "width_px": 300, "height_px": 200, "channels": 3, "bits": 8}
    for number, row in enumerate(rows):
        for name, value in {**plain, "digest": number, "label": number, **row}.items():
            made[number][name] = value
    return made


def summary(*rows: dict, classes=None, has_classes=True):
    made = summarise(facts(*rows), (224, 224), classes, has_classes=has_classes)
    json.dumps(made)  # plain values only
    return made


def test_samples_that_were_not_seen_count_nowhere():
    found = summary({}, {"seen": False, "channels": 4})
    assert found["good_samples"] == 1
    assert found["channels"] == {"3": 1}
    assert sum(one["count"] for one in found["classes"]["counts"]) == 1


def test_sizes_and_aspects_are_binned_from_the_first_filled_bin_to_the_last():
    found = summary({"width_px": 30, "height_px": 10}, {"width_px": 5000, "height_px": 5000})
    assert found["short_side_px"][0] == {"from": None, "to": 32, "count": 1}
    assert found["short_side_px"][-1] == {"from": 4096, "to": None, "count": 1}
    assert found["aspect"][0] == {"from": 0.95, "to": 1.05, "count": 1}
    assert found["aspect"][-1] == {"from": 3, "to": None, "count": 1}
    assert found["smaller_than_delivered"] == 1


def test_an_edge_belongs_to_the_bin_that_it_begins():
    assert summary({"width_px": 224, "height_px": 224})["short_side_px"] == [{"from": 224, "to": 256, "count": 1}]


def test_duplicates_are_of_one_digest_and_length_and_conflicts_come_first():
    found = summary(
        {"digest": 7, "label": 1},
        {"digest": 8, "label": 1},
        {"digest": 7, "label": 1},
        {"digest": 8, "label": 2},
        {"digest": 8, "label": 1},
        {"digest": 9, "n_bytes": 1},
        {"digest": 9, "n_bytes": 2},
        {"seen": False, "digest": 7},
    )["duplicates"]
    assert found["sample_ids"] == [[1, 3, 4], [0, 2]]
    assert (found["groups"], found["superfluous_samples"], found["groups_with_different_labels"]) == (2, 3, 1)


def test_a_class_without_a_good_sample_is_told():
    found = summary({"label": 0}, {"label": 2}, {"label": 2}, classes=("cat", "dog", "eel"))["classes"]
    assert found["empty"] == 1
    assert [(row["name"], row["count"]) for row in found["counts"]] == [("cat", 1), ("dog", 0), ("eel", 2)]


def test_labels_that_are_no_classes_have_no_balance():
    assert summary({}, has_classes=False)["classes"] is None


def test_nothing_good_is_described_too():
    bad = {"sample_id": 0, "line": 1, "path": "a", "where": "m line 1: a", "reason": "gone", "judged": False}
    report = {
        "source": "m", "n_samples": 1, "verified": 1, "interrupted": False, "took_s": 0.0, "readers": 1,
        "malformed": [{"number": 7, "reason": "there is no label: 'b'"}], "bad_samples": 1, "bad": [bad],
        **summary({"seen": False}),
    }  # fmt: skip
    text = "\n".join(describe(report))
    assert "m line 1: a: gone" in text
    assert "line 7: there is no label: 'b'" in text
    assert "could not be judged" in text


def test_formats_are_named():
    assert summary({"format": FORMATS.index("png")})["formats"] == {"png": 1}
