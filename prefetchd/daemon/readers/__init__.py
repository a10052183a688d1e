"""The pool of readers, and the batches that they build."""
