"""JAX: train and validate a small convolutional network on images.

    python examples/jax_train.py DATA --epochs 10

A batch is a tree of two leaves, so `jax.device_put` takes it as it is. On the processor JAX's arrays may share the
slot's memory: the slot is held as long as they live, and nothing else writes to it. To an accelerator they are copied.
examples/flax_train.py is the same with Flax.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from example_data import arguments

import prefetchd

options = arguments(__doc__)


def scores_of(parameters, x):
    x = x.astype(jnp.float32) / 128 - 1  # in the step: the ring holds uint8
    axes = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, parameters["filters"], (4, 4), "VALID", dimension_numbers=axes)
    return jax.nn.relu(x).mean((1, 2)) @ parameters["classes"]


def loss_of(parameters, x, y):
    return -jnp.take_along_axis(jax.nn.log_softmax(scores_of(parameters, x)), y[:, None], 1).mean()


@jax.jit
def step(parameters, momentum, x, y):
    loss, gradients = jax.value_and_grad(loss_of)(parameters, x, y)
    momentum = jax.tree.map(lambda old, gradient: 0.9 * old + gradient, momentum, gradients)
    return jax.tree.map(lambda value, moved: value - 0.05 * moved, parameters, momentum), momentum, loss


@jax.jit
def count_hits(parameters, x, y):
    return (scores_of(parameters, x).argmax(1) == y).sum()


keys = jax.random.split(jax.random.key(0))
parameters = {
    "filters": 0.1 * jax.random.normal(keys[0], (5, 5, 3, 32)),
    "classes": 0.1 * jax.random.normal(keys[1], (32, options.classes)),
}
momentum = jax.tree.map(jnp.zeros_like, parameters)
images = {"batch_size": options.batch_size, "image_size": options.image_size}
with (
    # drop_last: a shorter last batch would be another shape, and compile the step once more.
    prefetchd.batches(options.data, split="0-90%", shuffle=True, augment="hflip", drop_last=True, **images) as train,
    prefetchd.batches(options.data, split="90-100%", **images) as validation,
):
    for epoch in range(options.epochs):
        losses = []
        for batch in train:
            parameters, momentum, loss = step(parameters, momentum, *jax.device_put(batch))
            losses.append(loss)
        hits = sum(int(count_hits(parameters, *jax.device_put(batch))) for batch in validation)
        loss = float(jnp.stack(losses).mean())
        print(f"epoch {epoch}: loss {loss:.4f}, accuracy {hits / validation.n_samples:.3f}")
