"""Codecs: tokens of a network as latents, and back. One codec, one short file."""
