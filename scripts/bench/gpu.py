"""On a GPU: the tests of `tests/gpu`, and prefetchd beside PyTorch's pinned DataLoader and DALI, with a training step.

    python scripts/bench/gpu.py MANIFEST --repeat 4

Every loader delivers shuffled batches of RGB images of 224x224 as float16 tensors of the device, normalised there. The
step is a product of matrices that takes a set time (`--step-ms`, or 1.25 times what prefetchd needs for a batch, so
that no reader is what is waited for), and a sum over the batch. At most two steps are queued, as in a loop that looks
at its loss. The loaders take turns; the figures are medians over the rounds.

  images/s      without a step: each batch is summed and dropped
  steps/s       with the step
  of no loading steps/s over those of the same step on one batch that stays on the device: the goal is 0.97

It ends with status 1 where there is no GPU, where a test fails, or where prefetchd misses the goal. The table is
Markdown, for `docs/performance.md`. `--device cpu` tries the script on the processor: no test runs, and no figure of
it says anything of a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import manifest_or_photographs, setting
from peers import write_manifest

ROOT = Path(__file__).resolve().parents[2]
GOAL = 0.97
STEP_OVER_LOADING = 1.25

Rounds = dict[str, dict[str, list[float]]]


def run_tests() -> str:
    """Run the tests on the device; return what pytest counted.

    Raises:
        SystemExit: if one of them fails, or none ran.
    """
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", str(ROOT / "tests" / "gpu")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    counted = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr.strip()
    if done.returncode or " passed" not in counted:
        print(done.stdout)
        raise SystemExit(f"cannot measure: the tests on the device end with {counted}; see above")
    return counted.strip("= ")


def markdown(found: Rounds, alone: str) -> list[str]:
    """Return the table: a row a loader, the step without loading first."""
    lines = ["| loader | images/s | steps/s | of no loading |", "|---|---|---|---|"]
    for name, figures in found.items():
        rate = f"{statistics.median(figures['images_per_s']):,.0f}" if figures["images_per_s"] else ""
        shares = [ours / base for ours, base in zip(figures["steps_per_s"], found[alone]["steps_per_s"], strict=True)]
        steps = statistics.median(figures["steps_per_s"])
        lines.append(f"| {name} | {rate} | {steps:.1f} | {statistics.median(shares):.3f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", nargs="?", type=Path, help="text manifest, `path label` a line (made if not given)")
    parser.add_argument("--repeat", type=int, default=1, help="take the manifest so many times over (1)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each loader has its turn (3)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each of the two measurements in a turn (5)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0, help="processes or threads of each loader (one a core)")
    parser.add_argument("--step-ms", type=float, default=0.0, help="what a step takes (1.25 times loading a batch)")
    parser.add_argument("--matrix", type=int, default=4096, help="rows of the step's matrices (4096)")
    parser.add_argument("--no-tests", action="store_true", help="measure only")
    parser.add_argument("--device", default="cuda", help="cpu tries the script (cuda)")
    options = parser.parse_args()

    try:
        import torch
    except ImportError as error:
        raise SystemExit(f"cannot measure on a GPU: PyTorch cannot be imported ({error}); pip install torch") from None
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            f"cannot measure on a GPU: PyTorch {torch.__version__} finds no CUDA device here; run this on a machine "
            "that has one, or try the script with --device cpu"
        )
    from gpu_loaders import ALONE, OURS, Job, Step, contenders, measure_rate, measure_steps

    print(setting("prefetchd", "torch", "nvidia-dali-cuda120", "opencv-python-headless"), flush=True)
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        print(f"{facts.name}, {facts.total_memory >> 30} GiB, CUDA {torch.version.cuda}")
        if not options.no_tests:
            print(f"tests on the device: {run_tests()}", flush=True)
    else:
        print("on the processor: these are no figures of a GPU, and no test of one has run")

    with (
        manifest_or_photographs(options.manifest) as given,
        tempfile.TemporaryDirectory(prefix="prefetchd-bench-") as folder,
    ):
        manifest = write_manifest(given, Path(folder), options.repeat)
        job = Job.of(manifest, options.batch_size, options.workers, device)
        makers = contenders(job)
        found: Rounds = {name: {"images_per_s": [], "steps_per_s": []} for name in (ALONE, *makers)}
        step: Step | None = None
        for _ in range(options.rounds):
            for name, make in makers.items():
                found[name]["images_per_s"].append(measure_rate(make, job, options.seconds))
            if step is None:
                loading_ms = 1e3 * options.batch_size / found[OURS]["images_per_s"][0]
                step = Step(device, options.step_ms or STEP_OVER_LOADING * loading_ms, options.matrix)
                print(
                    f"the step takes {step.takes_s * 1e3:.2f} ms; loading a batch took {loading_ms:.2f} ms", flush=True
                )
            for name, make in {ALONE: job.one_batch_for_ever, **makers}.items():
                found[name]["steps_per_s"].append(measure_steps(make, step, options.seconds))
    print("\n" + "\n".join(markdown(found, ALONE)))
    pairs = zip(found[OURS]["steps_per_s"], found[ALONE]["steps_per_s"], strict=True)
    share = statistics.median(ours / base for ours, base in pairs)
    if device.type == "cuda" and share < GOAL:
        raise SystemExit(
            f"prefetchd misses the goal: {share:.3f} of the step rate without loading, where {GOAL} is meant"
        )


if __name__ == "__main__":
    main()
