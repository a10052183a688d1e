"""Arrays: `.npy` and `.npz` files, shards of them, and ragged sequences."""
