"""Training a generator: what it learns from, the loop, what is kept on the way."""
