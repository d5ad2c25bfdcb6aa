"""Zoos: trained networks and what is known of each, which generators learn from."""
