"""Keras 3: `fit` and `evaluate` on a manifest of images, with any backend.

KERAS_BACKEND=torch python examples/keras_train.py [MANIFEST] [--epochs N]
"""

from __future__ import annotations

import keras
from example_data import arguments

import prefetchd
import prefetchd.keras

options = arguments(__doc__)
keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.layers.Conv2D(16, 5, strides=4, activation="relu"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(8, activation="softmax"),
    ]
)
model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")

# As a dataset: every epoch of Keras is an epoch of the loader.
train = prefetchd.keras.dataset(
    options.manifest, batch_size=16, image_size=64, dtype="float32", scale=1 / 255, shuffle=True
)
history = model.fit(train, epochs=options.epochs, verbose=0)
for epoch, loss in enumerate(history.history["loss"]):
    print(f"epoch {epoch}: loss {loss:.4f}")
train.close()

# As an endless generator: a plain loader, as it stands.
with prefetchd.batches(
    options.manifest, batch_size=16, image_size=64, dtype="float32", scale=1 / 255, epochs=None, on_hold="copy"
) as loader:
    model.fit(iter(loader), steps_per_epoch=len(loader), epochs=1, shuffle=False, verbose=0)
    print(f"evaluated: loss {model.evaluate(iter(loader), steps=len(loader), verbose=0):.4f}")
