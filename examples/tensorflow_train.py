"""TensorFlow: a loader as a `tf.data.Dataset`, to which transformations of `tf.data` can be added.

python examples/tensorflow_train.py DATA --epochs 10
"""

from __future__ import annotations

import tensorflow as tf
from example_data import arguments

import prefetchd
import prefetchd.tensorflow

options = arguments(__doc__)
tf.keras.utils.set_random_seed(0)
images = {"batch_size": options.batch_size, "image_size": options.image_size, "on_hold": "copy"}


def to_float(x, y):
    return tf.cast(x, tf.float32) / 255, y  # in the graph: the ring holds uint8


with (
    prefetchd.batches(options.data, split="0-90%", shuffle=True, augment="hflip", **images) as train,
    prefetchd.batches(options.data, split="90-100%", **images) as validation,
):
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Conv2D(16, 5, strides=4, activation="relu"),
            tf.keras.layers.GlobalAveragePooling2D(),
            tf.keras.layers.Dense(options.classes, activation="softmax"),
        ]
    )
    model.compile(tf.keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(
        prefetchd.tensorflow.dataset(train).map(to_float),
        validation_data=prefetchd.tensorflow.dataset(validation).map(to_float),
        epochs=options.epochs,
        verbose=0,
    ).history
    for epoch, (loss, accuracy) in enumerate(zip(history["loss"], history["val_accuracy"], strict=True)):
        print(f"epoch {epoch}: loss {loss:.4f}, accuracy {accuracy:.3f}")
