"""The order of samples, the share of each rank, and random numbers: pure functions of (seed, epoch, position)."""
