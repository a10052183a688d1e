"""Batches of several shapes in the adapters: tensors of each batch's own shape, and signatures that leave it open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prefetchd
from tests.process.test_buckets import QUICK, SIZES, aspects, size_of  # noqa: F401

SHAPES = {size_of(size) for size in SIZES}


def options_of(source: Path, **more: Any) -> dict[str, Any]:
    return {"source": source, **QUICK, "image_size": SIZES, "shuffle": True, **more}


def test_torch_tensors_have_the_shape_of_their_batch(aspects):  # noqa: F811
    torch = pytest.importorskip("torch")
    import prefetchd.torch

    options = options_of(aspects)
    with prefetchd.batches(**options) as arrays, prefetchd.torch.batches(**options) as loader:
        seen = set()
        for ours, theirs in zip(loader, arrays, strict=True):
            assert np.array_equal(ours.x.permute(0, 2, 3, 1).numpy(), theirs.x)
            assert ours.x.is_contiguous(memory_format=torch.channels_last)
            assert np.array_equal(ours.sample_ids, theirs.sample_ids)
            single = loader.batch_at(ours.epoch, ours.index)
            assert torch.equal(single.x, ours.x)
            seen.add(tuple(ours.x.shape[2:]))
        assert seen == SHAPES
        assert len(loader.layouts) == len(SIZES)


@pytest.mark.parametrize("locks", [True, False])
def test_copies_to_a_device_are_whole(aspects, locks):  # noqa: F811
    torch = pytest.importorskip("torch")
    from tests.process.test_torch import ModelDevice, on_model

    device, options = ModelDevice(locks=locks), options_of(aspects, memory_budget="120MiB", num_workers=1)
    with prefetchd.batches(**options) as arrays, on_model(device, **options) as loader:
        for _ in range(2):
            for ours, theirs in zip(loader, arrays, strict=True):
                assert torch.equal(ours.x, torch.from_numpy(theirs.x.copy()))
                assert ours.y.tolist() == theirs.y.tolist()
    assert not device.locked


def test_tensorflow_leaves_height_and_width_open(aspects):  # noqa: F811
    pytest.importorskip("tensorflow")
    import prefetchd.tensorflow

    with prefetchd.batches(**options_of(aspects, on_hold="copy")) as loader:
        x, y = prefetchd.tensorflow.signature(loader)
        assert (x.shape.as_list(), y.shape.as_list()) == ([None, None, None, 3], [None])
        shapes = {tuple(x.shape[1:3]) for x, _ in prefetchd.tensorflow.dataset(loader)}
        assert shapes == SHAPES


def test_keras_fits_a_model_that_takes_any_size(aspects):  # noqa: F811
    keras = pytest.importorskip("keras")
    import prefetchd.keras

    if keras.backend.backend() == "tensorflow":
        pytest.skip("Keras on TensorFlow gives all batches the shape of the first ones")
    data = prefetchd.keras.dataset(**options_of(aspects, dtype="float32", scale=1 / 255))
    model = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Conv2D(4, 3),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10),
        ]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(data, epochs=2, verbose=0)
    assert len(history.history["loss"]) == 2
    assert np.isfinite(history.history["loss"]).all()
    data.close()


def test_jax_takes_each_shape(aspects):  # noqa: F811
    jax = pytest.importorskip("jax")

    @jax.jit
    def mean(x: Any) -> Any:
        return x.astype("float32").mean()

    with prefetchd.batches(**options_of(aspects, drop_last=True)) as loader:
        for batch in loader:
            x, _ = jax.device_put(batch)
            assert float(mean(x)) == pytest.approx(batch.x.mean(), rel=1e-4)


def test_a_group_and_a_pickled_batch(aspects):  # noqa: F811
    import pickle

    with prefetchd.batches(**options_of(aspects), name="one") as loader:
        for batch in loader:
            again = pickle.loads(pickle.dumps(batch))
            assert again.x.shape == batch.x.shape
            assert again.x.tobytes() == batch.x.tobytes()
            assert batch.copy().x.tobytes() == again.x.tobytes()
    options = options_of(aspects, share=True, group="g")
    with prefetchd.batches(**options) as loader:
        assert sorted(i for batch in loader for i in batch.sample_ids.tolist()) == list(range(40))
