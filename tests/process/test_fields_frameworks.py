"""Fields in PyTorch, JAX, Keras and TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefetchd import Field
from tests.field_data import QUICK, SIZE, field_data  # noqa: F401
from tests.process.commands import run_script

ADAPTED: dict[str, Any] = {
    "image": Field("image", "path"),
    "mask": Field("mask"),
    "label": Field("label"),
    "caption": Field("text"),
}


def test_tensors_come_by_name_and_images_with_their_channels_second(data: Path) -> None:
    pytest.importorskip("torch")
    import prefetchd.torch

    with (
        prefetchd.batches(data / "train.csv", fields=ADAPTED, image_size=SIZE, **QUICK) as arrays,
        prefetchd.torch.batches(str(data / "train.csv"), fields=ADAPTED, image_size=SIZE, **QUICK) as loader,
    ):
        for batch, tensors in zip(arrays, loader, strict=True):
            assert tensors.keys() == batch.keys()
            np.testing.assert_array_equal(tensors["image"].permute(0, 2, 3, 1).numpy(), batch.image)
            np.testing.assert_array_equal(tensors.mask.numpy(), batch.mask)
            assert tensors["caption"]["length"].tolist() == batch.caption.length.tolist()
            assert tensors.strings("caption") == batch.strings("caption")
            assert (tensors.index, tensors.sample_ids.tolist()) == (batch.index, batch.sample_ids.tolist())
    with pytest.raises(prefetchd.ConfigError, match="cannot normalize fields on the device"):
        prefetchd.torch.batches(str(data / "train.csv"), fields=ADAPTED, normalize="device", scale=0.5, **QUICK)


FRAMEWORKS = """
import os, sys
os.environ["KERAS_BACKEND"] = "jax"
import numpy as np, prefetchd
from prefetchd import Field

fields = {"image": Field("image", "path"), "label": Field("label"), "caption": Field("text")}
options = {"fields": fields, "image_size": 16, "batch_size": 5, "num_workers": 1, "memory_budget": "256MiB"}
import jax
with prefetchd.batches("train.csv", **options) as loader:
    batch = next(iter(loader))
    moved = jax.device_put(batch)
    assert moved._fields == batch._fields and len(jax.tree.leaves(moved)) == 4
    np.testing.assert_array_equal(np.asarray(moved["image"]), batch.image)
    doubled = jax.tree.map(lambda array: array * 2, batch)
    assert (doubled.caption.length == 2 * batch.caption.length).all()
    del batch, moved, doubled

import prefetchd.keras, keras
assert keras.tree.flatten({"a": 1}) == [1]
train = prefetchd.keras.dataset("train.csv", x=["image"], y="label", **options)
image = keras.Input((16, 16, 3), name="image")
model = keras.Model({"image": image}, keras.layers.Dense(2)(keras.layers.Flatten()(image)))
model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
model.fit(train, epochs=1, verbose=0)
train.close()
try:
    prefetchd.keras.dataset("train.csv", y="label", **options)
except prefetchd.ConfigError as error:
    assert "cannot give Keras 'x' as x: there are the fields image, label, caption" in str(error), error
else:
    raise AssertionError("not refused")

import prefetchd.tensorflow
with prefetchd.batches("train.csv", on_hold="copy", **options) as loader:
    elements = list(prefetchd.tensorflow.dataset(loader))
    assert len(elements) == 4
    assert elements[0]["image"].shape == (5, 16, 16, 3) and elements[0]["caption"]["length"].shape == (5,)
    of_own = prefetchd.tensorflow.tf.data.Dataset.from_generator(
        lambda: ({**dict(batch), "caption": dict(batch.caption)} for batch in loader),
        output_signature=prefetchd.tensorflow.signature(loader),
    )
    assert [len(element["caption"]["length"]) for element in of_own] == [len(each["image"]) for each in elements]
print("ok")
"""


def test_frameworks_take_the_mapping(data: Path, tmp_path: Path) -> None:
    for name in ("jax", "keras", "tensorflow"):
        pytest.importorskip(name, exc_type=ImportError)
    result = run_script(tmp_path / "frameworks.py", FRAMEWORKS.replace('"train.csv"', repr(str(data / "train.csv"))))
    assert result.stdout.endswith("ok\n"), result.stderr
