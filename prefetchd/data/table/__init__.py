"""Samples that a table of columns lists, wherever it comes from: files, the trainer's memory, Arrow files."""
