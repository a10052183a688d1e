"""Sources in the trainer's memory: lists, tables and arrays, as columns in a memfd for the daemon."""
