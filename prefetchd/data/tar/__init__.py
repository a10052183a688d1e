"""Tar shards, read at random by an index of their members."""
