"""Networks in tokens: how a target is cut into pieces of equal length, what is done to its numbers before, and back."""
