"""Objects by URL: what they are called, how they are read, and what their faults mean. Loaded where a URL is used."""
