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

from prefetchd.client.batch import as_dict, batch_class, joined

if TYPE_CHECKING:
    from prefetchd.client.loader import Loader

__all__ = ["dataset", "signature"]


def signature(loader: Loader) -> Any:
    """Return the `tf.TensorSpec` of x and of y, for `tf.data.Dataset.from_generator`; the number of rows is open.

    With the option `fields` or `pack` it is a dictionary by their names, and so are the data set's elements.
    """
    layout = loader.layout
    specs = [tf.TensorSpec((None, *each.shape), tf.as_dtype(each.dtype)) for each in layout.fields]
    batch = batch_class(layout)._make(joined(layout, specs))
    return as_dict(batch) if _is_mapping(loader) else tuple(batch)


def dataset(loader: Loader) -> Any:
    """Return a `tf.data.Dataset` over `loader`: each iteration over it is the loader's next iteration.

    It knows the number of batches if an iteration is one epoch, which is the default of `epochs`.
    """
    is_mapping = _is_mapping(loader)
    made = tf.data.Dataset.from_generator(
        lambda: map(as_dict, loader) if is_mapping else iter(loader), output_signature=signature(loader)
    )
    if loader.epochs == 1:
        made = made.apply(tf.data.experimental.assert_cardinality(len(loader)))
    return made.prefetch(1)


def _is_mapping(loader: Loader) -> bool:
    """Return whether batches are dictionaries by the names of fields, and not x and y."""
    return bool(loader.config["fields"] or loader.config["pack"])
