"""Flax (NNX) and Optax: train and validate a small convolutional network on images.

    python examples/flax_train.py DATA --epochs 10

examples/jax_train.py is the same with JAX alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from example_data import arguments
from flax import nnx

import prefetchd

options = arguments(__doc__)


class Network(nnx.Module):
    def __init__(self, n_classes: int, rngs: nnx.Rngs) -> None:
        self.filters = nnx.Conv(3, 32, (5, 5), strides=4, rngs=rngs)
        self.classes = nnx.Linear(32, n_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32) / 128 - 1  # in the step: the ring holds uint8
        return self.classes(nnx.relu(self.filters(x)).mean((1, 2)))


def loss_of(network: Network, x: jax.Array, y: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(network(x), y).mean()


@nnx.jit
def step(network: Network, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> jax.Array:
    loss, gradients = nnx.value_and_grad(loss_of)(network, x, y)
    optimizer.update(network, gradients)
    return loss


@nnx.jit
def count_hits(network: Network, x: jax.Array, y: jax.Array) -> jax.Array:
    return (network(x).argmax(1) == y).sum()


network = Network(options.classes, nnx.Rngs(0))
optimizer = nnx.Optimizer(network, optax.adam(0.01), wrt=nnx.Param)
images = {"batch_size": options.batch_size, "image_size": options.image_size}
with (
    # drop_last: a shorter last batch would be another shape, and compile the step once more.
    prefetchd.batches(options.data, split="0-90%", shuffle=True, augment="hflip", drop_last=True, **images) as train,
    prefetchd.batches(options.data, split="90-100%", **images) as validation,
):
    for epoch in range(options.epochs):
        losses = [step(network, optimizer, *jax.device_put(batch)) for batch in train]
        hits = sum(int(count_hits(network, *jax.device_put(batch))) for batch in validation)
        loss = float(jnp.stack(losses).mean())
        print(f"epoch {epoch}: loss {loss:.4f}, accuracy {hits / validation.n_samples:.3f}")
