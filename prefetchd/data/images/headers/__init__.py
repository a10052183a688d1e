"""What the first bytes of an encoded image say: a parser for each format, and `read_header`, which chooses one."""
