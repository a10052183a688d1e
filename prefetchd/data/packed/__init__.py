"""Shards that pack samples behind a table of offsets: MosaicML's MDS, and LitData's chunks."""
