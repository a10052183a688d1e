"""Everybody who is attached: their loops, grants, releases and groups."""
