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
from prefetchd.errors import ConfigError
from prefetchd.ring.layout import open_shapes

if TYPE_CHECKING:
    from prefetchd.client.loader import Loader

__all__ = ["dataset", "signature"]


def signature(loader: Loader) -> Any:
    """Return the `tf.TensorSpec` of x and of y, for `tf.data.Dataset.from_generator`; the number of rows is open.

    So are height and width, or the length, where buckets differ in them. With the option `fields` or `pack` it is a
    dictionary by their names, and so are the data set's elements. A generator of your own yields `dict(batch)` then,
    and in it `dict(batch.caption)` for each field of several arrays, such as text.
    """
    layout = loader.layout
    specs = [
        tf.TensorSpec((None, *shape), tf.as_dtype(each.dtype))
        for each, shape in zip(layout.fields, open_shapes(loader.layouts), strict=True)
    ]
    batch = batch_class(layout)._make(joined(layout, specs))
    return as_dict(batch) if _is_mapping(loader) else tuple(batch)


def dataset(loader: Loader) -> Any:
    """Return a `tf.data.Dataset` over `loader`: each iteration over it is the loader's next iteration.

    It knows the number of batches if an iteration is one whole epoch, which is the default of `epochs`. After
    `loader.load_state_dict` the first iteration is the rest of one: so load the state before the data set is made.
    """
    is_mapping = _is_mapping(loader)
    knows_length = loader.epochs == 1 and _begins_an_epoch(loader)

    def generate() -> Any:
        if knows_length and not _begins_an_epoch(loader):
            raise ConfigError(
                "cannot go on from the state: the data set was made before, with the length of a whole epoch; call "
                "load_state_dict() first, and then prefetchd.tensorflow.dataset(loader)"
            )
        return map(as_dict, loader) if is_mapping else iter(loader)

    made = tf.data.Dataset.from_generator(generate, output_signature=signature(loader))
    if knows_length:
        made = made.apply(tf.data.experimental.assert_cardinality(len(loader)))
    return made.prefetch(1)


def _begins_an_epoch(loader: Loader) -> bool:
    """Return whether the next iteration begins with a whole epoch."""
    start = loader.next.position
    return not (start.batch or start.row)


def _is_mapping(loader: Loader) -> bool:
    """Return whether batches are dictionaries by the names of fields, and not x and y."""
    return bool(loader.config["fields"] or loader.config["pack"])
