"""tf.data, in the loop's own process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from loaders import SIZE_PX, Data, Epochs

TITLE = "tf.data"
PACKAGES = ("tensorflow-cpu",)
DETAIL = "`decode_jpeg`, `tf.image.resize`, cast to uint8; `num_parallel_calls=2` and as many threads, `prefetch(2)`"


def _read(path: Any, label: Any) -> Any:
    image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
    return tf.cast(tf.image.resize(image, (SIZE_PX, SIZE_PX)), tf.uint8), label


@contextlib.contextmanager
def epochs(data: Data) -> Iterator[Epochs]:
    options = tf.data.Options()
    options.threading.private_threadpool_size = data.workers
    dataset = (
        tf.data.Dataset.from_tensor_slices((data.paths, data.labels))
        .shuffle(len(data.paths))
        .map(_read, num_parallel_calls=data.workers)
        .batch(data.batch_size)
        .prefetch(2)
        .with_options(options)
    )
    yield dataset.as_numpy_iterator
