"""A state saved with another batch size goes on at the same sample in every framework: none is lost or comes twice.

Each runs in an interpreter of its own: frameworks do not all go together in one.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.process.commands import finish, start_script

# 50 samples in batches of 4, of which 5 are seen. Batches of 8 then begin within a batch: its last 4 rows come first.
HEAD = """
import os, warnings
os.environ["KERAS_BACKEND"] = "BACKEND"
warnings.simplefilter("ignore")
import numpy as np, prefetchd
manifest, folder = MANIFEST, FOLDER
options = dict(image_size=16, shuffle=True, seed=3, num_workers=1, dtype="float32", memory_budget="192MiB")
with prefetchd.batches(manifest, batch_size=4, epochs=3, **options) as loader:
    loop = iter(loader)
    seen = [number for _ in range(5) for number in next(loop).y.tolist()]
    state = loader.state_dict()
    rest = [number for batch in loop for number in batch.y.tolist()]
wanted = rest[:30], rest[30:80], rest[80:]
"""


def run(folder: Path, manifest: Path, code: str, backend: str = "torch") -> None:
    """Run a script in which `state`, `options` and `wanted`, the labels of three epochs, are known."""
    head = HEAD.replace("MANIFEST", repr(str(manifest))).replace("FOLDER", repr(str(folder)))
    result = finish(start_script(folder / "script.py", head.replace("BACKEND", backend) + code), 110)
    assert result.returncode == 0, result.stdout + result.stderr


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [name for name in modules if not importlib.util.find_spec(name)]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(modules)}")


TORCH = """
import pickle, torch, prefetchd.torch
with prefetchd.torch.batches(manifest, batch_size=8, epochs=3, **options) as loader:
    loader.load_state_dict(state)
    peeked = loader.peek()
    iter(loader)  # as libraries do to see whether they can; it uses nothing up
    whole = loader.batch_at(0, 2)
    assert peeked.first_row == 4 and whole.first_row == 0 and peeked.index == whole.index == 2
    assert torch.equal(peeked.x, whole.x[4:]) and peeked.y.tolist() == whole.y[4:].tolist()
    loop = iter(loader)
    first = next(loop)
    assert first.first_row == 4 and first.x.shape == (4, 3, 16, 16)
    assert torch.equal(first.x, peeked.x) and first.sample_ids.tolist() == first.y.tolist() == wanted[0][:4]
    second = next(loop)
    assert second.first_row == 0 and len(second.y) == 8
    labels = [*first.y.tolist(), *second.y.tolist(), *(n for batch in loop for n in batch.y.tolist())]
assert labels == sum(wanted, [])
"""


@needs("torch")
def test_torch(photographs, tmp_path):
    run(tmp_path, photographs, TORCH)


JAX = """
import jax
with prefetchd.batches(manifest, batch_size=8, epochs=3, **options) as loader:
    loader.load_state_dict(state)
    labels = []
    for batch in loader:
        assert batch.first_row == (0 if labels else 4)
        x, y = jax.device_put(batch)
        assert len(x) == len(y) == len(batch.sample_ids)
        np.testing.assert_array_equal(np.asarray(x), batch.x)
        labels += y.tolist()
assert labels == sum(wanted, [])
"""


@needs("jax")
def test_jax(photographs, tmp_path):
    run(tmp_path, photographs, JAX)


TENSORFLOW = """
import prefetchd.tensorflow
with prefetchd.batches(manifest, batch_size=8, on_hold="copy", **options) as loader:
    early = prefetchd.tensorflow.dataset(loader)
    assert early.cardinality().numpy() == 7
    loader.load_state_dict(state)
    try:
        list(early)
    except Exception as error:
        assert "call load_state_dict() first" in str(error), error
    else:
        raise AssertionError
    data = prefetchd.tensorflow.dataset(loader)
    for epoch in range(3):  # the rest of one, then whole ones
        assert [number for x, y in data for number in y.numpy().tolist()] == wanted[epoch]
    assert prefetchd.tensorflow.dataset(loader).cardinality().numpy() == 7
"""


@needs("tensorflow")
def test_tensorflow(photographs, tmp_path):
    run(tmp_path, photographs, TENSORFLOW)


KERAS = """
import keras, prefetchd.keras

class Recorded(prefetchd.keras.Dataset):
    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        assert len(x) == len(y)
        passes[-1].extend(y.tolist())
        return x, y

    def on_epoch_begin(self):
        super().on_epoch_begin()
        passes.append([])

def made():
    model = keras.Sequential([keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(50)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model

passes, model = [[]], made()
loader = prefetchd.batches(manifest, batch_size=8, on_hold="copy", **options)
train = Recorded(loader)
loader.load_state_dict(state)
model.fit(train, epochs=2, verbose=0)
looked, *fitted = [each for each in passes if each]
whole = sum(wanted, [])
assert looked and looked == whole[: len(looked)], "the batches that the model is built with come again"
labels = sum(fitted, [])
assert labels == whole[:len(labels)] and len(fitted) == 2
n_batches = loader.state_dict()["next_batch"]
assert (loader.state_dict()["epoch"], n_batches) == (2, 0) or n_batches * 8 + 30 + 50 * (
    loader.state_dict()["epoch"] - 1) == len(labels), (loader.state_dict(), len(labels))
passes[:] = [[]]
model.fit(train, epochs=1, verbose=0)
labels += sum(passes[1:], [])
assert labels[:len(whole)] == whole
loader.set_epoch(1)
passes[:] = [[]]
made().fit(train, epochs=1, verbose=0)
looked, fitted = [each for each in passes if each]
assert looked == wanted[1][: len(looked)] and fitted == wanted[1], "the epoch that was chosen"
train.close()
"""


@needs("keras", "torch")
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_keras(photographs, tmp_path, backend):
    if not importlib.util.find_spec(backend):
        pytest.skip(f"needs {backend}")
    run(tmp_path, photographs, KERAS, backend)


SHORT_EPOCHS = """
import keras, prefetchd.keras

def made():
    model = keras.Sequential([keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(50)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model

class Recorded(prefetchd.keras.Dataset):
    def __getitem__(self, index):
        batch = super().__getitem__(index)
        at = self.loader.position
        taken.append((at.epoch, at.batch))
        return batch

    def on_epoch_end(self):  # of a subclass, as people write them
        super().on_epoch_end()

for batch_size, n_batches in ((50, 1), (25, 2)):
    with prefetchd.batches(manifest, batch_size=batch_size, on_hold="copy", **options) as loader:
        train, model = prefetchd.keras.Dataset(loader), made()
        for initial_epoch, epochs in ((0, 1), (1, 4)):
            model.fit(train, initial_epoch=initial_epoch, epochs=epochs, verbose=0)
            assert loader.state_dict()["epoch"] == epochs, (batch_size, loader.state_dict())
        for n_epochs in (5, 6):  # by hand
            for index in range(n_batches):
                train[index]
            train.on_epoch_end()
            assert loader.state_dict()["epoch"] == n_epochs, (batch_size, loader.state_dict())

taken = []
with prefetchd.batches(manifest, batch_size=8, on_hold="copy", **options) as loader:
    made().fit(Recorded(loader), epochs=4, steps_per_epoch=1, verbose=0)
looked, *fitted = [at for at in taken if at[1] == 1]
assert looked == (0, 1) and len(set(fitted)) == len(fitted), taken
"""


@needs("keras", "torch")
@pytest.mark.parametrize("backend", ["torch", "jax", "tensorflow"])
def test_keras_loses_and_repeats_no_short_epoch(photographs, tmp_path, backend):
    if not importlib.util.find_spec(backend):
        pytest.skip(f"needs {backend}")
    run(tmp_path, photographs, SHORT_EPOCHS, backend)


ACCELERATE = """
import accelerate, torch, prefetchd.torch
accelerator = accelerate.Accelerator(cpu=True)

def loader_of(batch_size):
    return prefetchd.torch.batches(manifest, batch_size=batch_size, epochs=3, device=accelerator.device, **options)

with loader_of(4) as loader:
    accelerator.register_for_checkpointing(loader)
    loop = iter(accelerator.prepare(loader))
    assert [number for _ in range(5) for number in next(loop).y.tolist()] == seen
    accelerator.save_state(folder + "/state")
accelerator._custom_objects.clear()
with loader_of(8) as loader:
    accelerator.register_for_checkpointing(loader)
    accelerator.load_state(folder + "/state")
    labels = []
    for batch in accelerator.prepare(loader):
        moved = accelerate.utils.send_to_device(batch, "cpu")
        assert torch.equal(moved.x, batch.x) and len(batch.x) == len(batch.sample_ids)
        labels += moved.y.tolist()
assert labels == sum(wanted, [])
"""


@needs("torch", "accelerate")
def test_accelerate(photographs, tmp_path):
    run(tmp_path, photographs, ACCELERATE)


LIGHTNING = """
import logging
import lightning.pytorch as lightning, torch, prefetchd.torch
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 50)
        self.seen = []

    def training_step(self, batch, number):
        assert len(batch.x) == len(batch.y)
        self.seen.append(batch.y.tolist())
        return torch.nn.functional.cross_entropy(self.layer(batch.x.mean((2, 3))), batch.y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def on_load_checkpoint(self, checkpoint):  # as docs/frameworks.md has it
        loop = checkpoint["loops"]["fit_loop"]
        (at,) = loop["state_dict"]["combined_loader"]
        n_seen = (at["next_batch"] * at["batch_size"] + at["next_row"]) // SIZE
        current = loop["epoch_loop.batch_progress"]["current"]
        current.update({name: count + n_seen - current["ready"] for name, count in current.items()})

def fit(batch_size, checkpoint=None):
    saved = lightning.callbacks.ModelCheckpoint(folder, "step-{step}", every_n_train_steps=5, save_top_k=-1)
    with prefetchd.torch.batches(manifest, batch_size=batch_size, **options) as loader:
        model = Model()
        trainer = lightning.Trainer(
            max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[saved],
            enable_model_summary=False, default_root_dir=folder,
        )
        trainer.fit(model, loader, ckpt_path=checkpoint)
    return model.seen

assert sum(fit(4), []) == seen + rest
again = fit(SIZE, folder + "/step-step=5.ckpt")
assert sum(again, []) == rest, [len(each) for each in again]
"""


@needs("torch", "lightning")
@pytest.mark.parametrize("size", [8, 3])
def test_lightning(photographs, tmp_path, size):
    run(tmp_path, photographs, LIGHTNING.replace("SIZE", str(size)))
