"""The examples run, on photographs made in code, and their losses fall. Each where its framework is installed."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
MAKE_THEIR_DATA = ("detection_train", "packed_train")


@pytest.fixture(scope="module")
def tinted_photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.spec_from_file_location("photographs", EXAMPLES.parent / "scripts/photographs.py")
    assert spec is not None
    assert spec.loader is not None
    photographs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(photographs)
    return photographs.make_photographs(tmp_path_factory.mktemp("tinted"), 96)


@pytest.mark.parametrize(
    ("example", "needs", "keras_backend"),
    [
        ("pytorch_train", "torch", None),
        ("keras_train", "keras torch", "torch"),
        ("keras_train", "keras jax", "jax"),
        ("jax_train", "jax", None),
        ("tensorflow_train", "tensorflow", None),
        ("sklearn_partial_fit", "sklearn", None),
        ("detection_train", "torch", None),
        ("packed_train", "torch", None),
    ],
)
def test_example_learns(example, needs, keras_backend, tinted_photographs, tmp_path):
    if missing := [name for name in needs.split() if not importlib.util.find_spec(name)]:
        pytest.skip(f"needs {', '.join(missing)}")
    # Without a backend in the environment or in the home directory, Keras takes TensorFlow, as for any user.
    environment = {**os.environ, "KERAS_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("KERAS_BACKEND", None)
    if keras_backend is not None:
        environment["KERAS_BACKEND"] = keras_backend
    source = [] if example in MAKE_THEIR_DATA else [str(tinted_photographs)]
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{example}.py"), *source, "--epochs", "4"],
        capture_output=True,
        text=True,
        timeout=110,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    losses = [float(loss) for loss in re.findall(r"^epoch \d+: loss ([\d.]+)$", result.stdout, re.MULTILINE)]
    assert len(losses) == 4
    assert losses[-1] < 0.7 * losses[0], losses


@pytest.mark.parametrize("n_processes", [2, 4])
def test_tensor_parallel_ranks_share_each_batch(n_processes, tinted_photographs, serve):
    """The example itself compares the batches' numbers within each group."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("needs torch")
    words = ("--batch-size", 16, "--image-size", 64, "--shuffle", "--dtype", "float32", "--scale", 1 / 255)
    serve(tinted_photographs, *words, "--num-workers", 1, "--consumers", n_processes, name="tensor")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_processes)]
    result = subprocess.run(
        [*launcher, str(EXAMPLES / "tensor_parallel_train.py"), "--daemon", "tensor", "--tensor-parallel", "2"],
        capture_output=True,
        text=True,
        timeout=110,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    losses = [float(loss) for loss in re.findall(r"^epoch \d+: loss ([\d.]+)$", result.stdout, re.MULTILINE)]
    assert len(losses) == 4
    assert losses[-1] < 0.8 * losses[0], losses


def test_every_example_is_tested():
    tested = {mark.args[1][i][0] for mark in test_example_learns.pytestmark for i in range(len(mark.args[1]))}
    assert {path.stem for path in EXAMPLES.glob("*.py")} - {"example_data", "tensor_parallel_train"} == tested
