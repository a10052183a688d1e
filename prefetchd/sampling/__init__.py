"""Which sample stands where, and its random numbers: pure functions of (seed, epoch, position)."""
