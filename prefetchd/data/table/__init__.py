"""Tables of samples: paths and columns, however they are written."""
