"""Files of findings: what is shown of them, when they are read again, and what is none."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from prefetchd.dashboard.data import command_that_verifies
from prefetchd.dashboard.findings import FindingsFiles, parse_findings
from prefetchd.errors import ConfigError


def report(**changes: Any) -> dict[str, Any]:
    """What `verify --json` prints."""
    return {
        "source": "train.txt", "n_samples": 10, "verified": 10, "interrupted": False, "took_s": 1.0, "readers": 2,
        "malformed_lines": 0, "malformed": [], "bad_samples": 1,
        "bad": [{"sample_id": 3, "line": 4, "path": "x", "where": "train.txt line 4", "reason": "empty"}],
        "good_samples": 9, "encoded_bytes": 900, "formats": {"jpeg": 9}, "channels": {"3": 9}, "bits": {"8": 9},
        "progressive": 0,
        "short_side_px": [{"from": None, "to": 32, "count": 1}, {"from": 32, "to": 64, "count": 7}],
        "aspect": [{"from": 3, "to": None, "count": 9}],
        "median_size_px": [40, 60], "smaller_than_delivered": 2,
        "duplicates": {
            "groups": 1, "superfluous_samples": 1, "groups_with_different_labels": 1, "sample_ids": [[1, 8]],
            "where": [["a", "b"]],
        },
        "classes": {
            "n_classes": 2, "empty": 1,
            "counts": [{"class": 0, "name": "cat", "count": 0}, {"class": 1, "name": None, "count": 9}],
        },
        **changes,
    }  # fmt: skip


def test_findings_are_shown_with_their_names(tmp_path):
    path = tmp_path / "found.json"
    path.write_text(json.dumps(report(new_in_a_later_version={"a": 1})))
    found, why, age_s = FindingsFiles({"": str(path)}).find("any")
    assert why == ""
    assert age_s is not None
    assert age_s < 60
    assert found is not None
    (one,) = found
    assert one["sides"] == [{"name": "below 32", "count": 1}, {"name": "32 to 64", "count": 7}]
    assert one["aspects"] == [{"name": "3 and more", "count": 9}]
    assert one["duplicates"]["shown"] == [[{"sample_id": 1, "where": "a"}, {"sample_id": 8, "where": "b"}]]
    assert one["bad"] == [{"sample_id": 3, "where": "train.txt line 4", "reason": "empty"}]
    assert one["classes"]["classes"] == [{"name": "1", "count": 9}, {"name": "cat", "count": 0}]
    assert json.dumps(found)


def test_long_lists_are_cut(tmp_path):
    bad = [{"sample_id": n, "where": str(n), "reason": "r"} for n in range(5000)]
    twice = {
        "groups": 5000, "superfluous_samples": 1, "groups_with_different_labels": 0,
        "sample_ids": [list(range(50)) for _ in range(1000)],
    }  # fmt: skip
    classes = {"n_classes": 900, "empty": 0, "counts": [{"class": n, "name": None, "count": n + 1} for n in range(900)]}
    path = tmp_path / "found.json"
    path.write_text(json.dumps(report(bad=bad, bad_samples=5000, duplicates=twice, classes=classes)))
    found, _, _ = FindingsFiles({"train": str(path)}).find("train")
    assert found is not None
    (one,) = found
    assert (len(one["bad"]), len(one["duplicates"]["shown"]), len(one["duplicates"]["shown"][0])) == (100, 100, 8)
    assert len(one["classes"]["classes"]) == 60
    assert one["classes"]["others"] + sum(row["count"] for row in one["classes"]["classes"]) == 900 * 901 // 2
    assert one["classes"]["least"] == 1


def test_sources_of_a_mixture_are_shown_one_after_another(tmp_path):
    path = tmp_path / "found.json"
    path.write_text(
        json.dumps({"sources": [report(source="a"), report(source="b", classes=None, median_size_px=None)]})
    )
    found, _, _ = FindingsFiles({"": str(path)}).find("")
    assert found is not None
    assert [one["source"] for one in found] == ["a", "b"]


def test_file_is_read_again_when_it_has_changed_and_may_come_later(tmp_path):
    path = tmp_path / "found.json"
    files = FindingsFiles({"train": str(path)})
    assert files.find("val") == (None, "", None)
    found, why, _ = files.find("train")
    assert found is None
    assert "No such file" in why
    for n_samples in (10, 20):
        path.write_text(json.dumps(report(n_samples=n_samples)))
        os.utime(path, (n_samples, n_samples))
        found, _, _ = files.find("train")
        assert found is not None
        assert found[0]["n_samples"] == n_samples


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"source": 1}', "[" * 5000, '{"n_samples": "x"}', "\xff\xfe", '{"sources": [{}]}'],
)
def test_what_is_no_report_is_said(tmp_path, content):
    path = tmp_path / "found.json"
    path.write_text(content, encoding="latin-1")
    found, why, _ = FindingsFiles({"": str(path)}).find("")
    assert found is None
    assert "is not what prefetchd verify --json prints" in why


def test_words_name_a_file_for_each_data_set(tmp_path, monkeypatch):
    assert parse_findings(["train=a.json", "val=/b.json"]) == {"train": "a.json", "val": "/b.json"}
    assert parse_findings(["/some/x=y.json"]) == {"": "/some/x=y.json"}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.json").touch()
    assert parse_findings(["a=b.json"]) == {"": "a=b.json"}
    for words in (["a.json", "b.json"], ["train="], ["x=1", "x=2"]):
        with pytest.raises(ConfigError, match="one file"):
            parse_findings(words)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("/d/my list.txt", "verify '/d/my list.txt' --json"),
        ("s3://data/train/", "verify s3://data/train/ --json"),
        ("https://me:word@h/a.txt", "verify MANIFEST --json"),
        ("https://h/a.txt?signature=1", "verify MANIFEST --json"),
        ("<mix of 2 sources>", "verify MANIFEST --json"),
        ("a\0b", "verify MANIFEST --json"),
    ],
)
def test_the_command_that_makes_findings_shows_no_secret_of_a_url(source, shown):
    assert shown in command_that_verifies("", source)
