"""TensorFlow: a loader as a `tf.data.Dataset`.

    import prefetchd.tensorflow

    loader = prefetchd.batches("train.txt", batch_size=64, shuffle=True, on_hold="copy")
    model.fit(prefetchd.tensorflow.dataset(loader), epochs=10)

TensorFlow copies each batch once, into a tensor of its own, in a thread of `tf.data`. With `on_hold="copy"` it may hold
any number of batches on the way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    import tensorflow as tf
except ImportError as error:
    raise ImportError(
        f"cannot import prefetchd.tensorflow: TensorFlow cannot be imported ({error}); "
        "pip install 'prefetchd[tensorflow]'"
    ) from error

from prefetchd.client.batch import joined

if TYPE_CHECKING:
    from prefetchd.client.loader import Loader

__all__ = ["dataset", "signature"]


def signature(loader: Loader) -> tuple[Any, Any]:
    """Return the `tf.TensorSpec` of x and of y, for `tf.data.Dataset.from_generator`; the number of rows is open."""
    layout = loader.layout
    x, y = joined(layout, [tf.TensorSpec((None, *each.shape), tf.as_dtype(each.dtype)) for each in layout.fields])
    return x, y


def dataset(loader: Loader) -> Any:
    """Return a `tf.data.Dataset` over `loader`: each iteration over it is the loader's next iteration.

    It knows the number of batches if an iteration is one epoch, which is the default of `epochs`.
    """
    made = tf.data.Dataset.from_generator(lambda: iter(loader), output_signature=signature(loader))
    if loader.epochs == 1:
        made = made.apply(tf.data.experimental.assert_cardinality(len(loader)))
    return made.prefetch(1)
