"""The manifest as its users meet it: files in, samples or clear errors out."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefetchd.config.validate import make_config
from prefetchd.data.manifest.records import Manifest, Sample
from prefetchd.data.manifest.scan import Scan
from prefetchd.errors import ManifestError


@pytest.fixture(autouse=True)
def no_descriptor_and_no_thread_is_left() -> Iterator[None]:
    before, threads = set(os.listdir("/proc/self/fd")), threading.active_count()
    yield
    assert threading.active_count() == threads
    assert set(os.listdir("/proc/self/fd")) <= before  # what an earlier test left may have closed


def write(folder: Path, content: str | bytes, name: str = "list.txt") -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read(source: str, **options: object) -> tuple[list[Sample], Manifest]:
    """All samples with paths relative to the manifest's folder, and the (closed) manifest."""
    with Manifest.open(make_config(source=source, **options)) as manifest:
        samples = manifest.samples(range(len(manifest)))
        folder = source if os.path.isdir(source) else os.path.dirname(source)
        return [s._replace(path=os.path.relpath(s.path, folder)) for s in samples], manifest


def pairs(source: str, **options: object) -> list[tuple[str, object]]:
    return [(sample.path, sample.label) for sample in read(source, **options)[0]]


def refusal(source: str, **options: object) -> str:
    with pytest.raises(ManifestError) as caught:
        Manifest.open(make_config(source=source, **options))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("cannot ")
    assert ";" in message
    return message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.jpg 3\nb.jpg -1\n", [("a.jpg", 3), ("b.jpg", -1)]),
        ("a.jpg 3\nb.jpg 4", [("a.jpg", 3), ("b.jpg", 4)]),
        ("my cat.jpg 3\na.jpg\t 4\n", [("my cat.jpg", 3), ("a.jpg", 4)]),
        ("my cat.jpg cat\na dog.jpg dog\n", [("my cat.jpg", 0), ("a dog.jpg", 1)]),
        ("z.jpg zoo\ny.jpg 7\nx.jpg ant\n", [("z.jpg", 2), ("y.jpg", 0), ("x.jpg", 1)]),
        ("a.jpg 1e3\nb.jpg -1\n", [("a.jpg", 1000.0), ("b.jpg", -1.0)]),
        ("a.jpg .5\nb.jpg 2.\n", [("a.jpg", 0.5), ("b.jpg", 2.0)]),
        ("a.jpg 1 2 3\nb c.jpg 4 5 6\n", [("a.jpg", (1, 2, 3)), ("b c.jpg", (4, 5, 6))]),
        ("a.jpg 1 2.5\nb.jpg 4 5\n", [("a.jpg", (1.0, 2.5)), ("b.jpg", (4.0, 5.0))]),
        ("a.jpg\nmy cat.JPG\n", [("a.jpg", None), ("my cat.JPG", None)]),
        ("0001\n0002\n", [("0001", None), ("0002", None)]),
        ("# c\n\n  \na.jpg 3\n   # d 4\nb.jpg 4\n", [("a.jpg", 3), ("b.jpg", 4)]),
        ("a.jpg 3\r\nb.jpg 4\r\n\r\n", [("a.jpg", 3), ("b.jpg", 4)]),
        ("\ufeffa.jpg 3\nb.jpg 4\n", [("a.jpg", 3), ("b.jpg", 4)]),
        ("\ufeff# comment\r\na.jpg 3\r\n", [("a.jpg", 3)]),
        ('"a b 1" 3\n"say ""hi"".jpg" 4\nc.jpg 5\n', [("a b 1", 3), ('say "hi".jpg', 4), ("c.jpg", 5)]),
        ('"#1.jpg" "black cat"\nx.jpg dog\n', [("#1.jpg", 0), ("x.jpg", 1)]),
        ("#1.jpg 3\nb.jpg 4\n #2.jpg 5\n# c\n#\n## d\n", [("#1.jpg", 3), ("b.jpg", 4), ("#2.jpg", 5)]),
        ('5" disc.jpg 3\n', [('5" disc.jpg', 3)]),
        ("photo 12\t3\nphoto 13\t4\n", [("photo 12", 3), ("photo 13", 4)]),
        ("a b\t1 2\nc\t3 4\n", [("a b", (1, 2)), ("c", (3, 4))]),
    ],
)
def test_text_lines_are_read_as_a_person_reads_them(tmp_path: Path, text: str, expected: object) -> None:
    """Paths with spaces, numbers, vectors, class names, no labels, comments, quotes, CRLF, a BOM."""
    assert pairs(write(tmp_path, text)) == expected


def test_label_columns_settles_paths_that_end_in_numbers(tmp_path: Path) -> None:
    """`label_columns` takes exactly the last fields, and 0 takes none."""
    source = write(tmp_path, "photo 12 3\nphoto 13 4\n")
    assert pairs(source)[0] == ("photo", (12, 3))
    assert pairs(source, label_columns=1)[0] == ("photo 12", 3)
    assert pairs(source, label_columns=0)[0] == ("photo 12 3", None)
    assert pairs(write(tmp_path, "p 1 x\n"), label_columns=1) == [("p 1", 0)]


def test_lines_that_are_files_have_no_label(tmp_path: Path) -> None:
    """Paths without an image's suffix, with spaces, are known by being there."""
    for name in ("scan 12", "scan 13"):
        (tmp_path / name).touch()
    assert pairs(write(tmp_path, "scan 12\nscan 13\n")) == [("scan 12", None), ("scan 13", None)]


def test_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    """A Latin-1 file name comes back as the same bytes, and so does a class name."""
    source = write(tmp_path, b"caf\xe9.jpg th\xe9\nb.jpg a\n")
    samples, manifest = read(source)
    assert os.fsencode(samples[0].path) == b"caf\xe9.jpg"
    assert manifest.classes is not None
    assert os.fsencode(manifest.classes[1]) == b"th\xe9"


def test_types_shapes_and_classes(tmp_path: Path) -> None:
    """Integers are int64, one fraction makes all float32, strings are int64 class numbers in sorted order."""
    for text, dtype, shape, classes in [
        ("a.jpg 1\nb.jpg 2\n", "int64", (), None),
        ("a.jpg 1\nb.jpg 2.5\n", "float32", (), None),
        ("a.jpg 1 2\n", "int64", (2,), None),
        ("a.jpg\n", "int64", (), None),
        ("a.jpg dog\nb.jpg Cat\nc.jpg ant\n", "int64", (), ("Cat", "ant", "dog")),
    ]:
        _, manifest = read(write(tmp_path, text))
        assert (manifest.label_dtype, manifest.label_shape, manifest.classes) == (dtype, shape, classes)
    assert pairs(write(tmp_path, "a.jpg 1\nb.jpg 2.5\n"))[0] == ("a.jpg", 1.0)


def test_relative_paths_start_from_the_root_and_absolute_ones_stay(tmp_path: Path) -> None:
    """Paths are absolute: from the manifest's folder, or from `root`, or as written."""
    source = write(tmp_path, "a.jpg 1\n/data/b.jpg 2\n")
    with Manifest.open(make_config(source=source)) as manifest:
        assert manifest.sample(0) == Sample(str(tmp_path / "a.jpg"), 1, 1)
        assert manifest.sample(1) == Sample("/data/b.jpg", 2, 2)
    with Manifest.open(make_config(source=source, root="/images")) as manifest:
        assert [s.path for s in manifest.samples([1, 0])] == ["/data/b.jpg", "/images/a.jpg"]


@pytest.mark.parametrize(
    ("name", "text", "options", "expected"),
    [
        ("l.csv", "a.jpg,3\nb.jpg,4\n", {}, [("a.jpg", 3), ("b.jpg", 4)]),
        ("l.csv", "path,label\na.jpg,3\nb.jpg,4\n", {}, [("a.jpg", 3), ("b.jpg", 4)]),
        ("l.csv", "# c\nx,y\na.jpg,3\n", {}, [("a.jpg", 3)]),
        ("l.csv", "filename\n1\n2\n", {}, [("1", None), ("2", None)]),
        ("l.csv", "a.jpg\nb.jpg\n", {}, [("a.jpg", None), ("b.jpg", None)]),
        ("l.csv", ",path,label\n0,a.jpg,3\n1,b.jpg,4\n", {}, [("a.jpg", 3), ("b.jpg", 4)]),
        ("l.csv", '\ufeffpath,label\r\n"a, ""b"".jpg",3\r\n', {}, [('a, "b".jpg', 3)]),
        ("l.csv", 'path,label\n"a.jpg","big cat"\nb.jpg,ant\n', {}, [("a.jpg", 1), ("b.jpg", 0)]),
        ("l.csv", "path;label\na.jpg;3\n", {}, [("a.jpg", 3)]),
        ("l.tsv", "a b.jpg\t3\t4.5\n", {}, [("a b.jpg", (3.0, 4.5))]),
        ("l.csv", "id,file,kind\n7,a.jpg,x\n", {"x_column": "file", "y_column": "kind"}, [("a.jpg", 0)]),
        ("l.csv", "id,file,kind\n7,a.jpg,x\n", {"y_column": "kind, id"[6:]}, [("a.jpg", 7)]),
        ("l.csv", "7,a.jpg,1\n", {"x_column": 1, "y_column": "2,0"}, [("a.jpg", (1, 7))]),
        ("l.csv", "f,a,b\nx,1,2\n", {"x_column": "f", "y_column": ["b", "a"]}, [("x", (2, 1))]),
        ("l.csv", "a.jpg,x,1,2\n", {"label_columns": 2}, [("a.jpg", (1, 2))]),
        ("l.csv", "a.jpg,x,1,2\n", {"label_columns": 0}, [("a.jpg", None)]),
        ("l.txt", "f,a\nx,1\n", {"x_column": "f", "y_column": "a"}, [("x", 1)]),
    ],
)
def test_tables_are_read_with_and_without_a_header(
    tmp_path: Path, name: str, text: str, options: dict[str, object], expected: object
) -> None:
    """Columns are found by name, number or content; quotes, CRLF, a BOM and a pandas index do not matter."""
    assert pairs(write(tmp_path, text, name), **options) == expected


def test_line_numbers_count_every_line(tmp_path: Path) -> None:
    """`Sample.line` is the number an editor shows, with comments, blank lines and a header counted."""
    samples, _ = read(write(tmp_path, "# c\npath,label\n\na.jpg,1\n# d\nb.jpg,2\n", "l.csv"))
    assert [sample.line for sample in samples] == [4, 6]


@pytest.mark.parametrize("change", ["append", "same size", "replace", "truncate", "remove"])
def test_a_change_on_disk_is_an_error_not_other_data(tmp_path: Path, change: str) -> None:
    """Whatever happens to the file, the next lookup raises, also for lines that were read before."""
    source = write(tmp_path, "a.jpg 1\nb.jpg 2\n")
    with Manifest.open(make_config(source=source)) as manifest:
        manifest.sample(0)
        if change == "append":
            write(tmp_path, "a.jpg 1\nb.jpg 2\nc.jpg 3\n")
        elif change == "same size":
            write(tmp_path, "a.jpg 1\nb.jpg 3\n")
            os.utime(source, ns=(1, 1))
        elif change == "replace":
            os.replace(write(tmp_path, "a.jpg 1\nb.jpg 2\n", "new"), source)
        elif change == "truncate":
            os.truncate(source, 3)
        else:
            os.unlink(source)
        with pytest.raises(ManifestError, match="while in use"):
            manifest.sample(0)
        with pytest.raises(ManifestError, match="while in use"):
            manifest.check_unchanged()


def change_on_disk(path: Path, how: str) -> None:
    """Change a manifest in one of five ways, some of which keep its size or even its content."""
    if how == "append":
        with path.open("ab") as file:
            file.write(b"x.jpg 9\n")
    elif how == "edit":
        with path.open("r+b") as file:
            file.write(b"z")
    elif how == "replace":
        os.replace(shutil.copy(path, f"{path}.new"), path)
    elif how == "truncate":
        os.truncate(path, 64)
    else:
        path.write_bytes(path.read_bytes())


HOW = ["append", "edit", "replace", "truncate", "rewrite"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("n_lines", [100, 400_000])
def test_a_change_while_it_is_opened_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, n_lines: int
) -> None:
    """After the first block was taken in; for one block and for many."""
    source = Path(write(tmp_path, "a.jpg 1\n" * n_lines))
    take, todo = Scan._take, [how]

    def take_and_change(self: Scan, *args: object) -> None:
        take(self, *args)  # type: ignore[arg-type]
        if todo:
            change_on_disk(source, todo.pop())

    monkeypatch.setattr(Scan, "_take", take_and_change)
    with pytest.raises(ManifestError, match=r"written to while it was read|became shorter while in use"):
        Manifest.open(make_config(source=str(source)))


@pytest.mark.parametrize("how", HOW)
def test_a_change_right_after_it_was_written_and_opened_is_noticed(tmp_path: Path, how: str) -> None:
    """Also within one step of the clock that files' times are taken from."""
    for number in range(5):
        source = Path(write(tmp_path, "a.jpg 1\n" * 100, f"{number}.txt"))
        with Manifest.open(make_config(source=str(source))) as manifest:
            change_on_disk(source, how)
            with pytest.raises(ManifestError, match="while in use"):
                manifest.samples([0, 99])


def test_a_reader_attaches_without_a_second_pass(tmp_path: Path) -> None:
    """The handle is plain values and descriptors, and gives the same samples in another process."""
    text = "".join(f"# {i}\n{i}.jpg {'cat' if i % 3 else 'dog'}\n" for i in range(1000))
    manifest = Manifest.open(make_config(source=write(tmp_path, text)))
    facts, fds = manifest.handle()
    copies = [os.dup(fd) for fd in fds]
    expected = manifest.samples(range(1000))
    manifest.close()
    manifest.close()
    child = os.fork()
    if child == 0:
        attached = Manifest.attach(facts, copies)
        same = attached.samples(range(1000)) == expected and attached.classes == ("cat", "dog")
        os._exit(0 if same and attached.digest == manifest.digest else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with Manifest.attach(facts, copies) as attached:
        assert attached.sample(999) == Sample(str(tmp_path / "999.jpg"), 1, 2000)


def test_numbers_outside_are_index_errors(tmp_path: Path) -> None:
    """There is no sample -1, nor one past the end."""
    with Manifest.open(make_config(source=write(tmp_path, "a.jpg 1\n"))) as manifest:
        for number in (-1, 1):
            with pytest.raises(IndexError):
                manifest.sample(number)


def test_the_digest_follows_content_and_meaning_but_not_the_place(tmp_path: Path) -> None:
    """Another label or reading gives another digest; another folder does not."""
    source = write(tmp_path, "p 1 2\n")
    (tmp_path / "sub").mkdir()
    digest = read(source)[1].digest
    assert len(digest) == 16
    assert int(digest, 16) >= 0
    assert read(write(tmp_path / "sub", "p 1 2\n"))[1].digest == digest
    assert read(source, root="/x")[1].digest == digest
    assert read(source, label_columns=1)[1].digest != digest
    assert read(write(tmp_path, "p 1 3\n"))[1].digest != digest


@pytest.mark.parametrize("comment_bytes", [10, 3_000_000])
def test_long_comments_between_samples_are_passed_over(tmp_path: Path, comment_bytes: int) -> None:
    """Comments longer than a block, between samples of one index entry, move nothing."""
    comment = "# " + "x" * min(comment_bytes, 1000) + "\n"
    block = comment * max(1, comment_bytes // 1000)
    source = write(tmp_path, "".join(f"{block}{i}.jpg {i}\n" for i in range(5)))
    with Manifest.open(make_config(source=source)) as manifest:
        for number in (3, 0, 4, 1):
            assert manifest.sample(number).label == number
            assert manifest.sample(number).line == (number + 1) * (block.count("\n") + 1)


FIELD = st.text(
    st.characters(codec="utf-8", exclude_characters='\n\r\0"#', exclude_categories=["Zs", "Cc"]), min_size=1
)
ROW = st.one_of(
    st.tuples(st.lists(FIELD, min_size=1, max_size=3), st.integers(-(2**63), 2**63 - 1), st.booleans()),
    st.sampled_from(["", "   ", "# comment", "\t#\tx 3", "#"]),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(ROW, min_size=1, max_size=300),
    ending=st.sampled_from(["\n", "\r\n"]),
    repeats=st.integers(1, 5),
)
def test_any_line_is_found_as_by_reading_all(tmp_path: Path, rows: list, ending: str, repeats: int) -> None:
    """Lookup by position agrees with what was written, in any order."""
    lines, expected = [], []
    for row in rows * repeats:
        if isinstance(row, str):
            lines.append(row)
            continue
        words, label, quoted = row
        path = " ".join(words) + ".jpg"
        lines.append(f'"{path}" {label}' if quoted else f"{path} {label}")
        expected.append((path, label, len(lines)))
    source = write(tmp_path, ending.join(lines))
    if not expected:
        assert "no samples" in refusal(source)
        return
    with Manifest.open(make_config(source=source, root="/")) as manifest:
        assert len(manifest) == len(expected)
        order = sorted(range(len(expected)), key=lambda number: (number * 7919) % 101)
        got = manifest.samples(order)
        assert got == [manifest.sample(number) for number in order]
        wanted = [(os.path.join("/", expected[n][0]), *expected[n][1:]) for n in order]
        assert [tuple(sample)[:3] for sample in got] == wanted


def test_a_last_block_of_64_lines_with_blank_ones_is_filtered(tmp_path: Path) -> None:
    """As many lines as an index entry covers, but fewer samples: blank lines are no samples."""
    source = write(tmp_path, "\n".join(["", "0.jpg 0"] * 32 + [""]))
    with Manifest.open(make_config(source=source)) as manifest:
        assert [sample.line for sample in manifest.samples(range(32))] == list(range(2, 65, 2))


def test_commas_after_image_suffixes_separate_columns_in_any_file(tmp_path: Path) -> None:
    """A list that was saved as CSV under another name is read as what it is."""
    source = write(tmp_path, "d/im 0.jpg,1\nd/im 1.jpg,2\n")
    with Manifest.open(make_config(source=source, root="/")) as manifest:
        assert [tuple(sample)[:3] for sample in manifest.samples([0, 1])] == [
            ("/d/im 0.jpg", 1, 1),
            ("/d/im 1.jpg", 2, 2),
        ]


def test_commas_within_names_are_part_of_them(tmp_path: Path) -> None:
    """A comma alone makes no table."""
    source = write(tmp_path, "a,b.jpg 1\nc,d.jpg 2\n")
    with Manifest.open(make_config(source=source, root="/")) as manifest:
        assert [sample.path for sample in manifest.samples([0, 1])] == ["/a,b.jpg", "/c,d.jpg"]
