"""A scale of one's own in a TOML file: one checkpoint, its data, and what is measured of it."""
