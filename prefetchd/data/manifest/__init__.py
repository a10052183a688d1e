"""List files and class folders: how they are written, checked and read."""
