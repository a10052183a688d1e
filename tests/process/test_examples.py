"""The examples run, on photographs made in code, and their losses fall. Each where its framework is installed."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
MAKE_THEIR_DATA = ("detection_train", "packed_train")
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
LONG_S = 280  # frameworks take a while to load on a machine that is busy with other tests
pytestmark = pytest.mark.timeout(3 * LONG_S)
LOSS = re.compile(r"^(?:rate [\d.]+, )?epoch \d+: loss ([\d.]+)(?:, accuracy ([\d.]+))?$", re.MULTILINE)


@pytest.fixture(scope="module")
def tinted_photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.spec_from_file_location("photographs", EXAMPLES.parent / "scripts/photographs.py")
    assert spec is not None
    assert spec.loader is not None
    photographs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(photographs)
    return photographs.make_photographs(tmp_path_factory.mktemp("tinted"), 64)


def needs(names: str) -> None:
    if missing := [name for name in names.split() if not importlib.util.find_spec(name)]:
        pytest.skip(f"needs {', '.join(missing)}")


def run_example(example: str, *words: object, launcher: tuple[str, ...] = (), **environment: str) -> str:
    """Run an example on the processor, to its end; return what it printed."""
    command = [sys.executable, *launcher, str(EXAMPLES / f"{example}.py"), *map(str, words)]
    inherited = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    environment = {**inherited, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **environment}
    result = subprocess.run(command, capture_output=True, text=True, timeout=LONG_S, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def losses_of(said: str) -> list[float]:
    return [float(loss) for loss, _ in LOSS.findall(said)]


@pytest.mark.parametrize(
    ("example", "modules", "keras_backend"),
    [
        ("pytorch_train", "torch", ""),
        ("keras_train", "keras torch", "torch"),
        ("keras_train", "keras jax", "jax"),
        ("jax_train", "jax", ""),
        ("flax_train", "jax flax optax", ""),
        ("tensorflow_train", "tensorflow", ""),
        ("lightning_train", "torch lightning", ""),
        ("accelerate_train", "torch accelerate", ""),
        ("sklearn_partial_fit", "sklearn", ""),
        ("simclr_train", "torch", ""),
        ("detection_train", "torch", ""),
        ("packed_train", "torch", ""),
    ],
)
def test_example_learns(example, modules, keras_backend, tinted_photographs, tmp_path):
    needs(modules)
    source = [] if example in MAKE_THEIR_DATA else [tinted_photographs]
    # Without a backend in the environment or in the home directory, Keras takes TensorFlow, as for any user.
    chosen = {"KERAS_BACKEND": keras_backend} if keras_backend else {}
    said = run_example(example, *source, "--epochs", 4, KERAS_HOME=str(tmp_path), **chosen)
    losses = losses_of(said)
    assert len(losses) == 4
    assert losses[-1] < 0.85 * losses[0], losses


def test_pytorch_goes_on_from_its_checkpoint_and_balances_classes(tinted_photographs, tmp_path):
    needs("torch")
    whole = run_example("pytorch_train", tinted_photographs, "--epochs", 2, "--balanced", "--amp")
    saved = tmp_path / "checkpoint.pt"
    run_example("pytorch_train", tinted_photographs, "--epochs", 1, "--balanced", "--amp", "--checkpoint", saved)
    rest = run_example("pytorch_train", tinted_photographs, "--epochs", 2, "--balanced", "--amp", "--resume", saved)
    assert rest.splitlines()[-1] == whole.splitlines()[-1], "a training in two parts is the same training"
    assert len(losses_of(rest)) == 1


def test_pytorch_trains_on_two_processes(tinted_photographs):
    needs("torch")
    said = run_example("pytorch_train", tinted_photographs, "--epochs", 3, "--batch-size", 8, launcher=(*LAUNCHER, "2"))
    losses = losses_of(said)
    assert len(losses) == 3
    assert losses[-1] < losses[0], losses


def test_sweep_decodes_once_for_four_trainers(tinted_photographs):
    needs("torch")
    said = run_example("sweep", tinted_photographs, "--epochs", 2, "--batch-size", 4)
    assert len(losses_of(said)) == 8
    ((made, delivered),) = re.findall(r"^(\d+) batches were made, (\d+) were delivered so far$", said, re.MULTILINE)
    # 16 batches an epoch, and some ahead; the four alone would make 4 * 2 * 16.
    assert 2 * 16 <= int(made) < 4 * 2 * 16
    assert 2 * 16 < int(delivered) <= 4 * 2 * 16


@pytest.fixture
def kinds_of_data(tinted_photographs: Path, tmp_path: Path) -> dict[str, Path]:
    """The same photographs as lists with other labels, a folder a class, and tar shards.

    The lists name them relative to themselves, so that the same ones are for validation wherever the tests run.
    """
    photographs = tmp_path / "photographs"
    photographs.symlink_to(tinted_photographs.parent)
    rows = [line.rsplit(" ", 1) for line in tinted_photographs.read_text().splitlines()][:24]
    names = sorted({label for _, label in rows})
    numbered = tmp_path / "numbered.txt"
    numbered.write_text("".join(f"photographs/{path} {10 + 5 * names.index(label)}\n" for path, label in rows))
    table = tmp_path / "table.csv"
    table.write_text("path,label\n" + "".join(f"photographs/{path},{label}\n" for path, label in rows))
    folder = tmp_path / "folder"
    with tarfile.open(tmp_path / "shard-000.tar", "w") as shard:
        for number, (path, label) in enumerate(rows):
            place = folder / label / f"{number}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(photographs / path)
            shard.add((photographs / path).resolve(), f"{number}.jpg")
            (tmp_path / "label").write_text(str(names.index(label)))
            shard.add(tmp_path / "label", f"{number}.cls")
    return {"numbered list": numbered, "table": table, "folder": folder, "shards": tmp_path / "shard-000.tar"}


@pytest.mark.parametrize("kind", ["numbered list", "table", "folder", "shards"])
def test_examples_take_any_data_and_find_its_classes(kind, kinds_of_data):
    needs("sklearn")
    said = run_example("sklearn_partial_fit", kinds_of_data[kind], "--epochs", 1)
    assert len(losses_of(said)) == 1


def test_examples_take_a_bucket(kinds_of_data, tmp_path):
    needs("sklearn obstore")
    from tests.servers.web import WebServer

    stored = tmp_path / "stored" / "bucket" / "train"
    for link in kinds_of_data["folder"].rglob("*.jpg"):
        place = stored / link.relative_to(kinds_of_data["folder"])
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(link.read_bytes())
    with WebServer(tmp_path / "stored") as server:
        said = run_example("sklearn_partial_fit", "s3://bucket/train/", "--epochs", 1, **server.environment)
    assert len(losses_of(said)) == 1


def test_example_refuses_labels_that_are_no_classes(tinted_photographs, tmp_path):
    needs("sklearn")
    data = tmp_path / "values.txt"
    data.write_text(f"{next(tinted_photographs.parent.glob('*.jpg'))} 0.5\n")
    command = [sys.executable, str(EXAMPLES / "sklearn_partial_fit.py"), str(data)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert result.returncode == 1
    assert result.stderr.strip().endswith("a label is float32 of shape (), not one class a sample")


@pytest.mark.parametrize("n_processes", [2, 4])
def test_tensor_parallel_ranks_share_each_batch(n_processes, tinted_photographs, serve):
    """The example itself compares the batches' numbers within each group."""
    needs("torch")
    words = ("--batch-size", 16, "--image-size", 64, "--shuffle", "--dtype", "float32", "--scale", 1 / 255)
    serve(tinted_photographs, *words, "--num-workers", 1, "--consumers", n_processes, name="tensor")
    daemon = ("--daemon", "tensor", "--tensor-parallel", 2)
    losses = losses_of(run_example("tensor_parallel_train", *daemon, launcher=(*LAUNCHER, str(n_processes))))
    assert len(losses) == 4
    assert losses[-1] < 0.8 * losses[0], losses


def test_every_example_is_tested():
    tested = {mark.args[1][i][0] for mark in test_example_learns.pytestmark for i in range(len(mark.args[1]))}
    others = {"example_data", "tensor_parallel_train", "sweep"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} - others == tested
