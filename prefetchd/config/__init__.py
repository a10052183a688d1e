"""The options of a data set and its daemon: declared, converted, validated, read from TOML."""
