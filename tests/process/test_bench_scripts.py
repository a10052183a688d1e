"""Every script of `scripts/bench` starts, and measures something tiny to its end. What it measures is not looked at."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.conftest import write_manifest

BENCH = Path(__file__).parents[2] / "scripts" / "bench"
N_IMAGES = 64

# The arguments with which each script takes a moment, and what it then says in the end. MANIFEST and TABS are data.
SCRIPTS = {
    "arrays": ("--rows 2000 --batches 20 --warm-up 2 --rounds 1", "CPU us a batch"),
    "augment": ("MANIFEST 1", "color_jitter, affine"),
    "bad_samples": ("MANIFEST --samples 16 --rounds 1", "ratio"),
    "budget": ("--only '2 readers' --seconds 0.2", "2 readers"),
    "cache": ("MANIFEST --images 64 --image-size 32 --batch-size 8 --batches 16 --rounds 1", "bare copy"),
    "cache_formats": ("MANIFEST --images 8 --rounds 1 --sizes 32", "jpeg 32"),
    "chaos": ("--cells --only daemon-SIGKILL-ready", "1 of 116 cells, 0 promises broken"),
    "detection": ("MANIFEST --rounds 1 --epochs 1", "prefetchd"),
    "decode": ("MANIFEST --images 8 --rounds 1", "cv2, full size"),
    "footprint": ("MANIFEST --seconds 0.2", "ALLOWANCE_BYTES"),
    "gpu": (
        "MANIFEST --device cpu --rounds 1 --seconds 0.2 --batch-size 16 --workers 1 --step-ms 2 --matrix 64",
        "| PyTorch DataLoader, pinned |",
    ),
    "handoff": ("MANIFEST --batches 2 --warm-up 1 --pause 2", "arrays, tight loop"),
    "in_memory": ("MANIFEST --rows 200 --rounds 1 --only 'list of pairs,numpy columns'", "numpy columns"),
    "latency": ("MANIFEST --delay-ms 1 --repeat 11 --rounds 1", "1 ms more"),
    "limit": ("MANIFEST --repeat 1 --rounds 1 --full-size", "CPU ms/image"),
    "manifest": ("MANIFEST --sizes 100 --rounds 1 --only prefetchd", "footprint MiB"),
    "measure_loader": ("generator TABS --folder . --epochs 1 --ready 1 --batch-size 16", "images_per_s"),
    "order": ("MANIFEST --samples 20000 --lines 20000 --seconds 0.05 --rounds 1", "blocks of 1024"),
    "measure_remote": ("ours_agents TABS --folder . --epochs 1 --batch-size 16", "images_per_s"),
    "measure_stores": ("ours MANIFEST --batch-size 16 --warm 1", "images_per_s"),
    "peers": ("MANIFEST --rounds 1 --epochs 1 --ready 1 --batch-size 16 --only ours,generator", "hand-written"),
    "ready": ("MANIFEST --consumers 2 --paces 0,1 --batches 3 --warm-up 1 --batch-size 16", "wait p99"),
    "remote": ("MANIFEST --fake 1 --agents '' --line '' --rows 600 --beside ours_agents --rounds 1", "by agents"),
    "scale": ("MANIFEST --readers 2,3 --consumers 1,2 --datasets 1,2 --seconds 0.2 --budget 1GiB", "data sets"),
    "sharing": ("MANIFEST --trainers 2 --rounds 1 --seconds 0.3 --no-torch", "2 x prefetchd"),
    "startup": ("MANIFEST --rounds 1", "first batch"),
    "stores": ("MANIFEST --repeat 1 --rounds 1 --delays-ms 1 --batch-size 16 --warm 1 --only local", "of local"),
    "throughput": ("MANIFEST --rounds 1 --epochs 1 --ready 1 --batch-size 16", "prefetchd, exact"),
    "views": ("MANIFEST 1", "decoded twice"),
}
# These end with status 1 where a promise of memory does not hold, which a moment is too short to tell.
JUDGES = ("budget", "footprint")
MORE = {
    "sharing": ("--handoff 1,2 --seconds 0.3", "daemon's CPU"),
    "startup": ("--steps --rounds 1", "fork server"),
}


def runs_alone(path: Path) -> bool:
    return '__name__ == "__main__"' in path.read_text()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with MANIFEST, and TABS with absolute paths."""
    folder = tmp_path_factory.mktemp("bench")
    manifest = write_manifest(folder, N_IMAGES)
    lines = [line.rpartition(" ") for line in manifest.read_text().splitlines()]
    (folder / "tabs.tsv").write_text("".join(f"{folder / path}\t{label}\n" for path, _, label in lines))
    return folder


def run(script: str, arguments: str, data: Path, folder: Path) -> str:
    """Run a script in an empty folder; return what it printed."""
    places = {"MANIFEST": str(data / "manifest.txt"), "TABS": str(data / "tabs.tsv")}
    words = [places.get(word, word) for word in shlex.split(arguments)]
    command = [sys.executable, str(BENCH / f"{script}.py"), *words]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=folder, env=environment)
    assert result.returncode in ((0, 1) if script in JUDGES else (0,)), result.stdout + result.stderr
    assert "Traceback" not in result.stderr, result.stderr
    return result.stdout


@pytest.mark.parametrize("script", sorted(path.stem for path in BENCH.glob("*.py") if runs_alone(path)))
def test_script_measures_something_tiny(script: str, data: Path, tmp_path: Path) -> None:
    assert script in SCRIPTS, f"{script}.py is new: give its arguments for a run of a moment here"
    if script == "gpu":
        pytest.importorskip("torch", exc_type=ImportError)
    arguments, says = SCRIPTS[script]
    assert says in run(script, arguments, data, tmp_path)


@pytest.mark.parametrize("script", MORE)
def test_other_mode_of_a_script(script: str, data: Path, tmp_path: Path) -> None:
    arguments, says = MORE[script]
    assert says in run(script, arguments, data, tmp_path)


def test_bench_of_a_gpu_says_in_one_line_that_there_is_none(data: Path, tmp_path: Path) -> None:
    """`CUDA_VISIBLE_DEVICES` hides what there may be, as for all scripts here."""
    words = [sys.executable, str(BENCH / "gpu.py"), str(data / "manifest.txt")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(words, capture_output=True, text=True, timeout=100, cwd=tmp_path, env=environment)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("cannot measure on a GPU: ")


def test_no_arguments_are_for_a_script_that_is_gone() -> None:
    assert {*SCRIPTS, *MORE} <= {path.stem for path in BENCH.glob("*.py") if runs_alone(path)}


def packages_of(loader: Path) -> tuple[str, ...]:
    """The `PACKAGES` of a loader's module, without importing what it measures."""
    for node in ast.parse(loader.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "PACKAGES":
            return tuple(ast.literal_eval(node.value))
    pytest.fail(f"{loader} has no PACKAGES")


def test_epochs_of_one_batch_are_refused_as_no_batch_of_theirs_is_ever_ready(data: Path, tmp_path: Path) -> None:
    words = ["generator", str(data / "tabs.tsv"), "--folder", ".", "--batch-size", str(N_IMAGES)]
    command = [sys.executable, str(BENCH / "measure_loader.py"), *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=tmp_path, check=False)
    assert result.returncode == 1
    assert f"batches of {N_IMAGES} make one batch of {N_IMAGES} images; give a smaller --batch-size" in result.stderr


@pytest.mark.parametrize("loader", sorted(path.stem for path in (BENCH / "loaders").glob("[!_]*.py")))
def test_loader_of_the_comparison_gives_what_all_give(loader: str, data: Path, tmp_path: Path) -> None:
    """Two workers, 224 x 224 RGB: `measure_loader` raises if a loader's epoch is of another size or shape."""
    for package in packages_of(BENCH / "loaders" / f"{loader}.py"):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"needs {package}")
    said = run("measure_loader", f"{loader} TABS --folder . --epochs 1 --ready 1 --batch-size 16", data, tmp_path)
    measured = json.loads(said.splitlines()[-1])
    assert not measured["problem"]
    assert measured["images_per_s"] > 0
