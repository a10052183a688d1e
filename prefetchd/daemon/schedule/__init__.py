"""Which batch is filled next, and into which slot."""
