"""Samples listed in a column store: the columns of each field, from CSV, JSONL, folders of pairs and more."""
