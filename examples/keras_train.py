"""Keras 3: `fit` with validation on images, with any backend; then `evaluate` on a plain loader.

KERAS_BACKEND=torch python examples/keras_train.py DATA --epochs 10
"""

from __future__ import annotations

import keras
from example_data import arguments

import prefetchd
import prefetchd.keras

options = arguments(__doc__)
keras.utils.set_random_seed(0)
images = {
    "batch_size": options.batch_size, "image_size": options.image_size, "dtype": "float32", "scale": 1 / 255,
}  # fmt: skip

# Nine tenths train and the rest validates, chosen by a hash of each path. Every epoch of Keras is one of the loader.
train = prefetchd.keras.dataset(options.data, split="0-90%", shuffle=True, augment="hflip", **images)
validation = prefetchd.keras.dataset(options.data, split="90-100%", **images)
model = keras.Sequential(
    [
        keras.layers.Conv2D(16, 5, strides=4, activation="relu"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(options.classes, activation="softmax"),
    ]
)
model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy", metrics=["accuracy"])
history = model.fit(train, validation_data=validation, epochs=options.epochs, verbose=0).history
for epoch, (loss, accuracy) in enumerate(zip(history["loss"], history["val_accuracy"], strict=True)):
    print(f"epoch {epoch}: loss {loss:.4f}, accuracy {accuracy:.3f}")
train.close()
validation.close()

# A plain loader is the endless generator that Keras takes, too.
with prefetchd.batches(options.data, epochs=None, on_hold="copy", **images) as loader:
    loss, accuracy = model.evaluate(iter(loader), steps=len(loader), verbose=0)
    print(f"all of it: loss {loss:.4f}, accuracy {accuracy:.3f}")
