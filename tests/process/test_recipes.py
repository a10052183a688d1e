"""The recipes of docs/augmentation.md run as they stand there, and MixUp and CutMix mix as they should."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prefetchd
from prefetchd.config.augment import canonical
from tests.images import write_jpeg
from tests.torchvision_v2 import transforms_v2

PAGE = (Path(__file__).parents[2] / "docs" / "augmentation.md").read_text()
RECIPES = PAGE.partition("\n## Recipes\n")[2].partition("\n## MixUp and CutMix\n")[0]
MIXING = PAGE.partition("\n## MixUp and CutMix\n")[2].partition("\n## ")[0]


def blocks(text: str) -> dict[str, str]:
    """Return the fenced Python blocks, each under the first word of the text before it."""
    found = re.findall(
        r"\n\n\**(\w+)\b[^\n]*\n(?:[^\n`]+\n|[^\n]*`[^`\n]+`[^\n]*\n)*\n```python\n(.*?)```", "\n\n" + text, re.S
    )
    # Small batches: a test has not the time of a training.
    return {name: code.replace("batch_size=64", "batch_size=8") for name, code in found}


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the `train.txt` of the examples: 18 samples."""
    for number in range(3):
        write_jpeg(tmp_path / f"{number}.jpg", (120, 160), seed=number)
    (tmp_path / "train.txt").write_text("".join(f"{n % 3}.jpg {n % 10}\n" for n in range(18)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_block_is_found():
    assert list(blocks(RECIPES)) == ["SimCLR", "DINO", "timm"]
    assert list(blocks(MIXING)) == ["With", "Plain", "JAX"]
    assert (RECIPES + MIXING).count("```python") == 6


@pytest.mark.parametrize(
    ("recipe", "shapes"),
    [
        ("SimCLR", {"x": (8, 2, 224, 224, 3)}),
        ("DINO", {"view0": (8, 1, 224, 224, 3), "view1": (8, 1, 224, 224, 3), "view2": (8, 8, 96, 96, 3)}),
        ("timm", {"x": (8, 224, 224, 3)}),
    ],
)
def test_recipe_gives_other_pixels_each_epoch_and_in_each_view(
    recipe: str, shapes: dict[str, tuple[int, ...]], trained: Path
):
    names: dict[str, Any] = {"prefetchd": prefetchd}
    exec(blocks(RECIPES)[recipe], names)
    with names["loader"] as loader:
        for field, shape in shapes.items():
            first, again, later = (getattr(loader.batch_at(epoch, 0), field) for epoch in (0, 0, 1))
            assert first.shape == shape
            assert first.dtype == ("uint8" if recipe == "SimCLR" else "float32")
            assert np.isfinite(first).all()
            assert np.array_equal(first, again)
            assert not np.array_equal(first, later)
            if len(shape) == 5 and shape[1] > 1:
                assert len({view.tobytes() for view in first[0]}) == shape[1]
            del first, again, later


def test_augmentations_in_the_text_are_ones():
    (reference,) = re.findall(r"training reference:\s`(\[.*?\])`", RECIPES)
    assert len(canonical(eval(reference, {"__builtins__": {}}))) == 4
    for name in re.findall(r"^\| `(\w+)`.* \| .* \|$", PAGE.partition("\n### Policies\n")[0], re.M):
        assert canonical(name)


def test_torchvisions_mixing_takes_the_batches(trained: Path):
    transforms_v2()
    names: dict[str, Any] = {}
    exec(blocks(MIXING)["With"], names)
    with names["loader"] as loader:
        for x, y in names["mixed"](loader):
            assert (y.shape[1], x.dtype, x.shape[1:]) == (1000, names["torch"].float32, (3, 224, 224))
            assert np.allclose(y.sum(dim=1), 1)
            break


def test_plain_torch_mixes_pixels_and_labels_by_the_same_share():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    names: dict[str, Any] = {}
    exec(blocks(MIXING)["Plain"], names)
    torch = names["torch"]
    torch.manual_seed(0)
    y = torch.tensor([0, 1, 2, 3])
    x = y.float()[:, None, None, None].expand(4, 3, 40, 50).clone()
    shares = []
    for _ in range(50):
        for function in (names["mixup"], names["cutmix"]):
            mixed, labels = function(x, y, 5)
            assert (mixed.shape, labels.shape) == (x.shape, (4, 5))
            assert torch.allclose(labels.sum(dim=1), torch.ones(4))
            # An image whose pixels are its class has a mean that is the mean of its classes.
            assert torch.allclose(mixed.mean(dim=(1, 2, 3)), labels @ torch.arange(5.0), atol=1e-4)
            assert not labels[:, 4].any()
            shares.append(float(labels[1, 1]))
        assert set(np.unique(mixed.numpy())) <= {0.0, 1.0, 2.0, 3.0}
    assert 0 <= min(shares) < 0.1
    assert 0.9 < max(shares) <= 1
    assert torch.equal(x[:, 0, 0, 0], y.float())


@pytest.mark.parametrize("library", ["numpy", "jax.numpy"])
def test_numpy_and_jax_mix_pixels_and_labels_by_the_same_share(library: str, trained: Path):
    if importlib.util.find_spec(library.partition(".")[0]) is None:
        pytest.skip(f"{library} is not installed")
    xp = importlib.import_module(library)
    names: dict[str, Any] = {}
    exec(blocks(MIXING)["JAX"], names)
    y = np.eye(5, dtype=np.float32)[:4]
    x = np.broadcast_to(np.arange(4, dtype=np.float32)[:, None, None, None], (4, 40, 50, 3))
    mixup, cutmix = names["mixup"], names["cutmix"]
    if library == "jax.numpy":
        import jax

        mixup, cutmix = (jax.jit(function, static_argnames="xp") for function in (mixup, cutmix))
    for share, at_y, at_x in ((0.3, 0.5, 0.5), (0.9, 0.1, 0.95), (0.0, 0.5, 0.5), (1.0, 0.5, 0.5)):
        for mixed, labels in (mixup(x, y, share, xp=xp), cutmix(x, y, share, at_y, at_x, xp=xp)):
            assert np.allclose(labels.sum(axis=1), 1)
            assert np.allclose(np.asarray(mixed).mean(axis=(1, 2, 3)), labels @ np.arange(5), atol=1e-4)
    assert np.allclose(labels, y)
    centred = cutmix(x, y, 0.75, 0.5, 0.5, xp=xp)[1]
    assert abs(float(centred[1, 1]) - 0.75) < 0.03
    with prefetchd.batches("train.txt", batch_size=8, image_size=16) as loader:
        drawn = [names["draws"](loader.batch_at(epoch, 1)) for epoch in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
