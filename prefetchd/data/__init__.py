"""Where samples come from: every source of data, behind one interface (`source.Source`)."""
