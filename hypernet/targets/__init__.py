"""The network that weights are for: what it consists of, its graph, how it is run."""
