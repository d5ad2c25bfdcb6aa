"""Families of architectures, to train on many targets and to judge by unseen ones."""
