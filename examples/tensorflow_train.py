"""TensorFlow: a loader as a `tf.data.Dataset`.

python examples/tensorflow_train.py [MANIFEST] [--epochs N]
"""

from __future__ import annotations

import tensorflow as tf
from example_data import arguments

import prefetchd
import prefetchd.tensorflow

options = arguments(__doc__)
tf.keras.utils.set_random_seed(0)
with prefetchd.batches(options.manifest, batch_size=16, image_size=64, shuffle=True, on_hold="copy") as loader:
    dataset = prefetchd.tensorflow.dataset(loader).map(lambda x, y: (tf.cast(x, tf.float32) / 255, y))
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Conv2D(16, 5, strides=4, activation="relu"),
            tf.keras.layers.GlobalAveragePooling2D(),
            tf.keras.layers.Dense(8, activation="softmax"),
        ]
    )
    model.compile(tf.keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    history = model.fit(dataset, epochs=options.epochs, verbose=0)
    for epoch, loss in enumerate(history.history["loss"]):
        print(f"epoch {epoch}: loss {loss:.4f}")
