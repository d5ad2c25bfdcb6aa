"""What a generated start is worth, beside others."""
