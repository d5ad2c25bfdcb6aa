"""The generating half of paramsmith: weights that did not exist before. Nothing is implemented yet."""
