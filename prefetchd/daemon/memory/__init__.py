"""The memory budget: planned at start, watched and adapted while the daemon runs."""
