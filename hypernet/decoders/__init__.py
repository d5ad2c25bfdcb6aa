"""Decoders: codes as raw tensors. One decoder, one short file."""
