"""Decoding on other machines: agents, which run readers there, and the bridge, the daemon's process that asks them."""
