"""The consumers of a daemon: their connections, loops, grants, releases and groups."""
