"""Networks that the priors in ../priors/ train: denoisers, and a causal transformer. One network, one short file."""
