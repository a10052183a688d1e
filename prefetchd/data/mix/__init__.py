"""Several sources as one, for the option `mix`."""
