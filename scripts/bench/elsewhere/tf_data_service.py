"""tf.data service: a dispatcher, and workers in processes of their own, as they would be on other machines."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import tensorflow as tf
from loaders import Data, Epochs
from loaders.tf_data import _read

TITLE = "tf.data service"
PACKAGES = ("tensorflow-cpu",)
DETAIL = "as tf.data, `distribute` with dynamic sharding over two workers of a thread each"
_WORKER = """
import sys
import tensorflow as tf
config = tf.data.experimental.service.WorkerConfig(dispatcher_address=sys.argv[1])
server = tf.data.experimental.service.WorkerServer(config)
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def epochs(data: Data) -> Iterator[Epochs]:
    service = tf.data.experimental.service
    dispatcher = service.DispatchServer()
    address = dispatcher.target.split("://")[1]
    workers = [
        subprocess.Popen([sys.executable, "-c", _WORKER, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(data.workers)
    ]
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    dataset = (
        tf.data.Dataset.from_tensor_slices((data.paths, data.labels))
        .shuffle(len(data.paths))
        .map(_read, num_parallel_calls=1)
        .batch(data.batch_size)
        .with_options(options)
        .apply(service.distribute(service.ShardingPolicy.DYNAMIC, dispatcher.target))
        .prefetch(2)
    )
    try:
        for worker in workers:
            assert worker.stdout is not None
            worker.stdout.readline()
        yield dataset.as_numpy_iterator
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
