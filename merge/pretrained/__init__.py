"""Tasks without code: models that transformers loads, on data in files."""
