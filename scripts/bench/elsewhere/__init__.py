"""The loaders that `remote.py` compares: modules as those of `loaders`, which have processes elsewhere do the work."""
