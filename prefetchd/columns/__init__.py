"""Tables of named columns in one sealed memfd: numbers, text, bytes and ragged numbers, read by row without a copy."""
