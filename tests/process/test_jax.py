"""JAX may take a batch's memory as it is: then the slot is held as long as its array lives. In an interpreter each."""

from __future__ import annotations

import importlib.util

import pytest

from tests.process.commands import run_script

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("jax"), reason="needs prefetchd[jax]")

LIFETIMES = """
import gc, sys, weakref
import jax, jax.numpy as jnp, numpy as np, prefetchd
with prefetchd.batches(sys.argv[1], batch_size=4, image_size=64, num_workers=1, memory_budget="128MiB") as loader:
    connection = loader._connection
    kept, wanted, shared = [], [], 0
    for batch in loader:
        on_device = jax.device_put(batch)
        assert isinstance(on_device, prefetchd.Batch)
        x, y = on_device
        first = batch.root.ctypes.data
        shared += first <= x.unsafe_buffer_pointer() < first + batch.root.nbytes
        if batch.index % 4 == 0:
            kept += [x, jnp.asarray(batch.x)]
            wanted += [batch.x.copy()] * 2
    del batch, on_device, x, y
    gc.collect()
    assert shared, "this JAX copies; nothing is tested"
    assert connection._leases.n_held == len(wanted) // 2, connection._leases.n_held  # by JAX alone
    for array, values in zip(kept, wanted, strict=True):
        np.testing.assert_array_equal(np.asarray(array), values)

    # A function may have the memory of an argument that it was given for good: not that of a slot.
    donated = jax.device_put(next(iter(loader)).x)
    before = np.array(donated)
    np.testing.assert_array_equal(np.asarray(jax.jit(lambda x: x + 1, donate_argnums=0)(donated)), before + 1)

    del kept, donated, array
    gc.collect()
    assert not connection._leases.n_held, connection._leases.n_held
print("ok")
"""


def test_jax_holds_the_slots_that_it_shares(photographs, tmp_path):
    script = LIFETIMES.replace("sys.argv[1]", repr(str(photographs)))
    result = run_script(tmp_path / "lifetimes.py", script)
    assert result.stdout == "ok\n", result.stderr
