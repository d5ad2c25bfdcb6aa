"""What training a generator minimises. One objective, one short file."""
