"""From a generator to checkpoints on the disk: what is asked for, the tensors, where they came from."""
