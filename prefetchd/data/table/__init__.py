"""Samples that a table of columns lists: from the trainer's memory, or from Arrow files."""
