"""Condition encoders: what is asked for, as codes. One encoder, one short file."""
