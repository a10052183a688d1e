"""What `verify` looks for and reports."""
