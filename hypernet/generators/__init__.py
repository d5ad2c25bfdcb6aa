"""The presets: a paper is a choice of parts. One generator, one short file."""
