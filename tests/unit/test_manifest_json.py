"""JSONL manifests: objects in, samples or clear errors out."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from prefetchd.config.validate import make_config
from prefetchd.data.manifest.records import Manifest
from prefetchd.errors import ManifestError
from tests.unit.test_manifest import no_descriptor_and_no_thread_is_left, pairs, refusal, write  # noqa: F401


def lines(*objects: object) -> str:
    return "".join(f"{json.dumps(each)}\n" for each in objects)


def jsonl(folder: Path, *objects: object) -> str:
    return write(folder, lines(*objects), "list.jsonl")


@pytest.mark.parametrize(
    ("objects", "options", "expected"),
    [
        ([{"path": "a.jpg", "label": 3}, {"label": -1, "path": "b c.jpg"}], {}, [("a.jpg", 3), ("b c.jpg", -1)]),
        ([{"image": "a", "class": "cat"}, {"image": "b", "class": "ant"}], {}, [("a", 1), ("b", 0)]),
        ([{"x": "a.jpg", "y": 1.5}], {"y_column": "y"}, [("a.jpg", 1.5)]),
        ([{"id": 7, "where": "a.JPG", "target": [1, 2.5]}], {}, [("a.JPG", (1.0, 2.5))]),
        ([{"path": "a", "label": True}, {"path": "b", "label": False}], {}, [("a", 1), ("b", 0)]),
        ([{"path": "a", "label": 2**63 - 1}], {}, [("a", 2**63 - 1)]),
        ([{"path": "a", "label": 1}, {"path": "b", "label": 2.5}], {}, [("a", 1.0), ("b", 2.5)]),
        ([{"path": "a"}, {"path": "b"}], {}, [("a", None), ("b", None)]),
        ([{"path": "a", "label": 1}], {"label_columns": 0}, [("a", None)]),
        ([{"a": {"b": "p"}, "y": {"z": [1]}}], {"x_column": "a.b", "y_column": "y.z"}, [("p", 1)]),
        ([{"a.b": "p", "l": 1, "m": 2}], {"x_column": "a.b", "y_column": "l,m"}, [("p", (1, 2))]),
        ([{"path": "grün #1 \u732b.jpg", "label": "größe"}], {}, [("grün #1 \u732b.jpg", 0)]),
        ([{"path": 'a "b"\\.jpg', "label": "#c"}], {}, [('a "b"\\.jpg', 0)]),
    ],
)
def test_objects_are_read_as_a_person_reads_them(tmp_path: Path, objects, options, expected) -> None:
    """Keys named or found out, numbers, vectors, truth values, names, nested keys, escapes."""
    assert pairs(jsonl(tmp_path, *objects), **options) == expected


def test_bom_crlf_blank_lines_and_a_key_given_twice(tmp_path: Path) -> None:
    """What editors add changes nothing; of a key that is there twice the last one counts."""
    text = '\ufeff{"path": "a", "label": 1}\r\n\r\n  {"path": "x", "label": 2, "path": "b"}  \r\n'
    assert pairs(write(tmp_path, text, "list.ndjson")) == [("a", 1), ("b", 2)]


@pytest.mark.parametrize("name", ["list.txt", "list", "list.json", "list.JSON"])
def test_lines_of_objects_are_json_whatever_the_file_is_called(tmp_path: Path, name: str) -> None:
    """Many programs call JSON lines `.json`; as text each object would be the path of a file that is not there."""
    text = '\ufeff\n{"path": "a.jpg", "label": 1}\n{"path": "b c.jpg", "label": 2}\n'
    assert pairs(write(tmp_path, text, name)) == [("a.jpg", 1), ("b c.jpg", 2)]


@pytest.mark.parametrize(
    "text",
    [
        '[{"path": "a"}]', '[\n{"path": "a"},\n{"path": "b"}\n]\n', '{\n  "path": "a"\n}\n', '{"images": [], "x": {}}',
        "a.jpg 1\nb.jpg 2\n", "",
    ],
)  # fmt: skip
def test_json_in_one_piece_is_refused(tmp_path: Path, text: str) -> None:
    assert "JSON in one piece" in refusal(write(tmp_path, text, "list.json"))


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ('{"path": "a", "label": 1', r"line 3 .*it is not JSON \("),
        ('[1, "a"]', "line 3 .*no object"),
        ('{"label": 1}', "line 3 .*there is no key 'path'"),
        ('{"path": 7, "label": 1}', r"line 3 .*the path under 'path' is a number \(7\)"),
        ('{"path": "", "label": 1}', "line 3 .*the path under 'path' is empty"),
        ('{"path": "a"}', "line 3 .*there is no key 'label'"),
        ('{"path": "a", "label": []}', "line 3 .*is empty: .*; give label_columns=0"),
        ('{"path": "a", "label": ' + "[" * 9999 + "]" * 9999 + "}", "line 3 .*nested too deeply"),
        ('{"path": "a", "label": null}', "line 3 .*is null"),
        ('{"path": "a", "label": "cat"}', r"line 3 .*is text \('cat'\), and not a number"),
        ('{"path": "a", "label": [1, 2]}', "line 3 .*2 label numbers where the others have 1"),
        ('{"path": "a", "label": {"b": 1}}', "line 3 .*an object"),
        ('{"path": "a", "label": 1e39}', "line 3 .*float32"),
        ('{"path": "a", "label": 9223372036854775808}', "line 3 .*64 bits"),
        ('{"path": "\\udc80", "label": 1}', "line 3 .*not JSON"),
    ],
)
def test_a_line_that_does_not_fit_is_refused_with_its_number(tmp_path: Path, bad: str, what: str) -> None:
    """Each kind of fault; the lines around it are good."""
    good = lines({"path": "a", "label": 1}, {"path": "b", "label": 2})
    message = refusal(write(tmp_path, f"{good}{bad}\n{good}", "list.jsonl"))
    assert re.search(what, message), message


def test_names_do_not_mix_with_numbers(tmp_path: Path) -> None:
    """The majority decides, and the odd one is named."""
    names = [{"path": "a", "label": "cat"}] * 3
    assert "line 4" in refusal(jsonl(tmp_path, *names, {"path": "b", "label": 7}))
    assert "line 1" in refusal(jsonl(tmp_path, {"path": "b", "label": 7}, *names))


def test_empty_labels_are_no_labels_only_where_that_is_said(tmp_path: Path) -> None:
    """Also where every line has one, or only some."""
    for first in ({"path": "a", "label": []}, {"path": "a", "label": 1}):
        source = jsonl(tmp_path, first, {"path": "b", "label": []})
        assert re.search("the label under 'label' is empty: .*; give label_columns=0", refusal(source))
        assert pairs(source, label_columns=0) == [("a", None), ("b", None)]


def test_keys_that_cannot_be_found_out_have_to_be_named(tmp_path: Path) -> None:
    """The error lists what is there."""
    assert "'a', 'b'" in refusal(jsonl(tmp_path, {"a": "x", "b": 2}))
    assert "no key 'c'" in refusal(jsonl(tmp_path, {"a": "x", "b": 2}), x_column="c")
    assert "label_columns=2" in refusal(jsonl(tmp_path, {"path": "x", "label": 2}), label_columns=2)
    assert "none of its first lines" in refusal(write(tmp_path, "a.jpg 1\n", "list.jsonl"))
    assert "y_column" in refusal(jsonl(tmp_path, {"path": "x", "l": "cat", "m": 2}), y_column="l,m")


def test_a_reader_attaches_and_finds_any_line(tmp_path: Path) -> None:
    """As for other manifests: no second pass, the same samples, by their line."""
    source = jsonl(tmp_path, *({"path": f"{i}.jpg", "label": i % 7} for i in range(1000)))
    with Manifest.open(make_config(source=source)) as manifest:
        facts, fds = manifest.handle()
        import msgspec

        facts = msgspec.msgpack.decode(msgspec.msgpack.encode(facts))
        attached = Manifest.attach(facts, [os.dup(fd) for fd in fds])
        assert attached.samples([999, 3, 500]) == manifest.samples([999, 3, 500])
        assert attached.sample(999).line == 1000
        assert attached.where(attached.sample(3)).endswith("list.jsonl line 4: " + str(tmp_path / "3.jpg"))
        attached.close()


def test_a_mask_is_the_path_under_its_key(tmp_path: Path) -> None:
    """Named or found out; what is no path of an image is refused with its line."""
    given = {"image": "a.jpg", "label": 1, "m": {"path": "m 1.png"}}
    assert pairs(jsonl(tmp_path, given), target="mask", y_column="m.path") == [("a.jpg", str(tmp_path / "m 1.png"))]
    assert pairs(jsonl(tmp_path, {"image": "a.jpg", "mask": "b.png"}), target="mask") == [
        ("a.jpg", str(tmp_path / "b.png"))
    ]
    for bad, what in ((7, r"a number \(7\), and not the path of a mask"), ("b", "not named as an image")):
        objects = {"image": "a.jpg", "mask": "b.png"}, {"image": "a.jpg", "mask": bad}
        with pytest.raises(ManifestError, match=f"line 2 .*{what}"):
            pairs(jsonl(tmp_path, *objects), target="mask")


@pytest.mark.parametrize("n_without", [3, 300])
@pytest.mark.parametrize("key", ["label", "breed"])
def test_a_label_that_few_lines_have_is_refused(tmp_path: Path, n_without: int, key: str) -> None:
    """The labels of all lines would be numbers of samples; an option settles it."""
    source = jsonl(tmp_path, *({"image": f"{i}.jpg"} for i in range(n_without)), {"image": "d.jpg", key: 7})
    message = refusal(source)
    for what in (f"line {n_without + 1} of", f"y_column={key!r}", "missing_label=", "label_columns=0"):
        assert what in message
    assert pairs(source, label_columns=0)[-1] == ("d.jpg", None)
    assert pairs(source, y_column=key, missing_label="-1")[-2:] == [(f"{n_without - 1}.jpg", -1), ("d.jpg", 7)]
