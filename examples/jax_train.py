"""JAX: train a small model on a manifest of images.

    python examples/jax_train.py [MANIFEST] [--epochs N]

A batch is a tree of two leaves, so `jax.device_put` takes it as it is. On the processor JAX's arrays may share the
slot's memory: the slot is held as long as they live, and nothing else writes to it. To an accelerator they are copied.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from example_data import arguments

import prefetchd

options = arguments(__doc__)


def loss_of(parameters, x, y):
    features = jnp.tanh(x.reshape(len(x), 8, 8, 8, 8, 3).mean((2, 4, 3, 1)) @ parameters["colour"])
    scores = jax.nn.log_softmax(features @ parameters["classes"])
    return -jnp.take_along_axis(scores, y[:, None], 1).mean()


@jax.jit
def step(parameters, x, y):
    x = x.astype(jnp.float32) / 128 - 1  # in the step: the ring holds uint8
    loss, gradients = jax.value_and_grad(loss_of)(parameters, x, y)
    return jax.tree.map(lambda value, gradient: value - 0.5 * gradient, parameters, gradients), loss


keys = jax.random.split(jax.random.key(0))
parameters = {"colour": jax.random.normal(keys[0], (3, 32)), "classes": 0.1 * jax.random.normal(keys[1], (32, 8))}
with prefetchd.batches(options.manifest, batch_size=16, image_size=64, shuffle=True, drop_last=True) as loader:
    for epoch in range(options.epochs):
        losses = []
        for batch in loader:
            x, y = jax.device_put(batch)
            parameters, loss = step(parameters, x, y)
            losses.append(loss)
        print(f"epoch {epoch}: loss {float(jnp.stack(losses).mean()):.4f}")
